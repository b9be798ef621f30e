"""What is preloaded, and where calls really lead; with small libraries of our own."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import PreflightError
from pytest_kvcache.system import preloads
from pytest_kvcache.system.preloads import (
    Preload,
    Preloads,
    Wrapper,
    check_preloads,
    find_preloads,
    inherited_preloads,
    offence,
)
from tests.shims import ASIDE, CLOCK, FSYNC, MALLOC, PREAD64, SYSCALL, library, needs_compiler

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

TELL = (
    "import json; from pytest_kvcache.system.preloads import find_preloads, inherited_preloads;"
    " from dataclasses import asdict;"
    " print(json.dumps([asdict(find_preloads()), asdict(inherited_preloads())]))"
)


def reported(program: str = TELL, **environment: str) -> list[dict[str, Any]]:
    """What a process of this environment finds: about itself, and about what it passes on."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


# --- where calls lead -----------------------------------------------------------------------


def test_this_interpreter_calls_the_c_library_itself() -> None:
    assert find_preloads().wrappers == ()


def test_a_c_library_apart_from_the_dynamic_linker_is_no_offence(tmp_path: Path) -> None:
    # As in an image that was put together from single files.
    at = ctypes.cast(ctypes.CDLL(None).write, ctypes.c_void_p).value
    assert at is not None
    own = preloads._Objects().object_at(at)
    shutil.copy(own, tmp_path)
    (found, _passed_on) = reported(LD_LIBRARY_PATH=str(tmp_path))
    assert found["wrappers"] == []


@pytest.mark.thorough
@needs_compiler
@pytest.mark.parametrize(
    ("source", "functions"),
    [
        (PREAD64, ["pread64"]),
        (FSYNC, ["fsync"]),
        (CLOCK, ["clock_gettime"]),
        (SYSCALL, ["syscall"]),
        (FSYNC + CLOCK, ["clock_gettime", "fsync"]),
    ],
    ids=["reads", "syncs", "clocks", "bare system calls", "both"],
)
def test_a_library_that_wraps_io_or_clocks_is_found(
    tmp_path: Path, source: str, functions: list[str]
) -> None:
    path = str(library(tmp_path, source))
    own, passed_on = reported(LD_PRELOAD=path)
    assert own["wrappers"] == [{"library": path, "functions": functions}]
    assert own["preloaded"] == [{"name": path, "source": "LD_PRELOAD", "path": path}]
    assert passed_on == own


@needs_compiler
def test_an_allocator_is_no_offence_but_is_recorded(tmp_path: Path) -> None:
    path = str(library(tmp_path, MALLOC))
    own, passed_on = reported(LD_PRELOAD=path)
    assert own["wrappers"] == passed_on["wrappers"] == []
    assert [preload["path"] for preload in own["preloaded"]] == [path]


@needs_compiler
def test_a_library_that_calls_itself_the_c_library_is_found(tmp_path: Path) -> None:
    path = str(library(tmp_path, FSYNC, "libm.so.6"))
    own, _passed_on = reported(LD_PRELOAD=path)
    assert own["wrappers"] == [{"library": path, "functions": ["fsync"]}]


@needs_compiler
def test_a_library_that_hides_its_trace_in_the_environment_is_recorded(tmp_path: Path) -> None:
    hides = '#include <stdlib.h>\n__attribute__((constructor)) void h() { unsetenv("LD_PRELOAD"); }'
    path = str(library(tmp_path, FSYNC + hides))
    own, _passed_on = reported(LD_PRELOAD=path)
    assert [preload["source"] for preload in own["preloaded"]] == ["LD_PRELOAD"]
    assert [wrapper["functions"] for wrapper in own["wrappers"]] == [["fsync"]]


def test_what_was_asked_for_and_is_not_there_has_no_path() -> None:
    own, _passed_on = reported(LD_PRELOAD="/no/such/lib.so other.so")
    assert own["preloaded"] == [
        {"name": name, "source": "LD_PRELOAD", "path": None}
        for name in ("/no/such/lib.so", "other.so")
    ]
    assert own["wrappers"] == []


