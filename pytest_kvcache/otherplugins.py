"""Other plugins beside the benchmark: what they write is checked before hours are spent.

They open their files when everything is over; a directory that is not there would then
cost the session's end. Imports none of them.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

# Where a file goes: option's name → whether its directory is made by the plugin itself.
_FILES = {
    "benchmark_json": False,
    "benchmark_histogram": True,
    "benchmark_cprofile_dump": True,
    "xmlpath": True,
    "json_report_file": False,
    "report_log": True,
    "htmlpath": True,
}
_FLAGS = {
    "xmlpath": "--junit-xml",
    "htmlpath": "--html",
}
_FILE_URI = "file://"


def is_recorded(config: pytest.Config) -> bool:
    """Whether pytest-benchmark is there: not switched off, nor pushed out by another plugin."""
    plugins = config.pluginmanager.get_plugins()
    return any(getattr(plugin, "__name__", "") == "pytest_benchmark.plugin" for plugin in plugins)


def check_place(config: pytest.Config) -> None:
    """OptionError where another plugin has pushed pytest-benchmark out, and handles its tests.

    It would time, repeat or deselect what is a launch of ranks.
    """
    if config.pluginmanager.is_blocked("pytest-benchmark"):
        raise OptionError(
            "another plugin has taken pytest-benchmark's place (as pytest-codspeed does with"
            " --codspeed) and would run benchmarks in its own way; run the storage benchmark"
            " without that option"
        )


def check_outputs(config: pytest.Config) -> None:
    """OptionError, naming option and directory, for what could not be written at the end."""
    for name, path, makes in _outputs(config):
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        problem = _problem(path, makes=makes)
        if problem is not None:
            raise OptionError(f"{flag} is {path}; {problem}")
    if not is_recorded(config):
        return
    if config.getoption("benchmark_compare_fail", default=None) and not config.getoption(
        "benchmark_compare", default=None
    ):
        raise OptionError(
            "--benchmark-compare-fail is given without --benchmark-compare, so it has nothing to"
            " compare with and could never fail; name an earlier run (--benchmark-compare=0001),"
            " or leave it out"
        )
    if config.getoption("benchmark_histogram", default=None):
        lacking = [name for name in ("pygal", "pygaljs") if importlib.util.find_spec(name) is None]
        if lacking:
            raise OptionError(
                f"--benchmark-histogram draws with {lacking[0]}, which is not installed;"
                " pip install 'pytest-benchmark[histogram]'"
            )


def check_comparison(config: pytest.Config, compared: Sequence[Mapping[str, Any]]) -> None:
    """OptionError for a run that ``--benchmark-compare`` names and has not found."""
    asked = config.getoption("benchmark_compare", default=None)
    if is_recorded(config) and isinstance(asked, str) and not compared:
        raise OptionError(  # without a value it is what a first run may have
            f"--benchmark-compare is {asked!r}; --benchmark-storage"
            f" ({config.getoption('benchmark_storage', default=None)}) has no such run, so name"
            " one that is there, or leave the option out"
        )


class StockGate:
    """``--benchmark-compare-fail`` on our entries, judged by an item like every other gate.

    pytest-benchmark judges when all reports are made, and raises: there is no failed test,
    no count and no line in JUnit. So the limits that it was given, which only have to say
    whether they are exceeded, are asked here, and say nothing to itself of our entries; to
    other benchmarks of the session they say what they always say.
    """

    def __init__(self, limits: list[Any], compared: Sequence[Mapping[str, Any]]) -> None:
        self._limits = tuple(limits)
        self._compared = compared
        self._ours: set[str] = set()
        self.judged: dict[str, list[str]] = {}
        """Entry → a line for each limit that it exceeds, for all that the earlier run has too."""
        limits[:] = [_ForOthers(limit, self._ours) for limit in limits]

    def judge(self, name: str, stats: Any) -> None:
        """Take over the entry of that name."""
        self._ours.add(name)
        for data in self._compared:
            for entry in data["benchmarks"]:
                if entry["fullname"] == name:
                    before = {**entry, **entry["stats"]}
                    failed = (limit.fails(stats, before) for limit in self._limits)
                    lines = [f"{entry['name']}: {text}" for text in failed if text]
                    found = self.judged.setdefault(name, [])
                    found += [line for line in lines if line not in found]

    def broken(self) -> list[str]:
        """A line for each limit that an entry exceeds."""
        return [line for lines in self.judged.values() for line in lines]


class _ForOthers:
    """A limit of pytest-benchmark that knows nothing of our entries."""

    def __init__(self, limit: Any, ours: Collection[str]) -> None:
        self._limit = limit
        self._ours = ours

    def fails(self, current: Any, compared: Any) -> str | None:
        """Why the limit is exceeded, asked as pytest-benchmark asks."""
        if compared["fullname"] in self._ours:
            return None
        failed: str | None = self._limit.fails(current, compared)
        return failed


def _outputs(config: pytest.Config) -> Iterator[tuple[str, Path, bool]]:
    for name, makes in _FILES.items():
        value = config.getoption(name, default=None)
        value = value[0] if isinstance(value, list) and value else value
        path = value if isinstance(value, (str, os.PathLike)) else getattr(value, "name", None)
        if path:
            yield name, Path(path), makes
    saves = any(config.getoption(f"benchmark_{how}", default=None) for how in ("save", "autosave"))
    storage = config.getoption("benchmark_storage", default=None)
    if saves and isinstance(storage, str) and (storage.startswith(_FILE_URI) or ":" not in storage):
        yield "benchmark_storage", Path(storage.removeprefix(_FILE_URI), "a run"), True


def _problem(path: Path, *, makes: bool) -> str | None:
    """Why no file can be put there; None: it can, for all one can see now."""
    if path.is_dir() and not makes:
        return "it is a directory; give it the name of a file"
    directory = path.expanduser().absolute().parent
    if makes:
        directory = next(p for p in (directory, *directory.parents) if os.path.lexists(p))
    if not directory.is_dir():
        what = "is no directory" if directory.exists() else "does not exist"
        return f"its directory {directory} {what}, so make it or name another"
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return f"its directory {directory} is mounted read-only, so name another"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"its directory {directory} is not writable, so mend its mode or name another"
    return None


def give_time(config: pytest.Config, item: pytest.Item, limit_s: float) -> None:
    """A project's limit per test is not made for a benchmark; a typed one is meant for it."""
    if not config.pluginmanager.has_plugin("timeout") or item.get_closest_marker("timeout"):
        return
    words = [str(word) for word in config.invocation_params.args]
    if any(word.partition("=")[0] == "--timeout" for word in words):
        return
    item.add_marker(pytest.mark.timeout(limit_s))
