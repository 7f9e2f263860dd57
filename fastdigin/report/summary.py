"""What the records of a task amount to: the figures above the cards and on the console.

Every figure carries n and says which jobs it counts. A job without the value (null: no judge was
given, or the number was not finite) is left out of that figure and of its n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One summary figure: text for people, and the numbers for the little pictures beside it."""

    label: str
    value: str
    note: str
    change: tuple[float, float] | None = None  # before, after, each in [0,1]
    interval: tuple[float, float, float] | None = None  # low, rate, high, each in [0,1]
    tone: int = 0  # 1: the colour of the second classifier


def summarise(task: str, records: Iterable[dict]) -> list[Figure]:
    """The figures of one task from its records; failed jobs count in the first one only."""
    records = [record for record in records if record["task"] == task]
    done = [record for record in records if record["status"] == "done"]
    failed = len(records) - len(done)
    jobs = Figure("Images", f"{len(done)}", "done, none failed" if not failed else
                  f"done, {failed} failed")
    return [jobs, *(figure for figure in _FIGURES[task](done) if figure is not None)]


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a rate (95% at z = 1.96); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(value: float | None) -> str:
    """0.034 -> '3.4%', 0.97 -> '97%', 0.9999 -> '>99.9%'; 'n/a' for None."""
    if value is None:
        return "n/a"
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    digits = 1 if 0 < abs(value) < 0.095 or 0.995 <= value < 1 else 0
    return f"{100 * value:.{digits}f}%"


def number(value: float | None) -> str:
    """Three significant digits, 'n/a' for None."""
    if value is None:
        return "n/a"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(digits, 4)}f}"


def _counterfactual(done: list[dict]) -> list[Figure | None]:
    return [
        _rate("Flip rate", done, _flipped, "classifier now answers with the target"),
        _change("Target confidence", done, "target_confidence_before", "target_confidence"),
        _rate("Judge agrees", done, _judge_agrees,
              "independent judge names the target, flipped or not"),
        _mean("Background change", done, "background_l1", "mean L1, pixels in 0 to 1"),
        _mean("Foreground change", done, "foreground_l1", "mean L1, pixels in 0 to 1"),
    ]


def _disagreement(done: list[dict]) -> list[Figure | None]:
    gap = _pair_means(done, _gap("f_confidence_before", "g_confidence_before"),
                      _gap("f_confidence", "g_confidence"))
    return [
        _change("Confidence of f", done, "f_confidence_before", "f_confidence"),
        _change("Confidence of g", done, "g_confidence_before", "g_confidence", tone=1),
        None if gap is None else Figure(
            "Gap", f"{percent(gap[0])} → {percent(gap[1])}",
            f"f minus g, mean, before → after, n = {gap[2]}"),
    ]


def _neurons(done: list[dict]) -> list[Figure | None]:
    shares = _pair_means(done, share_before, share_of_maximum)
    return [
        _rate("Above the data set", done, above_dataset,
              "activation higher than for any photo of the data set"),
        None if shares is None else Figure(
            "Share of the maximum", f"{times(shares[0])} → {times(shares[1])}",
            f"activation / its maximum over the data set, mean, before → after, n = {shares[2]}"),
    ]


def _neuron_counterfactual(done: list[dict]) -> list[Figure | None]:
    # Up and down move apart, so that a mean over both would say nothing.
    by_direction: dict[str, list[dict]] = {}
    for record in done:
        by_direction.setdefault(str(record.get("direction")), []).append(record)
    figures = []
    for direction, chosen in by_direction.items():
        figures += [
            _activation_change(f"Activation, {direction}", chosen),
            _change(f"Class confidence, {direction}", chosen, "class_confidence_before",
                    "class_confidence"),
        ]
    return [
        *figures,
        _rate("Background changed", done, _background_changed,
              "background classifier's answer differs"),
        _mean("Foreground change", done, "foreground_l1", "mean L1, pixels in 0 to 1"),
    ]


_FIGURES: dict[str, Callable[[list[dict]], list[Figure | None]]] = {
    "counterfactual": _counterfactual,
    "disagreement": _disagreement,
    "neurons": _neurons,
    "neuron-counterfactual": _neuron_counterfactual,
}


def share_of_maximum(record: dict) -> float | None:
    """A neuron's activation as a multiple of its maximum over the data set."""
    return _share(record.get("activation"), record.get("dataset_max_activation"))


def share_before(record: dict) -> float | None:
    """The same for the image before the optimisation."""
    return _share(record.get("activation_before"), record.get("dataset_max_activation"))


def above_dataset(record: dict) -> bool | None:
    """Whether a neuron's activation exceeds its maximum over the data set; None when unknown."""
    activation, maximum = record.get("activation"), record.get("dataset_max_activation")
    return None if activation is None or maximum is None else activation > maximum


def times(value: float | None) -> str:
    """1.368 -> '1.37×', 'n/a' for None."""
    return "n/a" if value is None else f"{value:.2f}×"


def _flipped(record: dict) -> bool | None:
    return record.get("flipped")


def _judge_agrees(record: dict) -> bool | None:
    prediction = record.get("judge_prediction")
    return None if prediction is None else prediction == record.get("target")


def _background_changed(record: dict) -> bool | None:
    before, after = record.get("background_before"), record.get("background_after")
    return None if before is None or after is None else before != after


def _gap(high: str, low: str) -> Callable[[dict], float | None]:
    def gap(record: dict) -> float | None:
        pair = record.get(high), record.get(low)
        return None if None in pair else pair[0] - pair[1]
    return gap


def _share(activation: float | None, maximum: float | None) -> float | None:
    # A multiple of a maximum that is not positive says nothing.
    known = activation is not None and maximum is not None and maximum > 0
    return activation / maximum if known else None


def _read(record: dict, value: str | Callable[[dict], object]):
    return value(record) if callable(value) else record.get(value)


def _values(done: list[dict], value: str | Callable[[dict], object]) -> list:
    found = (_read(record, value) for record in done)
    return [item for item in found if item is not None]


def _mean(label: str, done: list[dict], value, note: str,
          show: Callable[[float | None], str] = number) -> Figure | None:
    found = _values(done, value)
    if not found:
        return None
    return Figure(label, show(sum(found) / len(found)), f"{note}, n = {len(found)}")


def _rate(label: str, done: list[dict], value, note: str) -> Figure | None:
    found = _values(done, value)
    if not found:
        return None
    k, n = sum(map(bool, found)), len(found)
    low, high = wilson_interval(k, n)
    return Figure(label, percent(k / n), f"{k} of {n}: {note}; "
                  f"95% interval {percent(low)} to {percent(high)}", interval=(low, k / n, high))


def _pair_means(done: list[dict], before, after) -> tuple[float, float, int] | None:
    pairs = [(_read(record, before), _read(record, after)) for record in done]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        return None
    n = len(pairs)
    return sum(b for b, _ in pairs) / n, sum(a for _, a in pairs) / n, n


def _change(label: str, done: list[dict], before: str, after: str,
            tone: int = 0) -> Figure | None:
    means = _pair_means(done, before, after)
    if means is None:
        return None
    start, end, n = means
    return Figure(label, f"{percent(start)} → {percent(end)}", f"mean, before → after, n = {n}",
                  change=(start, end), tone=tone)


def _activation_change(label: str, done: list[dict]) -> Figure | None:
    means = _pair_means(done, "activation_before", "activation")
    if means is None:
        return None
    start, end, n = means
    return Figure(label, f"{number(start)} → {number(end)}", f"mean, before → after, n = {n}")
