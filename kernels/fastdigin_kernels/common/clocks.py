"""How long calls take: by the wall on a CPU, by events inside a CUDA graph on a GPU.

The host takes longer to start the small kernels of a step than they run, and the engine replays
graphs: a wall clock around one call would time Python.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

_ROUNDS, _SECONDS = 7, 1.0
_CALLS = 5  # in a graph, so that starting it costs little


class WallClock:
    """Times single calls, which end before the next begins."""

    def prepare(self, call: Callable[[], object]) -> Callable[[], object]:
        """Calls once untimed, and gives what is to be timed."""
        call()
        return call

    def milliseconds(self, call: Callable[[], object]) -> float:
        """Of a call, or of what `prepare` made of it."""
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)


class EventClock:
    """Times a CUDA graph of some calls; where one cannot be recorded, the calls themselves."""

    def prepare(self, call: Callable[[], object]) -> Callable[[], object]:
        """Warms up, as recording demands, and records."""

        def calls() -> None:
            for _ in range(_CALLS):
                call()

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            calls()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on with what cannot be recorded.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                calls()
        except RuntimeError:  # some operation waits for the device
            torch.cuda.synchronize()
            return calls
        return graph.replay

    def milliseconds(self, call: Callable[[], object]) -> float:
        """Of a single call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / _CALLS


def clock_of(kind: str) -> WallClock | EventClock:
    """The clock for a kind of device."""
    return EventClock() if kind == "cuda" else WallClock()


def time_in_turns(calls: Mapping[str, Callable[[], object]], kind: str) -> dict[str, float]:
    """Median milliseconds of each, taken in turns for about a second."""
    clock = clock_of(kind)
    prepared = {name: clock.prepare(call) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for _ in range(_ROUNDS):
        for name, call in prepared.items():
            taken[name].append(clock.milliseconds(call))
        if time.perf_counter() - start > _SECONDS:
            break
    return {name: statistics.median(samples) for name, samples in taken.items()}
