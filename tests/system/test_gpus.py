from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvcache.system import gpus
from pytest_kvcache.system.gpus import device_count, find_devices


def answering(stdout: str = "", stderr: str = "", error: Exception | None = None) -> Any:
    def run(argv: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        if error is not None:
            raise error
        return subprocess.CompletedProcess(argv, 0, stdout, stderr)

    return run


def test_the_last_line_of_the_child_counts_whatever_libraries_print_before_it() -> None:
    run = answering('torch says hello\n{"torch": 2, "cupy": "No module named \'cupy\'"}\n')
    assert find_devices("/py", run=run) == {"torch": 2, "cupy": "No module named 'cupy'"}


@pytest.mark.parametrize(
    ("run", "reported"),
    [
        (answering(stderr="Traceback\nModuleNotFoundError: pytest_kvcache"), "/py says: ModuleNot"),
        (answering('{"torch": 1}', "odd"), "/py says: odd"),
        (answering("7", "odd"), "/py says: odd"),
        (answering(error=OSError("no such file")), "/py can't be started: no such file"),
        (answering(error=subprocess.TimeoutExpired("/py", 60)), "gave no answer in 60 s"),
    ],
)
def test_an_interpreter_that_can_not_tell_has_no_gpu(run: Any, reported: str) -> None:
    for reason in find_devices("/py", run=run).values():
        assert reported in str(reason)


def test_a_real_interpreter_answers_for_both_libraries() -> None:
    found = find_devices(sys.executable)
    assert list(found) == ["torch", "cupy"]
    assert not any("says" in str(answer) for answer in found.values())


def test_libraries_are_asked_for_their_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(getDeviceCount=lambda: 3)
    cuda = SimpleNamespace(device_count=lambda: 2, runtime=runtime)
    for name, count in (("torch", 2), ("cupy", 3)):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(cuda=cuda))
        assert device_count(name) == gpus._told(name) == count
        monkeypatch.setitem(sys.modules, name, None)
        assert name in str(gpus._told(name))


def test_a_driver_that_is_not_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver\nand more")

    cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=fail))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    assert gpus._told("cupy") == "cudaErrorInsufficientDriver"
