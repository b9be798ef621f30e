"""``python -m pytest_kvcache verify|show RUN…``: run files read without running anything.

``mlperf import DIR`` and ``mlperf export RUN DIR`` are about results of the MLPerf Storage KV cache
benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.atomic import write_json
from pytest_kvcache.errors import KVCacheError, ResultError
from pytest_kvcache.mlperf.contradictions import contradictions_of
from pytest_kvcache.mlperf.export import exported
from pytest_kvcache.mlperf.published import read_results
from pytest_kvcache.mlperf.report import describe_import, import_to_json
from pytest_kvcache.options.options import Options
from pytest_kvcache.report.picture import picture_of
from pytest_kvcache.report.scaling import report_scaling
from pytest_kvcache.report.tables import report_run, report_series
from pytest_kvcache.results.leftbehind import LeftBehind
from pytest_kvcache.results.run import RunResult
from pytest_kvcache.results.verify import source_faults, verify_run
from pytest_kvcache.showable import can_show, showable

if TYPE_CHECKING:
    from collections.abc import Sequence


def _say(text: str) -> None:
    """Print for whoever reads on; one who does not (``… | head``) changes no answer of ours."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
        for case in run.shown
    ]
    metrics = dict.fromkeys(metric for case in run.shown for metric in case.metrics or ())
    parts.append(report_scaling(run.asked, [*metrics] or Options().metrics))
    parts += ["\n".join(report_series(case, ascii_only=ascii_only)) for case in run.shown]
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
    _add_mlperf(commands.add_parser("mlperf", help="results of the MLPerf Storage benchmark"))
    return parser


def _add_mlperf(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    reads = actions.add_parser(
        "import", help="compute a result again and name what contradicts itself"
    )
    reads.add_argument("directory", metavar="DIR", type=Path, help="of a run, or of several")
    reads.add_argument("--json", action="store_true", help="for programs")
    writes = actions.add_parser("export", help="write a run of mlperf scenarios as such a result")
    writes.add_argument("run", metavar="RUN.json", help="path of a run.json")
    writes.add_argument("directory", metavar="DIR", type=Path, help="to be made; must be empty")


def _import(directory: Path, *, as_json: bool) -> int:
    """Exit 0: nothing was found, 1: contradictions, 2: it can't be read."""
    try:
        runs = read_results(directory)
    except ResultError as error:
        print(error, file=sys.stderr)
        return 2
    found = [contradictions_of(run) for run in runs]
    if as_json:
        _say(json.dumps(import_to_json(runs), indent=2))
    else:
        texts = ["\n".join(describe_import(*each)) for each in zip(runs, found, strict=True)]
        _say(showable("\n\n".join(texts), sys.stdout.encoding or "ascii"))
    return 1 if any(found) else 0


def _check_empty(directory: Path) -> None:
    if directory.exists() and any(directory.iterdir()):
        raise ResultError(f"{directory} is not empty; name a directory that is yet to be made")


def _export(path: str, directory: Path) -> int:
    """Exit 0: written, 1: the run is not sound, 2: it can't be read, told so or written."""
    problems: dict[str, list[str]] = {}
    run = _sound_run(path, problems, {}, ended=True)
    if run is None:
        for problem in problems[path]:
            print(f"{path}: {problem}", file=sys.stderr)
        return 1
    try:
        files = exported(run)
        _check_empty(directory)
        for name, data in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            write_json(directory / name, data)
    except (ResultError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    _say(f"{directory}: {len(files)} files of {run.run_id}, which is no MLPerf submission")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit 0: all sound (or shown), 1: contradictions were found, 2: wrong usage."""
    given = _parser().parse_args(arguments)
    if given.command == "mlperf":
        if given.action == "import":
            return _import(given.directory, as_json=given.json)
        return _export(given.run, given.directory)
    show = given.command == "show"
    problems: dict[str, list[str]] = {}
    compared: dict[str, int] = {}
    found_runs = [_sound_run(path, problems, compared, ended=not show) for path in given.run]
    runs = [run for run in found_runs if run is not None]
    if show:
        encoding = sys.stdout.encoding or "ascii"
        for run in runs:
            _say(_shown(run, encoding))
        if given.picture is not None and (fault := _draw(given.picture, runs)) is not None:
            problems[str(given.picture)] = [fault]
    for path, found in problems.items():
        for problem in found:
            print(f"{path}: {problem}", file=sys.stderr)
        if not found and not show:
            _say(f"{path}: sound, {_described(compared[path])}")
    return 1 if any(problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
