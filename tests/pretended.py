"""A GPU that is not there: the engine takes its decisions, on CPU tensors."""

from collections.abc import Callable

from fastdigin.hardware import Hardware


class PretendedGpu(Hardware):
    """As large as an H100 unless told otherwise; a graph that it replays is run instead.

    ``recorded`` and ``replays`` count graphs and their launches.
    """

    is_gpu, capability = True, (9, 0)
    advice = "2 GiB are free in pieces"

    def __init__(self, free: int = 79 * 2**30, graphs: bool = True):
        super().__init__()
        self.free, self.has_graphs = free, graphs
        self.recorded = self.replays = 0

    def free_memory(self) -> int:
        return self.free

    def record(self, run: Callable[[], None], forget=None, pool=None) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            run()

        run()
        return replay
