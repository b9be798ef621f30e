"""An object store of a plugin, by real ranks: nothing in the package knows it, or its secret."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.masking import MASK
from tests.plugins.kvcache_test_objects import KEY_FILE, SEEN
from tests.site import output

if TYPE_CHECKING:
    from pathlib import Path

    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

SECRET = "hunter2-never-to-be-seen"
PLUGIN = ("--kv-plugin=kvcache_test_objects", "--kv-backend=toy", "--kv-cache-dir=/nowhere")


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server that lets in who knows the secret."""
    directory = tmp_path_factory.mktemp("server")
    (directory / KEY_FILE).write_text(SECRET, encoding="utf-8")
    return directory


def reported_by(server: Path, secret: str = SECRET) -> tuple[str, ...]:
    """What a user types for it."""
    return (*PLUGIN, "--kv-allow-invalid", f"--kv-backend-option=endpoint={server}",
            "--kv-backend-option", f"secret_key={secret}")  # fmt: skip


def written(site: Site) -> dict[str, bytes]:
    """Every file below the working directory: runs, logs, JUnit, pytest-benchmark's JSON."""
    return {str(path): path.read_bytes() for path in site.path.rglob("*") if path.is_file()}


def test_an_object_store_of_a_plugin_runs_and_leaves_nothing_behind(
    real_site: Site, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-o kv_backend_option=secret_key={SECRET}")
    result = real_site.real(
        *reported_by(server), "--kv-trials=2", "--junitxml=junit.xml", "--benchmark-json=bench.json"
    )
    assert result.ret == pytest.ExitCode.OK, output(result)
    case = real_site.case()
    assert case["plan"]["traits"]["unit"] == "object"
    assert case["plan"]["backend_options"] == {"endpoint": str(server), "secret_key": MASK}
    for trial in case["trials"]:
        assert trial["integrity"]["checked"] > 0
        assert trial["integrity"]["failed"] == 0
        assert "UNPROVEN" in {verdict["code"] for verdict in trial["verdicts"]}
        assert {rank["filesystem"] for rank in trial["ranks"]} == {None}
    stored = [path for path in server.rglob("*/rank-*/*") if path.is_file()]
    assert stored == []  # every rank has deleted its objects
    assert len([*server.rglob("rank-*")]) == 4  # of two ranks in two trials
    assert (real_site.path / "junit.xml").exists()
    assert (real_site.path / "bench.json").exists()


def test_the_secret_is_nowhere_but_where_it_is_needed(
    real_site: Site, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-o kv_backend_option=secret_key={SECRET}")
    result = real_site.real(
        *reported_by(server), "-v", "-l", "--junitxml=junit.xml", "--benchmark-json=bench.json"
    )
    assert result.ret == pytest.ExitCode.OK, output(result)
    assert SECRET not in output(result)
    assert f"secret_key={MASK}" in output(result)
    assert f"the key is {MASK}" in json.dumps(real_site.run())  # what a backend tells of it
    assert f"secret_key={MASK}" in real_site.run()["command"]
    files = written(real_site)
    assert any(name.endswith("plan.json") for name in files)
    assert [name for name, content in files.items() if SECRET.encode() in content] == []
    assert not any(name.endswith("secrets.json") for name in files)
    seen = [path.read_bytes() for path in server.glob(f"{SEEN}-*")]
    assert len(seen) == 2
    assert not any(SECRET.encode() in started for started in seen)


def test_a_secret_that_is_wrong_is_not_told_either(real_site: Site, server: Path) -> None:
    wrong = "a-wrong-key-that-is-as-secret"
    result = real_site.real(*reported_by(server, wrong), "--junitxml=junit.xml")
    assert result.ret == pytest.ExitCode.TESTS_FAILED, output(result)
    assert f"the server does not know the key '{MASK}'" in output(result)
    assert wrong not in output(result)
    assert [name for name, content in written(real_site).items() if wrong.encode() in content] == []


def test_a_bug_in_a_backend_does_not_tell_the_secret(
    real_site: Site, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_BUG", "1")
    result = real_site.real(*reported_by(server))
    assert result.ret == pytest.ExitCode.TESTS_FAILED, output(result)
    assert f"RuntimeError: a bug that tells {MASK}" in output(result)
    (log,) = real_site.path.glob("results/*/*/trial-1/mpirun.log")
    assert "Traceback" in log.read_text()
    assert [
        name for name, content in written(real_site).items() if SECRET.encode() in content
    ] == []


def test_a_dry_run_shows_the_settings_without_the_secret(real_site: Site, server: Path) -> None:
    result = real_site.real(*reported_by(server), "--kv-dry-run", "-v")
    assert result.ret == pytest.ExitCode.OK, output(result)
    assert SECRET not in output(result)
    result.stdout.fnmatch_lines([f"*backend_option *endpoint={server} secret_key={MASK} (command*"])
    assert "stores outside the hosts" in output(result)
