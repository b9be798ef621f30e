from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces import dates
from pytest_kvcache.traces.dates import Dates

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
ZONES = st.sampled_from(("", "Z", "+00:00", "+01:00", "-0730", "+0530"))


def found(*texts: Any) -> list[int]:
    column = Dates("t", "TIMESTAMP")
    for line, text in enumerate(texts, start=2):
        column.add(text, line)
    return [int(value) for value in column.finish()]


@settings(deadline=None)
@given(st.lists(st.tuples(st.datetimes(datetime(1970, 1, 2), datetime(2199, 1, 1)), ZONES)))  # noqa: DTZ001
def test_a_date_is_what_the_standard_library_makes_of_it(
    drawn: list[tuple[datetime, str]],
) -> None:
    texts, expected = [], []
    for at, zone in drawn:
        texts.append(at.isoformat(" ") + zone)
        minutes = 0
        if zone not in ("", "Z"):
            minutes = int(zone[1:3]) * 60 + int(zone[-2:])
        utc = at.replace(tzinfo=timezone.utc) - timedelta(minutes=minutes) * (
            -1 if zone.startswith("-") else 1
        )
        expected.append((utc - EPOCH) // timedelta(microseconds=1) * 1000)
    assert found(*texts) == expected


def test_seven_decimals_are_kept() -> None:
    assert found("2023-11-16 18:17:03.9799601")[0] % 10**9 == 979_960_100


def test_many_dates_are_dealt_with_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dates, "_BATCH", 3)
    texts = [f"2024-05-10 00:00:{second:02}+00:00" for second in range(10)]
    first, *others = found(*texts)
    assert [other - first for other in others] == [second * 10**9 for second in range(1, 10)]


@pytest.mark.parametrize(
    "text",
    ["", "now", "NaT", "2024-13-01 00:00:00", "2024-05-10", "1969-12-31 23:59:59", "12345678",
     "2024-05-10 00:00:00 CET", "9999-01-01 00:00:00", None, 7],
)  # fmt: skip
def test_what_is_no_date_is_refused_with_its_line(text: Any) -> None:
    with pytest.raises(TraceError, match=r"line 3: TIMESTAMP is .*; it must be a date as"):
        found("2024-05-10 00:00:00.009930+00:00", text)
