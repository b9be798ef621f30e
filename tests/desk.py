"""A session's benchmark without a session of pytest: options, cases, plans, the checks.

Not a test module. The same steps as in ``plugin.py``, in the same order. Launches are of
canned ranks.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import OptionError, PreflightError
from pytest_kvcache.launch.runner import Progress
from pytest_kvcache.options.options import OPTIONS, build_options
from pytest_kvcache.report.datasize import datasize_report
from pytest_kvcache.session import BenchmarkSession
from tests.site import CANNED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_kvcache.options.options import Origin
    from pytest_kvcache.results.case import CaseResult

Given = dict[str, tuple[str | list[str], "Origin"]]


def typed(words: Sequence[str]) -> Given:
    """What a command line gives; each word is ``--kv-name=value`` or ``--kv-flag``."""
    specs = {spec.flag: spec for spec in OPTIONS}
    given: Given = {}
    for word in words:
        flag, _, text = word.partition("=")
        spec = specs[flag]
        if spec.kind == "repeat":
            earlier, _origin = given.get(spec.name, ([], "command line"))
            given[spec.name] = ([*earlier, text], "command line")
        elif spec.kind == "hosts":
            given[spec.name] = (text.split(), "command line")
        else:
            given[spec.name] = ("true" if spec.kind == "flag" else text, "command line")
    return given


class Desk:
    """A working directory, and what a session there would say before it launches anything."""

    def __init__(self, path: Path, python: str) -> None:
        self.path = path
        self._canned = (*CANNED, f"--kv-python={python}")
        self.cache_dir = path / "cache"
        self.cache_dir.mkdir()

    @contextmanager
    def benchmark_session(
        self, *words: str, ini: Mapping[str, str] | None = None, without: Collection[str] = ()
    ) -> Iterator[BenchmarkSession]:
        """What a session with these options has, one trial of canned ranks unless told."""
        usual = [word for word in self._canned if word.partition("=")[0] not in without]
        given: Given = {name: (text, "ini") for name, text in (ini or {}).items()}
        benchmark_session = BenchmarkSession(
            build_options({**given, **typed([*usual, *words])}),
            command=(),
            progress=Progress(),
            modify_plan=lambda plan: plan,
            max_trials=None,
        )
        try:
            yield benchmark_session
        finally:
            benchmark_session.controller.close()

    def accept(
        self, *words: str, ini: Mapping[str, str] | None = None, without: Collection[str] = ()
    ) -> None:
        """Plan and check every case, as far as the first launch."""
        with self.benchmark_session(*words, ini=ini, without=without) as benchmark_session:
            benchmark_session.check(benchmark_session.names)

    def run(self, *words: str) -> list[CaseResult]:
        """Check every case, and run one after the other."""
        with self.benchmark_session(*words) as benchmark_session:
            benchmark_session.check(benchmark_session.names)
            return [benchmark_session.run(name) for name in benchmark_session.names]

    def run_file(self) -> Path:
        """The only one."""
        (path,) = self.path.glob("results/*/run.json")
        return path

    def launches(self) -> list[Path]:
        """The directory of every launch that was begun."""
        return sorted(path.parent for path in self.path.glob("results/*/*/trial-*/plan.json"))

    def refusal(
        self, *words: str, ini: Mapping[str, str] | None = None, without: Collection[str] = ()
    ) -> str:
        """The sentence by which a session would end with exit code 4, having made nothing."""
        with pytest.raises((OptionError, PreflightError)) as refused:
            self.accept(*words, ini=ini, without=without)
        assert not (self.path / "results").exists()
        return _sentence(refused.value)


def datasize_refusal(*words: str) -> str:
    """The sentence by which the calculation of sizes is refused."""
    with pytest.raises(OptionError) as refused:
        datasize_report(build_options(typed(["--kv-datasize", *words])))
    return _sentence(refused.value)


def _sentence(error: Exception) -> str:
    text = str(error)
    assert "\n" not in text
    return text
