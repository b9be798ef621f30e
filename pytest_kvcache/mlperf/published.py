"""What a results directory of the MLPerf Storage KV cache benchmark holds, read as it stands.

A run's directory has a summary (``summary.json``; older versions of the benchmark wrote
``kvcache_run_summary_<datetime>.json``), a ``…metadata.json`` and, per rank,
``option_<O>/trial_<T>/rank_<R>/kvcache_results_<datetime>.json``. Each of them may be missing.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SUMMARY = "summary.json"
OLD_SUMMARIES = "kvcache_run_summary_*.json"
_RANK_FILE = re.compile(r"option_(\d+)/trial_(\d+)/rank_(\d+)/kvcache_results_[^/]*\.json")
_OPTION_DIR = "option_*"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFile:
    """One rank's result in one trial of an option."""

    path: str
    option: str
    trial: int
    rank: int
    data: Mapping[str, Any]

    def number(self, *path: str) -> float | None:
        """A figure of its summary, None where there is none."""
        return number_of(self.data, "summary", *path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How the ranks of one option were started: the words, and the options among them."""

    option: str
    words: tuple[str, ...]
    given: Mapping[str, str]

    def number(self, name: str) -> float | None:
        """The value of an option that is a number."""
        try:
            return float(self.given[name])
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One run of the benchmark, as its directory tells of it.

    ``summary_name`` None: there is no summary, and ``summary`` is empty; likewise
    ``metadata_name``. ``options`` are those of the summary, by their names.
    """

    path: Path
    summary_name: str | None
    summary: Mapping[str, Any]
    metadata_name: str | None
    metadata: Mapping[str, Any]
    rank_files: tuple[RankFile, ...]
    commands: tuple[Command, ...]

    @property
    def options(self) -> Mapping[str, Mapping[str, Any]]:
        """What the summary says of each option."""
        options: Mapping[str, Mapping[str, Any]] = self.summary.get("options", {})
        return options

    @property
    def option_names(self) -> list[str]:
        """Every option of which anything is there."""
        named = {*self.options, *(file.option for file in self.rank_files)}
        return sorted(named, key=lambda name: (len(name), name))

    def own_option(self, option: str) -> Mapping[str, Any]:
        """What the metadata of an export of ours says of an option; others have none of it."""
        options = self.metadata.get("options")
        told = options.get(option) if isinstance(options, dict) else None
        return told if isinstance(told, dict) else {}

    def files_of(self, option: str) -> list[RankFile]:
        """The ranks' results of an option."""
        return [file for file in self.rank_files if file.option == option]

    def commands_of(self, option: str) -> list[Command]:
        """The recorded commands of an option."""
        return [command for command in self.commands if command.option == option]


def number_of(data: Any, *path: str) -> float | None:
    """The number at this place of JSON, None if there is none."""
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    is_number = isinstance(data, (int, float)) and not isinstance(data, bool)
    return float(data) if is_number else None


def read_results(directory: Path) -> list[Published]:
    """Every run at or below a directory; ResultError if there is none, or it can't be read."""
    if not directory.is_dir():
        raise ResultError(f"{directory} is no directory; name one that holds {SUMMARY}")
    runs = [_read_run(path) for path in _run_directories(directory)]
    if not runs:
        raise ResultError(
            f"{directory} holds no result of the benchmark; there must be a {SUMMARY}, a"
            f" {OLD_SUMMARIES} or an {_OPTION_DIR} directory in it or below"
        )
    return runs


def _run_directories(directory: Path) -> list[Path]:
    """Directories of runs; of what lies in one of them, nothing is a run of its own."""
    found = {path.parent for path in directory.rglob(_OPTION_DIR) if path.is_dir()}
    found |= {path.parent for path in directory.rglob(OLD_SUMMARIES)}
    found |= {path.parent for path in directory.rglob(SUMMARY) if _is_of_kv_cache(path)}
    return sorted(found)


def _is_of_kv_cache(summary: Path) -> bool:
    """Whether a summary is of this benchmark: others of MLPerf Storage have one, too."""
    return isinstance(_read_json(summary).get("options"), dict)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ResultError(f"{path} holds a {type(data).__name__}; it must be an object")
    return data


def _read_run(directory: Path) -> Published:
    summary = _first(directory, SUMMARY) or _first(directory, OLD_SUMMARIES)
    metadata = _first(directory, "*metadata.json")
    about = {} if metadata is None else _read_json(metadata)
    told = {} if summary is None else _read_json(summary)
    options = told.get("options", {})
    if not isinstance(options, dict) or not all(isinstance(o, dict) for o in options.values()):
        raise ResultError(f"{summary}: options must be an object of objects")
    return Published(
        path=directory,
        summary_name=None if summary is None else summary.name,
        summary=told,
        metadata_name=None if metadata is None else metadata.name,
        metadata=about,
        rank_files=tuple(_rank_files(directory)),
        commands=tuple(_commands(about)),
    )


def _first(directory: Path, pattern: str) -> Path | None:
    """The newest by its name, which ends in a date."""
    return max(directory.glob(pattern), default=None)


def _rank_files(directory: Path) -> Iterator[RankFile]:
    for path in sorted(directory.glob("option_*/trial_*/rank_*/kvcache_results_*.json")):
        name = path.relative_to(directory).as_posix()
        match = _RANK_FILE.fullmatch(name)
        if match is not None:
            option, trial, rank = match.groups()
            yield RankFile(
                path=name, option=option, trial=int(trial), rank=int(rank), data=_read_json(path)
            )


def _commands(metadata: Mapping[str, Any]) -> Iterator[Command]:
    """The commands of the options, once each; a trial's is told from others by its directory."""
    recorded = metadata.get("command_output_files")
    texts = [entry.get("command") for entry in recorded or () if isinstance(entry, dict)]
    seen = set()
    for text in [*texts, metadata.get("executed_command")]:
        if not isinstance(text, str):
            continue
        try:
            words = tuple(shlex.split(text))
        except ValueError:
            words = tuple(text.split())
        given = {
            word.removeprefix("--"): value
            for word, value in pairwise((*words, ""))
            if word.startswith("--")
        }
        where = given.get("rank-output-base", given.get("base-output-dir", ""))
        match = re.search(r"option_(\d+)", where)
        command = Command(option=match[1] if match else "", words=words, given=given)
        if match is not None and words not in seen:
            seen.add(words)
            yield command
