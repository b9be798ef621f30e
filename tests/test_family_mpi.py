"""A launcher family of a plugin, by real ranks: one file beside the package, and nothing in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.kvcache_test_family import SCRIPT
from tests.site import output, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

PLUGIN = ("--kv-plugin=kvcache_test_family", "--kv-mpi-bin=toyrun")
KILLED = ("--kv-plugin=kvcache_test_backends", "--kv-backend=killed", "--kv-verify=full")


@pytest.fixture
def toyrun(real_site: Site, mpirun: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a toyrun of that version on PATH."""

    def write(version: str) -> None:
        program = real_site.path / "bin" / "toyrun"
        program.parent.mkdir(exist_ok=True)
        program.write_text(SCRIPT.format(version=version, mpirun=mpirun))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")
        monkeypatch.setenv("TMPDIR", str(real_site.path))

    return write


def test_a_launcher_of_a_plugin_starts_ranks(
    real_site: Site, toyrun: Callable[[str], None]
) -> None:
    toyrun("2.4")
    result = real_site.real(*PLUGIN)
    assert result.ret == pytest.ExitCode.OK, output(result)
    launcher = real_site.run()["environment"]["launcher"]
    assert launcher == f"{real_site.path}/bin/toyrun (2.4)"


def test_a_launcher_of_a_plugin_has_last_words_and_its_leftovers_are_removed(
    real_site: Site, toyrun: Callable[[str], None]
) -> None:
    toyrun("2.4")
    result = real_site.real(*PLUGIN, *KILLED, "--kv-allow-invalid")
    assert result.ret == pytest.ExitCode.TESTS_FAILED, output(result)
    assert "rank 1 (pid " in output(result)
    assert "went away" in output(result)
    assert not (real_site.path / "toyrun.left").exists()


def test_a_launcher_of_a_plugin_that_is_too_old_is_refused(
    real_site: Site, toyrun: Callable[[str], None]
) -> None:
    toyrun("1.9")
    result = real_site.real(*PLUGIN)
    assert result.ret == pytest.ExitCode.USAGE_ERROR, output(result)
    assert "toyrun 1.9; its version must be at least 2" in refusal(result)
