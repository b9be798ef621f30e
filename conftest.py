"""The checkout's own configuration: benchmark options select the benchmark, nothing else.

``pytest`` runs the tests; ``pytest --kv-np 2`` runs the benchmark cases only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.fixture import OPTIONS_KEY
from pytest_kvcache.options.options import OPTIONS

if TYPE_CHECKING:
    from pytest_kvcache.options.options import Options

pytest_plugins = ["pytester"]

SUITE = Path(__file__).parent / "pytest_kvcache" / "suite"


def selects_benchmark(options: Options) -> bool:
    """Whether an option on the command line asks for the benchmark."""
    return any(
        spec.selects and options.origins.get(spec.name) == "command line" for spec in OPTIONS
    )


def names_no_path(config: pytest.Config) -> bool:
    """Whether the command line leaves the choice of tests to the configuration."""
    return config.args_source is not pytest.Config.ArgsSource.ARGS


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Benchmark options without a test path: collect the benchmark alone."""
    if config.option.help:
        return
    if names_no_path(config) and selects_benchmark(config.stash[OPTIONS_KEY]):
        config.args[:] = [str(SUITE)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Plain ``pytest`` runs the tests; the benchmark cases say why they are skipped."""
    if not names_no_path(config) or selects_benchmark(config.stash[OPTIONS_KEY]):
        return
    skip = pytest.mark.skip(reason="a benchmark; select it with an option such as --kv-np 2")
    for item in items:
        if item.path.is_relative_to(SUITE):
            item.add_marker(skip)
