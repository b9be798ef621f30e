"""Whether this machine's kernel grants io_uring and libaio: set up by their system calls.

Imports neither pytest nor MPI. See io_uring_setup(2) and io_setup(2); ctypes releases the GIL
while the kernel works, so that another thread can look at what this one waits for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Literal, Protocol

KernelEngine = Literal["io_uring", "libaio"]
KERNEL_ENGINES: tuple[KernelEngine, ...] = ("io_uring", "libaio")

IO_URING_SETUP = 425  # the same on every machine
# io_setup, io_destroy, io_submit, io_getevents: the younger machines share theirs.
_AIO_NUMBERS = {
    "x86_64": (206, 207, 209, 208),
    **dict.fromkeys(("aarch64", "riscv64", "loongarch64"), (0, 1, 2, 4)),
}
_PARAMS = struct.Struct("=30I")
_FEATURES = 5
_SINGLE_MMAP, _NODROP, _EXT_ARG = 1 << 0, 1 << 1, 1 << 8
_FIXES = {
    ("io_uring", errno.EPERM): (
        "the sysctl kernel.io_uring_disabled must be 0 (or 1, for root and members of"
        " kernel.io_uring_group), and a container's seccomp profile must allow io_uring_setup"
    ),
    ("io_uring", errno.ENOSYS): (
        "Linux 5.11 or later is needed, and a container's seccomp profile must allow io_uring_setup"
    ),
    ("io_uring", errno.ENOMEM): "raise the limit of locked memory (ulimit -l)",
    ("io_uring", errno.EMFILE): "raise the limit of open files (ulimit -n)",
    ("io_uring", errno.EINVAL): "lower --kv-queue-depth",
    ("libaio", errno.EAGAIN): "raise the sysctl fs.aio-max-nr, or lower --kv-queue-depth",
    ("libaio", errno.EPERM): "a container's seccomp profile must allow io_setup",
    ("libaio", errno.ENOSYS): (
        "a kernel with CONFIG_AIO is needed, on x86_64 or aarch64, and a container's seccomp"
        " profile must allow io_setup"
    ),
}

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] * 7


class SystemCall(Protocol):
    """A system call by its number: what the kernel answers, a negative errno for an error."""

    def __call__(  # noqa: PLR0917 - as the kernel
        self, number: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0,
        /,
    ) -> int:  # fmt: skip
        """Call the kernel; addresses are passed as integers."""
        ...


def system_call(  # noqa: PLR0917 - as the kernel
    number: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0, /
) -> int:
    """Call the kernel of this machine."""
    answer: int = _syscall(number, a, b, c, d, e, f)
    return answer if answer >= 0 else -ctypes.get_errno()


def refused(what: str, answer: int) -> OSError:
    """The error of a system call that answered a negative errno; ``what`` begins its text."""
    return OSError(-answer, f"{what}: {os.strerror(-answer)}")


def set_up_uring(entries: int, call: SystemCall = system_call) -> tuple[int, tuple[int, ...]]:
    """A ring's descriptor and the 30 words of its struct io_uring_params; OSError if refused.

    Without flags: measured, SINGLE_ISSUER and DEFER_TASKRUN cost more than they save, and
    need a younger kernel.
    """
    params = ctypes.create_string_buffer(_PARAMS.size)
    fd = call(IO_URING_SETUP, entries, ctypes.addressof(params))
    if fd < 0:
        raise refused("io_uring_setup", fd)
    words = _PARAMS.unpack(params.raw)
    if (_SINGLE_MMAP | _NODROP | _EXT_ARG) & ~words[_FEATURES]:
        os.close(fd)
        raise OSError(errno.ENOSYS, "io_uring_setup: this kernel's io_uring has no time-outs")
    return fd, words


def aio_numbers(machine: str | None = None) -> tuple[int, int, int, int]:
    """io_setup, io_destroy, io_submit and io_getevents on this machine; OSError if not known."""
    machine = machine or platform.machine()
    known = _AIO_NUMBERS.get(machine)
    if known is None:
        raise OSError(errno.ENOSYS, f"io_setup: its number on a {machine} is not known here")
    return known


def set_up_aio(depth: int, call: SystemCall = system_call) -> int:
    """A context for so many calls in flight; OSError if refused."""
    handle = ctypes.c_uint64(0)
    answer = call(aio_numbers()[0], depth, ctypes.addressof(handle))
    if answer < 0:
        raise refused("io_setup", answer)
    return handle.value


def ordered_memory(machine: str | None = None) -> bool:
    """Whether the processor keeps the order that a ring read without barriers needs.

    x86 keeps loads among loads, and stores among stores; elsewhere nothing is proven.
    """
    return (machine or platform.machine()) in ("x86_64", "AMD64")


def refusal(engine: KernelEngine, depth: int, call: SystemCall = system_call) -> str | None:
    """Why an engine can't be had here, and what would make it work; None: it can."""
    try:
        if engine == "io_uring":
            fd, _ = set_up_uring(depth, call)
            os.close(fd)
        else:
            call(aio_numbers()[1], set_up_aio(depth, call))
    except OSError as error:
        return explained(engine, error)
    if engine == "io_uring" and not ordered_memory():
        return f"its rings are not proven right on a {platform.machine()}; take libaio or threads"
    return None


def explained(engine: KernelEngine, error: OSError) -> str:
    """What the kernel said, with the fix where there is one."""
    fix = _FIXES.get((engine, error.errno or 0))
    return f"{error.strerror}" if fix is None else f"{error.strerror}; {fix}"
