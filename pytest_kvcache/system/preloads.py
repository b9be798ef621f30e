"""What was put between this process and its C library: preloaded libraries, changed calls.

A library named in LD_PRELOAD, LD_AUDIT or /etc/ld.so.preload may do anything: an allocator
leaves I/O and clocks alone, eatmydata turns syncs into nothing, libfaketime scales the
clocks. So names decide nothing: for every function that I/O and clocks go through it is
found out where a call of it leads, by what the dynamic linker answers, by the slots
through which the loaded objects call, and by whether the function's code is still that of
its file. What acts in the kernel (ptrace, seccomp, eBPF) can't be seen from here. Reads
/proc and this process's own memory; imports neither pytest nor MPI.
"""

from __future__ import annotations

import bisect
import ctypes
import os
import platform
import re
import struct
import time
import types
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import PreflightError

if TYPE_CHECKING:
    from collections.abc import Iterator

# By their plain names and those that programs built for large files or with checks import.
_IO = (
    "open", "open64", "openat", "openat64", "creat", "creat64", "__open_2", "__open64_2",
    "__openat_2", "__openat64_2", "close",
    "read", "__read_chk", "pread", "pread64", "__pread_chk", "__pread64_chk", "readv", "preadv",
    "preadv64", "preadv2", "preadv64v2",
    "write", "pwrite", "pwrite64", "writev", "pwritev", "pwritev64", "pwritev2", "pwritev64v2",
    "sync", "syncfs", "fsync", "fdatasync", "sync_file_range", "msync",
    "unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat",
    "ftruncate", "ftruncate64", "fallocate", "fallocate64", "posix_fallocate",
    "posix_fallocate64", "posix_fadvise", "posix_fadvise64", "fcntl", "fcntl64", "ioctl",
    "sendfile", "sendfile64", "copy_file_range", "splice", "syscall",
)  # fmt: skip
_CLOCKS = ("clock_gettime", "gettimeofday", "time", "nanosleep", "clock_nanosleep", "usleep")
_FUNCTIONS = (*_IO, *_CLOCKS)
# What Python code may have put itself in the place of (a sitecustomize, a plugin).
# Module, the one in which the interpreter makes these functions, and their names.
_OF_PYTHON: tuple[tuple[types.ModuleType, str, tuple[str, ...]], ...] = (
    (os, "posix", (
        "open", "close", "pread", "preadv", "pwrite", "pwritev", "fsync", "fdatasync", "ftruncate",
        "unlink", "posix_fadvise", "posix_fallocate",
    )),
    (time, "time", ("monotonic", "monotonic_ns", "clock_gettime", "clock_gettime_ns", "sleep")),
)  # fmt: skip
_VARIABLES = ("LD_PRELOAD", "LD_AUDIT")
_EVERY_PROCESS = "/etc/ld.so.preload"
_C_LIBRARY = re.compile(
    r"(lib(c|m|rt|dl|pthread)|ld)(-\d[\d.]*)?\.so(\.\d+)?|ld-(linux|musl)[\w-]*\.so(\.\d+)?"
    r"|libc\.musl-[\w-]+\.so(\.\d+)?|ld64\.so\.\d+"
)
_KERNEL_S_OWN = ("[vdso]", "[vsyscall]")
_ANONYMOUS = "memory of no file"
# Of elf.h: segments, tags of the dynamic section, relocations of a slot by machine.
_PT_DYNAMIC, _PT_INTERP = 2, 3
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_STRSZ, _DT_JMPREL = (
    2, 5, 6, 7, 8, 10, 23,
)  # fmt: skip
_SLOT_TYPES = {"x86_64": (1, 6, 7), "aarch64": (257, 1025, 1026)}
_RELA, _DYNAMIC, _SYMBOL_BYTES = struct.Struct("<QQq"), struct.Struct("<QQ"), 24
_LONGEST_CODE_BYTES = 512
_SHOWN = 5  # of a list in a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Preload:
    """A library that was asked for: by its name, where, and as what file it is here.

    ``path`` None: it is not in this process, whatever was asked.
    """

    name: str
    source: str
    path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """What stands in for functions of the C library: its file, and which functions."""

    library: str
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preloads:
    """What was found in this process; ``wrappers`` None: calls can't be followed here."""

    preloaded: tuple[Preload, ...]
    wrappers: tuple[Wrapper, ...] | None


