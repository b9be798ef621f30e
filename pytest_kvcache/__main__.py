"""``python -m pytest_kvcache verify|show RUN``: a run file read without running anything."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_kvcache.errors import KVCacheError, ResultError
from pytest_kvcache.options import Options
from pytest_kvcache.report import report_run
from pytest_kvcache.results import RunResult
from pytest_kvcache.verify import verify_run


def _read(path: str) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} can't be read as a run file: {error}") from error
    if not isinstance(data, dict):
        raise ResultError(f"{path} is no run file; its JSON must be an object")
    return data


def main(arguments: list[str] | None = None) -> int:
    """Exit 0: sound (or shown), 1: contradictions were found, 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m pytest_kvcache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("verify", "check schema, sums over ranks, percentiles from histograms, plan"),
        ("show", "print the tables of a run"),
    ):
        commands.add_parser(name, help=text).add_argument("run", help="path of a run.json")
    given = parser.parse_args(arguments)
    try:
        data = _read(given.run)
        problems = verify_run(data)
        if given.command == "show" and not problems:
            with suppress(BrokenPipeError):  # `… show | head`
                print(report_run(RunResult.from_json(data), Options().metrics), flush=True)
            return 0
    except KVCacheError as error:
        problems = [str(error)]
    for problem in problems:
        print(f"{given.run}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{given.run}: sound")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
