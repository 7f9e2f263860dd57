"""Numbers for people."""

import math


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


def times(value: float | None) -> str:
    """1.368 -> '1.37×', 'n/a' for None."""
    return "n/a" if value is None else f"{value:.2f}×"


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a rate (95% at z = 1.96); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