def find_preloads() -> Preloads:
    """Look for preloads in this process."""
    try:
        objects = _Objects()
        wrappers = (*_wrappers(objects), *_in_python())
    # Linked without a dynamic linker, or where no memory may be made executable (ctypes).
    except (OSError, AttributeError, MemoryError):
        return Preloads(preloaded=tuple(_asked(())), wrappers=None)
    return Preloads(preloaded=tuple(_asked(objects.names)), wrappers=wrappers)


def inherited_preloads() -> Preloads:
    """What processes that are started from here will have as well: of what was asked for only.

    What else has changed this process (another plugin of pytest) is not passed on.
    """
    if not any(_asked(())):
        return Preloads(preloaded=(), wrappers=())
    found = find_preloads()
    paths = {preload.path for preload in found.preloaded}
    wrappers = found.wrappers
    if wrappers is not None:
        wrappers = tuple(wrapper for wrapper in wrappers if wrapper.library in paths)
    return Preloads(preloaded=found.preloaded, wrappers=wrappers)


def offence(preloads: Preloads) -> str | None:
    """What I/O or clocks go through, in words; None: nothing that can be seen from here.

    A library that leaves them alone is none; one that can't be looked at is.
    """
    if preloads.wrappers is None:
        named = [f"{preload.name} ({preload.source})" for preload in preloads.preloaded]
        return f"{_listed(named)}, of which can't be told what it wraps" if named else None
    return (
        _listed([_described(wrapper, preloads.preloaded) for wrapper in preloads.wrappers]) or None
    )


def _described(wrapper: Wrapper, preloaded: tuple[Preload, ...]) -> str:
    """``libeatmydata.so (LD_PRELOAD), which wraps fsync, fdatasync and 3 more``."""
    sources = [preload.source for preload in preloaded if preload.path == wrapper.library]
    source = f" ({sources[0]})" if sources else ""
    return f"{wrapper.library}{source}, which wraps {_listed(list(wrapper.functions))}"


def _listed(names: list[str]) -> str:
    """All names of a few, the first of many."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def check_preloads(preloads: Preloads) -> None:
    """Raise PreflightError if I/O or clocks go through something else than the C library."""
    found = offence(preloads)
    if found is not None:
        raise PreflightError(
            f"PRELOADED: I/O or clocks go through {found}; measure without it (unset LD_PRELOAD,"
            f" look into {_EVERY_PROCESS} or for a sitecustomize), or add --kv-allow-preload to"
            " have the result reported with that verdict"
        )


# --- what was asked for ----------------------------------------------------------------------


def _asked(loaded: tuple[str, ...]) -> Iterator[Preload]:
    for source, text in (*_environment(), (_EVERY_PROCESS, _every_process())):
        for name in re.split(r"[\s:]+", text):
            if name:
                same = (path for path in loaded if os.path.basename(path) == os.path.basename(name))  # noqa: PTH119  as text
                path = next(same, None)
                real = None if path is None else os.path.realpath(path)
                yield Preload(name=name, source=source, path=real)


def _environment() -> Iterator[tuple[str, str]]:
    """The environment as the process began: a library may have hidden its own trace since."""
    try:
        text = Path("/proc/self/environ").read_bytes().decode(errors="replace")
    except OSError:
        begun: dict[str, str] = dict(os.environ)
    else:
        begun = dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
    for name in _VARIABLES:
        yield name, begun.get(name) or os.environ.get(name, "")


def _every_process() -> str:
    try:
        text = Path(_EVERY_PROCESS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(line.partition("#")[0] for line in text.splitlines())


# --- where calls lead ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mapping:
    begin: int
    end: int
    offset: int
    path: str


class _Info(ctypes.Structure):
    """``struct dl_phdr_info``, dl_iterate_phdr(3); what follows is not needed."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.c_void_p),
        ("count", ctypes.c_uint16),
    )