CHANGED = """
import ctypes, mmap, os, sys
page = mmap.PAGESIZE
libc = ctypes.CDLL(None)
address = ctypes.cast(libc.fdatasync, ctypes.c_void_p).value
begin = address & -page
assert libc.mprotect(ctypes.c_void_p(begin), 2 * page, 7) == 0
ctypes.memmove(address, bytes([0x31, 0xC0, 0xC3]), 3)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="writes code of x86-64")
def test_a_function_whose_code_was_changed_is_found() -> None:
    own, passed_on = reported(CHANGED + TELL)
    (wrapper,) = own["wrappers"]
    assert wrapper["library"].endswith(", changed in memory")
    assert "fdatasync" in wrapper["functions"]
    assert passed_on["wrappers"] == []


REDIRECTED = """
import ctypes, sys
from pytest_kvcache.system import preloads
shim = ctypes.CDLL(sys.argv[1])
target = ctypes.cast(shim.unwrapped, ctypes.c_void_p).value
objects = preloads._Objects()
base, section = next(o for o in objects.dynamic if objects.object_at(o[1]).endswith("libother.so"))
tags = dict(preloads._tags(section))
raw = ctypes.string_at(tags[preloads._DT_JMPREL], tags[preloads._DT_PLTRELSZ])
slots = [base + offset for offset, _info, _addend in preloads._RELA.iter_unpack(raw)]
for slot in slots:
    if objects.object_at(ctypes.c_uint64.from_address(slot).value).endswith("libc.so.6"):
        ctypes.c_uint64.from_address(slot).value = target
"""


@needs_compiler
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="looks for a slot of x86-64")
def test_a_slot_that_was_redirected_is_found(tmp_path: Path) -> None:
    """As tools do that change the calls of objects one by one; the linker's answer stays."""
    shim = library(tmp_path, ASIDE)
    other = library(tmp_path, "int use(int f) { return fsync(f); }", "libother.so")
    program = (
        f"import sys, ctypes; sys.argv = ['', {str(shim)!r}];"
        f" ctypes.CDLL({str(other)!r}).use(-1)\n{REDIRECTED}{TELL}"
    )
    own, _passed_on = reported(program)
    assert own["wrappers"] == [{"library": str(shim), "functions": ["fsync"]}]


def test_a_python_function_in_place_of_the_interpreter_s_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = time.monotonic_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: real() // 2)
    assert find_preloads().wrappers == (
        Wrapper(library=f"Python module {__name__}", functions=("time.monotonic_ns",)),
    )
    assert inherited_preloads().wrappers == ()  # ranks are other processes


@pytest.mark.parametrize(
    ("module", "name", "other", "library"),
    [
        (os, "fsync", os.fstat, "Python's posix.fstat"),
        (os, "fdatasync", os.fsync, "Python's posix.fsync"),
        (time, "monotonic_ns", time.time_ns, "Python's time.time_ns"),
        (os, "close", io.BytesIO().close, "Python's BytesIO.close"),
    ],
)
def test_another_function_of_the_interpreter_in_place_of_one_is_found(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, other: object, library: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, other)
        found = find_preloads().wrappers
    assert found == (Wrapper(library=library, functions=(f"{module.__name__}.{name}",)),)


def test_a_sitecustomize_that_makes_syncs_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.fdatasync = os.fsync = os.fstat\n")
    own, passed_on = reported(PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    (first, second) = own["wrappers"]
    assert (first["functions"], second["functions"]) == (["os.fsync"], ["os.fdatasync"])
    assert first["library"] == second["library"] == "Python's posix.fstat"
    assert passed_on["wrappers"] == []


def test_libraries_of_every_process_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = tmp_path / "ld.so.preload"
    everywhere.write_text("/opt/a.so # why\n/opt/b.so:/opt/c.so\n")
    monkeypatch.setattr(preloads, "_EVERY_PROCESS", str(everywhere))
    asked = [(preload.name, preload.source) for preload in find_preloads().preloaded]
    assert asked[-3:] == [(f"/opt/{name}.so", str(everywhere)) for name in "abc"]


# --- in words -------------------------------------------------------------------------------

EATMYDATA = Preload(name="libeatmydata.so", source="LD_PRELOAD", path="/lib/libeatmydata.so.1")
WRAPS = Wrapper(library="/lib/libeatmydata.so.1", functions=("a", "b", "c", "d", "e", "f", "g"))


def test_a_preload_without_a_wrapper_is_no_offence() -> None:
    check_preloads(Preloads(preloaded=(EATMYDATA,), wrappers=()))
    check_preloads(Preloads(preloaded=(), wrappers=None))


def test_an_offence_names_library_place_functions_and_the_way_on() -> None:
    with pytest.raises(PreflightError) as refused:
        check_preloads(Preloads(preloaded=(EATMYDATA,), wrappers=(WRAPS,)))
    assert "libeatmydata.so.1 (LD_PRELOAD), which wraps a, b, c, d, e and 2 more" in str(
        refused.value
    )
    assert "--kv-allow-preload" in str(refused.value)


def test_what_can_not_be_looked_at_is_an_offence_if_something_is_preloaded() -> None:
    text = offence(Preloads(preloaded=(EATMYDATA,), wrappers=None))
    assert text == "libeatmydata.so (LD_PRELOAD), of which can't be told what it wraps"
