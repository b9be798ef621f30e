"""Another benchmark has the host: a run ends at once, or waits for it as long as it may."""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import PreflightError
from pytest_kvcache.hosts.lock import HostLock, Patience, is_taken
from tests.site import PYTEST, SUITE, output, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.site import Site


@pytest.fixture
def neighbour(site: Site) -> Iterator[HostLock]:
    """A benchmark of somebody else on the site's host."""
    del site
    lock = HostLock(socket.gethostname(), run_id="run-of-another")
    lock.acquire()
    yield lock
    lock.release()


def test_without_patience_a_run_beside_another_is_refused_and_told_of_the_option(
    site: Site, neighbour: HostLock
) -> None:
    del neighbour
    sentence = refusal(site.canned())

    assert sentence.startswith("a benchmark runs on host-")
    assert "run run-of-another" in sentence
    assert "--kv-wait=10m" in sentence
    assert site.launches() == []


def test_when_patience_is_over_the_neighbour_is_named(site: Site, neighbour: HostLock) -> None:
    del neighbour
    result = site.canned("--kv-wait=100ms")

    text = output(result)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "[kv] waiting, 0 of at most 0.1 s" in text
    assert "ERROR: a benchmark runs on host-" in text
    assert site.launches() == []


def test_a_run_that_waits_begins_when_the_other_has_ended(site: Site, neighbour: HostLock) -> None:
    args = (*PYTEST, *SUITE, *site.canned_args(), "--kv-wait=1h")
    with site.started(*args) as process:
        assert process.stdout is not None
        lines = list(itertools.takewhile(lambda line: "[kv] waiting, " not in line, process.stdout))
        assert site.launches() == []
        neighbour.release()
        rest = process.stdout.read()

    assert "run run-of-another" in " ".join("".join(lines).split())
    assert process.returncode == 0, rest
    assert "passed" in rest
    assert len(site.launches()) == 1


def test_a_dry_run_waits_for_nobody(site: Site, neighbour: HostLock) -> None:
    del neighbour
    assert site.canned("--kv-dry-run", "--kv-wait=1h").ret == pytest.ExitCode.OK


def test_patience_is_of_a_run_not_of_a_host(tmp_path: Path) -> None:
    reported: list[tuple[str, float, float]] = []
    patience = Patience(0.02, lambda *what: reported.append(what))
    with HostLock("n1", run_id="first", directories=[tmp_path]):
        second = HostLock("n1", run_id="second", directories=[tmp_path])
        for _ in range(2):
            with pytest.raises(PreflightError) as error:
                second.acquire_patiently(patience)
            assert is_taken(str(error.value))

    assert [limit_s for _problem, _waited_s, limit_s in reported] == [0.02]
    assert patience.waited_s >= 0.02


def test_the_lock_is_taken_as_soon_as_its_holder_has_gone(tmp_path: Path) -> None:
    holder = HostLock("n1", run_id="first", directories=[tmp_path])
    holder.acquire()
    patience = Patience(3600.0, lambda *_what: holder.release())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda _s: None)
        second = HostLock("n1", run_id="second", directories=[tmp_path])
        second.acquire_patiently(patience)

    assert second.holder()["run_id"] == "second"
    second.release()


def test_another_error_of_the_lock_is_not_waited_for(tmp_path: Path) -> None:
    def fail(*_what: object) -> None:
        raise AssertionError("there is nobody to wait for")

    with pytest.raises(PreflightError, match="can't be made in"):
        HostLock("n1", run_id="r", directories=[tmp_path / "absent"]).acquire_patiently(
            Patience(3600.0, fail)
        )
