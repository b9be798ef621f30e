"""Axes of a picture: from values to pixels, with ticks at round values. Pure."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

_ROUND = (1.0, 2.0, 5.0)
_SAME = 1e-12  # relative: nearer than that, two values are one
_LOG_FROM = 20.0  # the highest value over the lowest one; from here on small ones are told apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps ``low`` … ``high`` to ``begin_px`` … ``end_px``; the ticks lie between them."""

    low: float
    high: float
    begin_px: float
    end_px: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.begin_px + (at - low) / (high - low) * (self.end_px - self.begin_px)


def scale_from_zero(highest: float, begin_px: float, end_px: float, most_ticks: int) -> Scale:
    """A scale from 0 to the first tick at or above ``highest``; to 1 where all is 0."""
    step = _step(highest, most_ticks)
    count = max(1, math.ceil(highest / step * (1 - 4 * _SAME)))  # _step may have rounded down
    ticks = tuple(number * step for number in range(count + 1))
    return Scale(low=0.0, high=ticks[-1], begin_px=begin_px, end_px=end_px, ticks=ticks)


def scale_of_span(
    before: float, length: float, begin_px: float, end_px: float, most_ticks: int
) -> Scale:
    """A scale from ``-before`` to exactly ``length``; ticks from 0 on."""
    step = _step(length, most_ticks)
    ticks = tuple(number * step for number in range(int(length / step + 1e-9) + 1))
    return Scale(low=-before, high=length, begin_px=begin_px, end_px=end_px, ticks=ticks)


def scale_of_times(
    lowest: float, highest: float, begin_px: float, end_px: float, most_ticks: int
) -> Scale:
    """A scale from 0, or logarithmic where the highest is over 20 times the lowest (above 0)."""
    if highest <= _LOG_FROM * lowest:
        return scale_from_zero(highest, begin_px, end_px, most_ticks)
    low, high = _round_down(lowest), _round_up(highest)
    scale = Scale(
        low=low, high=high, begin_px=begin_px, end_px=end_px, ticks=(low, high), logarithmic=True
    )
    return replace(scale, ticks=_log_ticks(scale, abs(end_px - begin_px) / (1.5 * most_ticks)))


def _log_ticks(scale: Scale, apart_px: float) -> tuple[float, ...]:
    """Both ends, then powers of ten, then their multiples, as far as there is room."""
    first, last = (math.floor(math.log10(end)) for end in (scale.low, scale.high))
    chosen = [scale.low, scale.high]
    for digit, power in itertools.product(_ROUND, range(first, last + 1)):
        tick = digit * 10.0**power
        if scale.low < tick < scale.high and all(
            abs(scale(tick) - scale(other)) >= apart_px for other in chosen
        ):
            chosen.append(tick)
    return tuple(sorted(chosen))


def tick_label(value: float) -> str:
    """A tick's value, without the noise of floating point."""
    return f"{value:,.10g}"


def _step(highest: float, most_ticks: int) -> float:
    """1, 2 or 5 times a power of ten, such that so many ticks suffice."""
    return _round_up(highest / max(1, most_ticks - 1)) if highest > 0 else 1.0


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(d * power for d in (*_ROUND, 10.0) if d * power >= value * (1 - _SAME))


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(d * power for d in (*reversed(_ROUND), 0.5) if d * power <= value * (1 + _SAME))
