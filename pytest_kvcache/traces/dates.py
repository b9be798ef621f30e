"""Dates as a trace has them (ISO 8601, any number of decimals) as nanoseconds since 1970.

Rank-side; imports numpy and the errors. Many at a time: a week of requests has millions.
"""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.fields import shown

if TYPE_CHECKING:
    import numpy.typing as npt

_BATCH = 1 << 16
_SECONDS_AT = 17  # in a date with hours and minutes
_UTC = ("+00:00", "Z")
_DATE = re.compile(
    r"(?P<local>(19[7-9]\d|2[01]\d\d)-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?)"
    r"(?P<zone>Z|[+-]\d\d:?\d\d)?"
)


class Dates:
    """Collects the dates of one field, in the order of the file; without a zone they are UTC."""

    def __init__(self, path: str, field: str) -> None:
        self._path, self._field = path, field
        self._texts: list[str] = []
        self._lines: list[int] = []
        self._found = array("q")

    def add(self, text: Any, line: int) -> None:
        """Take one more date; raises TraceError for this or an earlier one."""
        if not isinstance(text, str):
            raise TraceError(self._path, line, _problem(text, self._field))
        self._texts.append(text)
        self._lines.append(line)
        if len(self._texts) >= _BATCH:
            self._parse()

    def finish(self) -> npt.NDArray[np.int64]:
        """All of them, ns since 1970 in UTC."""
        self._parse()
        return np.array(self._found, dtype=np.int64)

    def _parse(self) -> None:
        texts = [text.removesuffix("Z").removesuffix("+00:00") for text in self._texts]
        try:
            if not all(map(_is_plain, texts)):
                raise ValueError("some have another zone, or are no dates")  # noqa: TRY301 - as
            found = np.array(texts, dtype="datetime64[ns]")  # what numpy raises for them
        except ValueError:
            rows = zip(self._texts, self._lines, strict=True)
            found = np.array([_one(text, line, self._path, self._field) for text, line in rows])
        self._found.frombytes(found.astype("datetime64[ns]").astype(np.int64).tobytes())
        self._texts, self._lines = [], []


def _is_plain(text: str) -> bool:
    """Whether a date is like most of them: since 1970, with its seconds, and in UTC."""
    return (
        len(text) > _SECONDS_AT
        and text[-1].isdigit()
        and (text[:2] == "20" or "197" <= text[:3] <= "199")
        and text[-6] not in "+-"
        and text[-5] not in "+-"
    )


def _one(text: str, line: int, path: str, field: str) -> np.datetime64:
    """A date that is not like most of them: with another zone, or none at all."""
    match = _DATE.fullmatch(text)
    if match is None:
        raise TraceError(path, line, _problem(text, field))
    try:
        date = np.datetime64(match["local"], "ns")
    except ValueError as error:
        raise TraceError(path, line, _problem(text, field)) from error
    zone = match["zone"]
    if zone is None or zone in _UTC:
        return date
    minutes = int(zone[1:3]) * 60 + int(zone[-2:])
    return date - np.timedelta64(minutes if zone[0] == "+" else -minutes, "m")


def _problem(value: Any, field: str) -> str:
    return f"{field} is {shown(value)}; it must be a date as 2026-06-01 05:40:20.151"
