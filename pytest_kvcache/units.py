"""Parse and format sizes, parse durations and plain option values; a part of a whole.

Imports nothing of the package but ``errors``: every side may use it.
"""

from __future__ import annotations

import re
from fractions import Fraction

from pytest_kvcache.errors import OptionError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_BINARY_BYTES = {
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": 1 << 40,
    "PiB": 1 << 50,
    "EiB": 1 << 60,
}
_DECIMAL_BYTES = {
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
    "EB": 10**18,
}
_UNIT_BYTES = {
    name.lower(): size for name, size in {"B": 1, **_BINARY_BYTES, **_DECIMAL_BYTES}.items()
}
# From the longest, so that the units of a compound duration must descend.
_UNIT_SECONDS = {
    "h": Fraction(3600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
}
_SIZE_LIMIT_BYTES = 1 << 63  # off_t: no file system takes more

# Bounded, so that no text makes a number that takes long to compute.
_NUMBER = r"(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,2})?"
_SIZE = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)")
_DURATION_PART = re.compile(rf"\s*({_NUMBER})\s*(h|ms|m|us|ns|s)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")

_FLAGS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def parse_gib(text: str, *, option: str) -> int:
    """Return the bytes that ``text`` means: a plain number is GiB, "512MiB" is itself.

    Units are B, KiB to EiB (powers of 1024) and KB to EB (powers of 1000), in any
    case. The arithmetic is exact; part of a byte is dropped. Raises ``OptionError``.
    """
    match = _SIZE.fullmatch(text.strip())
    unit_bytes = _UNIT_BYTES.get((match[2] or "GiB").lower()) if match else None
    if match is None or unit_bytes is None:
        raise OptionError(
            f"{option} is {text!r}; it must be a size of at least 0, such as 4 (GiB), 1.5 or "
            f"512MiB (units: B, {', '.join((*_BINARY_BYTES, *_DECIMAL_BYTES))})"
        )
    size_bytes = Fraction(match[1]) * unit_bytes
    if 0 < size_bytes < 1:  # 0 often means "choose for me": nothing may round to it
        raise OptionError(f"{option} is {text!r}; it must be 0 or at least one byte")
    if size_bytes >= _SIZE_LIMIT_BYTES:
        raise OptionError(f"{option} is {text!r}; it must be below 8 EiB")
    return int(size_bytes)


def parse_duration_s(text: str, *, option: str) -> float:
    """Return seconds: "60", "1.5", "90s", "2m", "1h", "350us", "1h 05m 20s".

    A plain number is seconds; 0 is allowed. Raises ``OptionError``.
    """
    stripped = text.strip()
    parts = [("s", stripped)] if re.fullmatch(_NUMBER, stripped) else []
    if _DURATION.fullmatch(stripped):
        parts = [(unit, number) for number, unit in _DURATION_PART.findall(stripped)]
    units = [unit for unit, _ in parts]
    if not units or units != [unit for unit in _UNIT_SECONDS if unit in units]:
        raise OptionError(
            f"{option} is {text!r}; it must be a duration of at least 0, such as 60 (seconds), "
            "1.5, 90s, 2m, 1h or 1m 30s"
        )
    return float(sum(Fraction(number) * _UNIT_SECONDS[unit] for unit, number in parts))


def parse_int(text: str, *, option: str, minimum: int) -> int:
    """Return the whole number in ``text``; ``OptionError`` if below ``minimum``."""
    stripped = text.strip()
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", stripped):
        raise OptionError(
            f"{option} is {text!r}; it must be a whole number of at least {minimum}, of 18 digits"
            " at most"
        )
    value = int(stripped)
    if value < minimum:
        raise OptionError(f"{option} is {value}; it must be at least {minimum}")
    return value


def parse_float(text: str, *, option: str, minimum: float) -> float:
    """Return the finite number in ``text``; ``OptionError`` if below ``minimum``."""
    stripped = text.strip()
    if not re.fullmatch(rf"[+-]?{_NUMBER}", stripped):
        raise OptionError(f"{option} is {text!r}; it must be a number of at least {minimum:g}")
    value = float(stripped) + 0.0  # -0.0 becomes 0.0
    if value < minimum:
        raise OptionError(f"{option} is {stripped}; it must be at least {minimum:g}")
    return value


def parse_flag(text: str, *, option: str) -> bool:
    """Return the truth value of an ini setting (true/false, yes/no, on/off, 1/0)."""
    value = _FLAGS.get(text.strip().lower())
    if value is None:
        raise OptionError(
            f"{option} is {text!r}; it must be one of true, false, yes, no, on, off, 1, 0"
        )
    return value


def format_bytes(size_bytes: int) -> str:
    """Return "512 B", "1.5 GiB": binary units, at most two decimals, no trailing zeros."""
    sign, magnitude = ("-" if size_bytes < 0 else ""), abs(size_bytes)
    if magnitude < KIB:
        return f"{sign}{magnitude} B"
    rounded = [
        (unit, (magnitude * 100 + unit_bytes // 2) // unit_bytes)
        for unit, unit_bytes in _BINARY_BYTES.items()
    ]
    # Judged after rounding: never "1024 KiB".
    unit, hundredths = next((pair for pair in rounded if pair[1] < KIB * 100), rounded[-1])
    number = f"{hundredths // 100}.{hundredths % 100:02d}".rstrip("0").rstrip(".")
    return f"{sign}{number} {unit}"


def format_count(count: int, noun: str) -> str:
    """Return "1 block", "2 blocks", "16,900 blocks"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def format_short(value: float) -> str:
    """Return "1,234", "12.3", "0.0123": three digits, or as many as there are before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004


def ratio(part: float, whole: float) -> float | None:
    """``part / whole``; None where there is no whole."""
    return part / whole if whole else None
