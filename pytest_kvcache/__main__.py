"""``python -m pytest_kvcache verify|show RUN…``: run files read without running anything."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import KVCacheError, ResultError
from pytest_kvcache.options.options import Options
from pytest_kvcache.report.picture import picture_of
from pytest_kvcache.report.tables import report_run, report_series
from pytest_kvcache.results.leftbehind import LeftBehind
from pytest_kvcache.results.trial import RunResult
from pytest_kvcache.results.verify import source_faults, verify_run
from pytest_kvcache.showable import can_show, showable

if TYPE_CHECKING:
    from collections.abc import Sequence


def _read(path: str) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ResultError(f"it can't be read as a run file: {reason}") from error
    if not isinstance(data, dict):
        raise ResultError("it is no run file; its JSON must be an object")
    return data


def _shown(run: RunResult, encoding: str) -> str:
    """The tables, and below them how each trial went over time, in what the terminal can show."""
    ascii_only = not can_show(encoding)
    parts = [
        report_run(replace(run, cases=(case,)), case.metrics or Options().metrics)
        for case in run.cases
    ]
    parts += ["\n".join(report_series(case, ascii_only=ascii_only)) for case in run.cases]
    text = "\n\n".join(part for part in parts if part)
    return showable(text, encoding)


def _sound_run(
    path: str, problems: dict[str, list[str]], compared: dict[str, int], *, ended: bool
) -> RunResult | None:
    """The run of a file in which nothing is wrong; what is wrong is noted.

    So is how many trials could be compared with the records that they left behind.
    ``ended``: it must have come to its end.
    """
    try:
        data = _read(path)
        problems[path] = verify_run(data, ended=ended)
        if not problems[path]:
            problems[path], compared[path] = source_faults(data, LeftBehind(Path(path)))
        return None if problems[path] else RunResult.from_json(data)
    except KVCacheError as error:
        problems[path] = [str(error)]
        return None


def _described(compared: int) -> str:
    """What a sound run file could be held against."""
    if not compared:
        return "in itself: no trial's record lies beside it"
    if compared == 1:
        return "and as the record of 1 trial says"
    return f"and as the records of {compared:,} trials say"


def _draw(path: Path, runs: Sequence[RunResult]) -> str | None:
    """Write the picture of these runs; return what prevented it."""
    if not any(run.cases for run in runs):
        return "it is not written; there is no sound run to draw"
    try:
        path.write_text(picture_of(runs), encoding="utf-8")
    except OSError as error:
        return f"it can't be written: {error.strerror}"
    return None


def _picture_path(text: str) -> Path:
    if Path(text).suffix != ".svg":
        raise argparse.ArgumentTypeError(f"{text!r} must be the name of an .svg file")
    if not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is in no directory that exists; make it first")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pytest_kvcache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("verify", "check schema, sums over ranks, percentiles from histograms, plan"),
        ("show", "print the tables of runs, and draw them"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("run", nargs="+", help="path of a run.json")
        if name == "show":
            command.add_argument(
                "--picture",
                metavar="FILE.svg",
                type=_picture_path,
                help="draw all runs over time into one SVG: GiB/s and p99, a line per trial",
            )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit 0: all sound (or shown), 1: contradictions were found, 2: wrong usage."""
    given = _parser().parse_args(arguments)
    show = given.command == "show"
    problems: dict[str, list[str]] = {}
    compared: dict[str, int] = {}
    found_runs = [_sound_run(path, problems, compared, ended=not show) for path in given.run]
    runs = [run for run in found_runs if run is not None]
    if show:
        encoding = sys.stdout.encoding or "ascii"
        with suppress(BrokenPipeError):  # `… show | head`
            for run in runs:
                print(_shown(run, encoding), flush=True)
        if given.picture is not None and (fault := _draw(given.picture, runs)) is not None:
            problems[str(given.picture)] = [fault]
    for path, found in problems.items():
        for problem in found:
            print(f"{path}: {problem}", file=sys.stderr)
        if not found and not show:
            print(f"{path}: sound, {_described(compared[path])}")
    return 1 if any(problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
