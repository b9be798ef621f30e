"""After how many trials a case is looked at, and may be found to have enough. Pure.

Imports nothing. Where ``--kv-trials=N..M`` stops as soon as something is known, a stop
after every trial would pick the moments in which the noise happens to look small. So the
looks are few and fixed beforehand, and summary.py widens each interval for their number.
"""

from __future__ import annotations

import math

_GROWTH = 1.5  # of the number of trials from one look to the next
_LAST_STEP = 1.25  # a look that is followed by the last one within this factor is left out


def planned_looks(low: int, high: int) -> tuple[int, ...]:
    """The numbers of trials after which it may end: the first is ``low``, the last ``high``.

    From one to the next half as many again: 3..20 is looked at after 3, 5, 8, 12 and 20.
    """
    looks = [low]
    while looks[-1] < high:
        following = max(looks[-1] + 1, math.ceil(looks[-1] * _GROWTH))
        looks.append(high if following * _LAST_STEP >= high else following)
    return tuple(looks)
