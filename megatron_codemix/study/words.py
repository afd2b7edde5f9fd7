"""How the report writes numbers."""

from __future__ import annotations

from collections.abc import Sequence


def count(value: float) -> str:
    """1,234 below ten thousand, then three digits and a unit: 1.37M."""
    if value < 1e4:
        return f"{value:,.0f}"
    rounded = float(f"{value:.3g}")
    unit, size = next((unit, size) for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)) if rounded >= size)
    return f"{rounded / size:g}{unit}"


def percent(value: float, digits: int = 4) -> str:
    """A share as percent with at most `digits` decimals: 25 %."""
    return f"{100 * value:.{digits}f}".rstrip("0").rstrip(".") + " %"


def share_name(source: str, share: float) -> str:
    """`code 25 %`."""
    return f"{source} {percent(share)}"


def signed(value: float) -> str:
    """A difference with its sign, a true minus."""
    return f"{value:+.4f}".replace("-", "−")


def small(value: float | None) -> str:
    """A difference of any size in two digits: 0.049, 3.8 × 10⁻⁷; 0 where there is none, – where nothing was measured."""
    if value is None or value == 0:
        return "–" if value is None else "0"
    if value >= 1e-3:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".split("e-")
    return f"{digits}{_NARROW}×{_NARROW}10⁻{exponent.lstrip('0').translate(_SUPERSCRIPT)}"


_NARROW = "\u202f"
"""A narrow space at which no line breaks."""
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def seconds(value: float) -> str:
    """41 s, 3 min 20 s, 2 h 5 min."""
    whole = round(value)
    if whole < 120:
        return f"{value:.1f} s" if value < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(num_bytes: float) -> str:
    """Binary units: 1.23 GiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}" if num_bytes / scale < 1000 else f"{num_bytes / scale:.0f} {unit}"
    return f"{num_bytes:.0f} B"
