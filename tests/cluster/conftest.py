"""A cluster for a test, or the reason why there is none."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

import pytest_kvcache
from tests.cluster.cluster import Cluster, why_unavailable
from tests.cluster.faulttable import FaultTable
from tests.cluster.launchers import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
LIMIT_S = 300  # for a test that hangs; none takes long


class NewCluster(Protocol):
    """Makes a cluster that is closed at the end of the test."""

    def __call__(self, hosts: int = 2, **settings: object) -> Cluster: ...


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything in this directory needs a cluster, and has an end."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.cluster)
            if config.pluginmanager.hasplugin("timeout") and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def cluster_share(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """What every host sees of the machine, wherever it lies."""
    reason = why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    package = Path(pytest_kvcache.__file__).parents[1]
    prefixes = {Path(sys.base_prefix), Path(sys.prefix), package, HERE.parents[1]}
    prefixes |= {column.prefix for column in COLUMNS if column.prefix.is_dir()}
    return (*sorted(prefixes), tmp_path_factory.getbasetemp())


@pytest.fixture
def new_cluster(tmp_path: Path, cluster_share: tuple[Path, ...]) -> Iterator[NewCluster]:
    """Clusters of the test's own making; they see its directories, the checkout and Python."""
    with ExitStack() as stack:
        numbers = iter(range(100))

        def new(hosts: int = 2, **settings: object) -> Cluster:
            directory = tmp_path / f"cluster{next(numbers)}"
            values = {"share": cluster_share, **settings}
            return stack.enter_context(Cluster(directory, hosts, **values))  # type: ignore[arg-type]  # passed on as they are

        yield new


@pytest.fixture
def cluster(new_cluster: NewCluster) -> Cluster:
    """n0, from which to launch, n1 and n2; up in less than a second, so each test has its own."""
    return new_cluster()


@pytest.fixture(scope="session")
def fault_table() -> FaultTable:
    """Written to the file that ``KVCACHE_FAULT_NOTES`` names, if it does."""
    path = os.environ.get("KVCACHE_FAULT_NOTES")
    return FaultTable(Path(path) if path else None)