class _Header(ctypes.Structure):
    """``Elf64_Phdr``."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("offset", "address", "physical", "file_bytes")),
        ("bytes", ctypes.c_uint64),
        ("align", ctypes.c_uint64),
    )


class _Objects:
    """What is loaded into this process: by the kernel's map, and by the dynamic linker's list."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None)
        self._maps = sorted(_mappings(), key=lambda mapping: mapping.begin)
        self._begins = [mapping.begin for mapping in self._maps]
        self.dynamic: list[tuple[int, int]] = []
        """Of each object where it lies, and where its dynamic section does."""
        self._beside: set[str] = set()
        """Where the dynamic linker and the C library lie: not always in one directory."""
        names: list[str] = []
        listen = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(_Info), ctypes.c_size_t, ctypes.c_void_p
        )

        def note(info: Any, _size: int, _data: object) -> int:
            self._note(info.contents)
            names.append(os.fsdecode(info.contents.name or b""))
            return 0

        self.library.dl_iterate_phdr(listen(note), None)
        self.names = tuple(names)
        self._trusted = {self.object_at(self._address_of("Py_GetVersion")), _executable()}
        with suppress(AttributeError):  # what starts a program: no library but this one has it
            self._beside.add(_directory(self.object_at(self._address_of("__libc_start_main"))))

    def _note(self, info: _Info) -> None:
        base = info.base or 0
        if platform.machine() not in _SLOT_TYPES:  # with other headers and relocations
            return
        headers = (_Header * info.count).from_address(info.headers)
        for header in headers:
            if header.type == _PT_DYNAMIC and "vdso" not in os.fsdecode(info.name or b""):
                self.dynamic.append((base, base + header.address))
            elif header.type == _PT_INTERP:
                interpreter = ctypes.string_at(base + header.address)
                self._beside.add(_directory(os.path.realpath(os.fsdecode(interpreter))))

    def _address_of(self, name: str) -> int:
        return ctypes.cast(getattr(self.library, name), ctypes.c_void_p).value or 0

    def bound(self) -> Iterator[tuple[str, int]]:
        """Each function and where the dynamic linker's answer lies, where it knows it."""
        for name in _FUNCTIONS:
            with suppress(AttributeError):
                address = self._address_of(name)
                yield name, address
                if self.object_at(address) == _executable():
                    behind = self._behind_the_program(name)
                    if behind is not None:
                        yield name, behind

    def _behind_the_program(self, name: str) -> int | None:
        """Where a call leads that the program itself seems to answer.

        A program that is linked to fixed addresses (Debian's Python) has a stub of its own for
        each function whose address it takes, and the dynamic linker's answer is the stub. It
        leads to the first object behind the program that has the function.
        """
        for path in self.names:
            try:
                library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY) if path else None
                address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
            except (OSError, AttributeError):
                continue
            if self.object_at(address) == os.path.realpath(path):
                return address
        return None

    def mapping_at(self, address: int) -> _Mapping | None:
        """The mapping that lies at an address."""
        number = bisect.bisect_right(self._begins, address) - 1
        if number < 0 or address >= self._maps[number].end:
            return None
        return self._maps[number]

    def object_at(self, address: int) -> str:
        """The file that an address belongs to, or the kernel's name for such memory."""
        mapping = self.mapping_at(address)
        return (mapping.path if mapping is not None else "") or _ANONYMOUS

    def is_own(self, path: str) -> bool:
        """Whether functions are at home there: C library, kernel, interpreter."""
        if path in _KERNEL_S_OWN or path in self._trusted:
            return True
        beside = not self._beside or any(path.startswith(place) for place in self._beside)
        return beside and _C_LIBRARY.fullmatch(os.path.basename(path)) is not None  # noqa: PTH119  as text


def _directory(path: str) -> str:
    """A directory with the slash that no other directory's name goes on after."""
    return f"{os.path.dirname(path)}/"  # noqa: PTH120  as text


def _mappings() -> Iterator[_Mapping]:
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, _flags, offset, _device, _inode, *path = line.split(maxsplit=5)
        begin, _, end = span.partition("-")
        yield _Mapping(int(begin, 16), int(end, 16), int(offset, 16), path[0] if path else "")


def _in_python() -> Iterator[Wrapper]:
    """Functions of Python's own modules that are no longer those of the interpreter."""
    for module, home, names in _OF_PYTHON:
        for name in names:
            function = getattr(module, name, None)
            found = None if function is None else _stand_in(function, home, name)
            if found is not None:
                yield Wrapper(library=found, functions=(f"{module.__name__}.{name}",))


def _stand_in(function: Any, home: str, name: str) -> str | None:
    """What is there instead of a function of the interpreter; None: it is that function.

    Another of its own (``os.fsync = os.fstat``) is none: a builtin knows its name and module.
    """
    if not isinstance(function, types.BuiltinFunctionType):
        module = getattr(function, "__module__", None) or type(function).__module__
        return f"Python module {module}"
    owner = function.__self__
    of = owner.__name__ if isinstance(owner, types.ModuleType) else type(owner).__name__
    return None if (of, function.__name__) == (home, name) else f"Python's {of}.{function.__name__}"


