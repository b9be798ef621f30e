"""Block ids of a trace as numbers: opaque on the way in, prefix-chained on the way out. Pure.

Rank-side; imports nothing. Ids are whatever a recorder wrote (a counter, a hash of 64 bits
with or without a sign, a text): only whether two are equal counts. So each gets a number
in the order in which it first occurs, and memory is a few hundred bytes per distinct id.
"""

from __future__ import annotations

from array import array
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Id = int | str

NO_PREDECESSOR = -1


class PrefixIds:
    """Ids that stand for whole prefixes: the same id always has the same one before it.

    Ids of single blocks' contents break that rule sooner or later, and would make hits of
    blocks that no engine could use; they are refused.
    """

    def __init__(self) -> None:
        self._numbers: dict[Id, int] = {}
        self._before = array("q")  # the number of what stands before each
        self._lines = array("q")  # where it was first seen

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, ids: Sequence[Id], line: int) -> list[int]:
        """The numbers of one prompt's ids; ValueError if they are not prefix-chained."""
        numbers, before = self._numbers, self._before
        previous = NO_PREDECESSOR
        found = []
        for each in ids:
            number = numbers.get(each)
            if number is None:
                number = numbers[each] = len(before)
                before.append(previous)
                self._lines.append(line)
            elif before[number] != previous:
                raise ValueError(self._contradiction(each, number, previous))
            found.append(number)
            previous = number
        return found

    def _contradiction(self, each: Id, number: int, previous: int) -> str:
        names = list(self._numbers)
        here, there = (_place(names, place) for place in (previous, self._before[number]))
        return (
            f"hash_ids has {_short(each)} {here}, and line {self._lines[number]} has it {there};"
            " equal ids must stand for equal whole prefixes, so if each of them is the hash of"
            " one block's content, add --kv-trace-ids=content, which chains them"
        )


class ContentIds:
    """Ids that stand for the contents of single blocks, chained here: a number per prefix."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, Id], int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, ids: Sequence[Id], line: int) -> list[int]:
        """The numbers of one prompt's prefixes."""
        del line
        numbers = self._numbers
        previous = NO_PREDECESSOR
        found = []
        for each in ids:
            previous = numbers.setdefault((previous, each), len(numbers))
            found.append(previous)
        return found


IDS: Mapping[str, type[PrefixIds | ContentIds]] = MappingProxyType(
    {"prefix": PrefixIds, "content": ContentIds}
)


def _place(names: Sequence[Id], previous: int) -> str:
    return "first" if previous == NO_PREDECESSOR else f"behind {_short(names[previous])}"


def _short(each: Id) -> str:
    text = repr(each)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"  # noqa: PLR2004 - a message
