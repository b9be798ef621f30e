"""Fields of recorded requests: read from JSON lines and CSV rows, checked, named when wrong.

Rank-side; imports the errors and the standard library. What is wrong with a field is a
ValueError that names it; here it becomes a TraceError with the line.
"""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pytest_kvcache.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_kvcache.traces.source import Source

    T = TypeVar("T")

MAX_TOKENS = 2**31 - 1
_SHOWN = 60  # characters of a value in a message


def json_lines(
    source: Source, parse: Callable[[dict[str, Any]], T], needs: str
) -> Iterator[tuple[int, T]]:
    """Yield (line number, what ``parse`` makes of the line's object).

    Blank lines are accepted at the end. ``needs`` says what a line must be. Raises TraceError.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    blank = 0
    for number, line in enumerate(source.lines(), start=1):
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            raise TraceError(source.path, blank, "the line is blank; remove it")
        try:
            text = line.decode("utf-8").strip()
            value, end = decoder.raw_decode(text)
            if end < len(text):
                raise json.JSONDecodeError("Extra data", text, end)
            found = parse(_object(value, needs))
        except (ValueError, RecursionError) as error:
            raise TraceError(source.path, number, _problem(error, line, needs)) from error
        yield number, found


def _object(value: Any, needs: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"the line is not a JSON object; {needs}")  # noqa: TRY004 - data
    return value


def csv_rows(source: Source, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, the values of these columns) of every row below the header.

    Columns are found by their names, whatever their order; those that are absent are empty
    in every row. Raises TraceError.
    """
    reader = csv.reader(_texts(source))
    try:
        header = [name.strip() for name in next(reader)]
        places = [header.index(name) if name in header else None for name in columns]
        for row in reader:
            if len(row) != len(header):
                raise TraceError(source.path, reader.line_num, _ragged(row, header))
            yield reader.line_num, ["" if at is None else row[at] for at in places]
    except csv.Error as error:
        problem = f"the line is no CSV ({error}); copy the file again"
        raise TraceError(source.path, reader.line_num, problem) from error


def _texts(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.lines(), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"the line is not text ({error}); copy the file again"
            raise TraceError(source.path, number, problem) from error


def _ragged(row: Sequence[str], header: Sequence[str]) -> str:
    if not row:
        return "the line is blank; remove it"
    return (
        f"there are {len(row)} values, and the header names {len(header)} columns; copy the file"
        " again, or delete that line"
    )


def present(fields: dict[str, Any], name: str, needs: str) -> Any:
    """The value of a field that must be there."""
    if name not in fields:
        raise ValueError(f"there is no {name!r}; {needs}")
    return fields[name]


def integer(value: Any, name: str, least: int = 0) -> int:
    """A count of tokens as JSON has it."""
    if type(value) is int and least <= value <= MAX_TOKENS:
        return value
    raise ValueError(
        f"{name} is {shown(value)}; it must be an integer from {least} to {MAX_TOKENS}"
    )


def number(value: Any, name: str, most: float) -> float:
    """A time as JSON has it, whole or not."""
    if type(value) in (int, float) and 0 <= value <= most:
        found: float = value
        return found
    raise ValueError(f"{name} is {shown(value)}; it must be a number from 0 to {most:g}")


def tokens_of(text: str, name: str) -> int:
    """A count of tokens as a CSV file has it."""
    try:
        return integer(int(text), name)
    except ValueError:
        return integer(text, name)


def shown(value: Any) -> str:
    """A value as it stands in a message: not longer than a line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _problem(error: Exception, line: bytes, needs: str) -> str:
    """What is wrong with a line that could not be read, and what to do."""
    if not isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return str(error)
    if not line.endswith(b"\n"):
        return "the last line is cut off; copy the file again, or delete that line"
    # A line of a trace has no lines of its own, which the decoder's text would count.
    found = (
        f"{error.msg} at character {error.pos + 1}"
        if isinstance(error, json.JSONDecodeError)
        else str(error)
    )
    return f"the line is not JSON ({found}); {needs}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number; every number of a trace must be finite")
