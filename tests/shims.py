"""Small libraries that are preloaded into processes; not a test module."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

HEAD = "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n"
PREAD64 = """
ssize_t pread64(int f, void *b, size_t n, long at) { return syscall(SYS_pread64, f, b, n, at); }
"""
FSYNC = "int fsync(int f) { return 0; }\n"
CLOCK = """
int clock_gettime(clockid_t c, struct timespec *t) { return syscall(SYS_clock_gettime, c, t); }
"""
# What is elapsed since a clock's first reading, halved.
HALF_SPEED = """
static long long first[16];
int clock_gettime(clockid_t c, struct timespec *t) {
    int rc = syscall(SYS_clock_gettime, c, t);
    if (rc || !(c == 0 || c == 1 || c == 7)) return rc;
    long long ns = t->tv_sec * 1000000000LL + t->tv_nsec;
    if (!first[c]) first[c] = ns;
    ns = first[c] + (ns - first[c]) / 2;
    t->tv_sec = ns / 1000000000;
    t->tv_nsec = ns % 1000000000;
    return 0;
}
"""
SYSCALL = "long syscall(long n, ...) { return -1; }\n"
MALLOC = "#include <stdlib.h>\nvoid *valloc(size_t n) { return malloc(n); }\n"
# Wraps nothing by itself.
ASIDE = "int unwrapped(int f) { return syscall(SYS_fsync, f); }\n"


def library(directory: Path, source: str, name: str = "libshim.so") -> Path:
    """The library made of C source."""
    assert COMPILER is not None
    (directory / "shim.c").write_text(HEAD + source)
    made = directory / name
    options = ("-shared", "-fPIC", "-w", "-fno-builtin")
    subprocess.run([COMPILER, *options, "-o", made, directory / "shim.c"], check=True)
    return made