def _executable() -> str:
    try:
        return os.readlink("/proc/self/exe")  # noqa: PTH115  as text
    except OSError:
        return ""


def _wrappers(objects: _Objects) -> tuple[Wrapper, ...]:
    """What stands in for a function, and for which."""
    found: dict[str, set[str]] = {}
    for name, address in (*objects.bound(), *_slots(objects)):
        path = objects.object_at(address)
        if not objects.is_own(path):
            found.setdefault(path, set()).add(name)
        elif path not in _KERNEL_S_OWN and _is_changed(objects.mapping_at(address), address):
            found.setdefault(f"{path}, changed in memory", set()).add(name)
    return tuple(
        Wrapper(library=path, functions=tuple(sorted(found[path]))) for path in sorted(found)
    )


def _slots(objects: _Objects) -> Iterator[tuple[str, int]]:
    """Each function and where a loaded object's calls of it go, once that is decided.

    The linker's answer may be changed afterwards, slot by slot. A slot that leads back
    into its own object is undecided yet, or a function of that object's own.
    """
    kinds = frozenset(_SLOT_TYPES.get(platform.machine(), ()))
    for base, section in objects.dynamic:
        tags = dict(_tags(section))
        names = _named(base, tags)
        if not names:
            continue
        home, symbols = objects.object_at(section), _absolute(base, tags[_DT_SYMTAB])
        for offset, info, _addend in _relocations(base, tags):
            if info & 0xFFFFFFFF not in kinds or not info >> 32:
                continue
            entry = ctypes.c_uint32.from_address(symbols + (info >> 32) * _SYMBOL_BYTES)
            address = ctypes.c_uint64.from_address(base + offset).value
            if entry.value in names and address and objects.object_at(address) != home:
                yield names[entry.value], address


def _named(base: int, tags: dict[int, int]) -> dict[int, str]:
    """Where in an object's table of strings the functions' names stand."""
    if _DT_STRTAB not in tags or _DT_SYMTAB not in tags:
        return {}
    strings = ctypes.string_at(_absolute(base, tags[_DT_STRTAB]), tags.get(_DT_STRSZ, 0))
    found = {}
    for name in _FUNCTIONS:
        text = name.encode() + b"\0"
        at = strings.find(text)
        while at >= 0:  # also as the end of another name, which it may share
            found[at] = name
            at = strings.find(text, at + 1)
    return found


def _relocations(base: int, tags: dict[int, int]) -> Iterator[tuple[int, int, int]]:
    for table, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if table in tags and tags.get(size):
            raw = ctypes.string_at(_absolute(base, tags[table]), tags[size])
            yield from _RELA.iter_unpack(raw)


def _tags(section: int) -> Iterator[tuple[int, int]]:
    """The first value of each tag of a dynamic section."""
    while True:
        tag, value = _DYNAMIC.unpack(ctypes.string_at(section, _DYNAMIC.size))
        if not tag:
            return
        yield tag, value
        section += _DYNAMIC.size


def _absolute(base: int, address: int) -> int:
    """Some dynamic linkers write addresses into the section, others leave offsets there."""
    return address if address >= base else base + address


class _Symbol(ctypes.Structure):
    """``Elf64_Sym``."""

    _fields_ = (
        ("name", ctypes.c_uint32),
        ("info", ctypes.c_uint8),
        ("other", ctypes.c_uint8),
        ("section", ctypes.c_uint16),
        ("value", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
    )


def _is_changed(mapping: _Mapping | None, address: int) -> bool:
    """Whether a function's code differs from that of its file."""
    if mapping is None or not mapping.path.startswith("/"):
        return False
    size = min(_code_bytes(address), mapping.end - address)
    try:
        with Path(mapping.path).open("rb") as file:
            file.seek(address - mapping.begin + mapping.offset)
            original = file.read(size)
    except OSError:  # replaced by an update since
        return False
    return len(original) == size and original != ctypes.string_at(address, size)


def _code_bytes(address: int) -> int:
    """How long the function at an address is, as far as it is looked at."""
    symbol = ctypes.POINTER(_Symbol)()
    info = (ctypes.c_void_p * 4)()  # Dl_info
    look = getattr(ctypes.CDLL(None), "dladdr1", None)  # of glibc only
    found = look and look(ctypes.c_void_p(address), info, ctypes.byref(symbol), 1)  # RTLD_DL_SYMENT
    size: int = symbol.contents.bytes if found and symbol else 0
    return min(size or 16, _LONGEST_CODE_BYTES)
