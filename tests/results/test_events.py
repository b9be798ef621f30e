from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import ResultError
from pytest_kvcache.results.events import EventTail, EventWriter

if TYPE_CHECKING:
    from pathlib import Path

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3)
    ),
    max_leaves=5,
)


def test_event_is_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    with closing(EventWriter(path)) as writer:
        writer.write("heartbeat", t_s=1.5, rank=3, host="n1")

        assert tail.poll() == [{"event": "heartbeat", "t_s": 1.5, "rank": 3, "host": "n1"}]

        writer.write("heartbeat", t_s=2.5)
        writer.write("done", t_s=3.0)

        assert [event["t_s"] for event in tail.poll()] == [2.5, 3.0]
        assert tail.poll() == []


def test_file_that_is_not_there_yet_has_no_events(tmp_path: Path) -> None:
    assert EventTail(tmp_path / "absent.jsonl").poll() == []


@pytest.mark.thorough
@given(values=st.lists(VALUES, max_size=5), data=st.data())
def test_events_come_whole_and_in_order_however_the_file_grows(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("events")
    with closing(EventWriter(directory / "written")) as writer:
        for index, value in enumerate(values):
            writer.write("progress", t_s=float(index), value=value)
    content = (directory / "written").read_bytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    tail, read = EventTail(directory / "grown"), []
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        with (directory / "grown").open("ab") as file:
            file.write(content[begin:end])
        read += tail.poll()

    assert [event["t_s"] for event in read] == [float(index) for index in range(len(values))]
    assert [event["value"] for event in read] == values


@pytest.mark.parametrize(
    "line", ["{broken", "", "[1]", '{"event": "x"}', '{"t_s": 1.0}', '["event", "t_s"]', "\xff"]
)
def test_garbled_line_is_an_error_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event":"start","t_s":0.0}\n')
    tail = EventTail(path)
    tail.poll()
    with path.open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")

    with pytest.raises(ResultError, match=r"events\.jsonl, line 2 is b'.*must be a JSON object"):
        tail.poll()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_event_that_json_can_not_hold_is_refused_and_leaves_no_trace(
    tmp_path: Path, value: object
) -> None:
    path = tmp_path / "events.jsonl"
    with closing(EventWriter(path)) as writer:
        with pytest.raises((ValueError, TypeError)):
            writer.write("progress", t_s=0.0, value=value)
        writer.write("progress", t_s=1.0)

    assert [json.loads(line)["t_s"] for line in path.read_text().splitlines()] == [1.0]
