"""``python -m pytest_kvcache verify|show RUN…``: run files read without running anything."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_kvcache.errors import KVCacheError, ResultError
from pytest_kvcache.options import Options
from pytest_kvcache.report import report_run, report_series
from pytest_kvcache.results import RunResult
from pytest_kvcache.verify import verify_run

_BEYOND_ASCII = "▁█—…"
_PLAIN = str.maketrans({"—": "-", "…": ".."})


def _read(path: str) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} can't be read as a run file: {error}") from error
    if not isinstance(data, dict):
        raise ResultError(f"{path} is no run file; its JSON must be an object")
    return data


def _shown(run: RunResult, encoding: str) -> str:
    """The tables, and below them how each trial went over time, in what the terminal can show."""
    ascii_only = not _can_show(_BEYOND_ASCII, encoding)
    parts = [report_run(run, Options().metrics)]
    parts += ["\n".join(report_series(case, ascii_only=ascii_only)) for case in run.cases]
    text = "\n\n".join(part for part in parts if part)
    if not ascii_only:
        return text
    return text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)


def _can_show(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _problems(path: str, *, show: bool) -> list[str]:
    """What is wrong with a run file; a sound one is shown if that is asked for."""
    try:
        data = _read(path)
        problems = verify_run(data)
        if show and not problems:
            with suppress(BrokenPipeError):  # `… show | head`
                encoding = sys.stdout.encoding or "ascii"
                print(_shown(RunResult.from_json(data), encoding), flush=True)
    except KVCacheError as error:
        problems = [str(error)]
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Exit 0: all sound (or shown), 1: contradictions were found, 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m pytest_kvcache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("verify", "check schema, sums over ranks, percentiles from histograms, plan"),
        ("show", "print the tables of runs"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("run", nargs="+", help="path of a run.json")
    given = parser.parse_args(arguments)
    show = given.command == "show"
    found = {path: _problems(path, show=show) for path in given.run}
    for path, problems in found.items():
        for problem in problems:
            print(f"{path}: {problem}", file=sys.stderr)
        if not problems and not show:
            print(f"{path}: sound")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
