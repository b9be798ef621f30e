"""What sites do to a launch: names of their own, batch systems, broken MPI settings."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.site import output

if TYPE_CHECKING:
    from pathlib import Path

    from tests.site import Site

pytestmark = pytest.mark.mpi

QUIET = ("--kv-metrics=read.gib_per_s", "--kv-allow-invalid")  # how fast it was is no question


def test_another_address_of_this_host_is_this_host_for_the_launcher_too(real_site: Site) -> None:
    result = real_site.real(*QUIET, "--kv-hosts=127.0.0.2")

    assert result.ret == pytest.ExitCode.OK, output(result)[-3000:]
    assert real_site.case()["hosts"] == ["127.0.0.2"]


def test_a_job_of_pbs_runs_on_the_host_where_pytest_is(
    real_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text(f"{socket.gethostname()}\n")
    monkeypatch.setenv("PBS_ENVIRONMENT", "PBS_BATCH")
    monkeypatch.setenv("PBS_JOBID", "7.head")
    monkeypatch.setenv("PBS_NODEFILE", str(nodes))

    result = real_site.real(*QUIET)

    assert result.ret == pytest.ExitCode.OK, output(result)[-3000:]


def test_what_open_mpi_says_of_a_component_that_is_not_there_is_the_reason(
    real_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_MCA_smsc", "no-such")

    result = real_site.real(*QUIET)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = output(result)
    assert "Framework: smsc, Component: no-such" in text
    assert "An error occurred in MPI_Init" not in text
