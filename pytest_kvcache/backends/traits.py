"""What a backend is like, known before it is opened: everything that is decided by it.

Pure. A rank, the pytest process and
``verify``, which has only the run file, decide by these and never by a backend's name.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

Unit = Literal["range", "object"]
Bound = Literal["disk", "memory", "nothing"]
_OPTION_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOption:
    """A setting that a backend knows: ``--kv-backend-option NAME=VALUE``.

    ``meaning`` is for messages. The value of a ``secret`` one is neither shown nor stored;
    without a ``required`` one nothing is launched.
    """

    name: str
    meaning: str
    secret: bool = False
    required: bool = False

    def __post_init__(self) -> None:
        if not _OPTION_NAME.fullmatch(self.name):
            raise OptionError(
                f"a backend's option is called {self.name!r}; its name must be lower-case letters,"
                " digits, _ and -, and begin with a letter"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendTraits:
    """What a backend is like.

    ``unit`` is what one call moves: a ``range`` of bytes of an object, or the whole
    ``object`` (offset 0, all its bytes). ``directory``: every rank is given one of its own
    in ``--kv-cache-dir``. ``bounded_by`` is what its capacity is taken from: the free
    ``disk`` space of that directory, the host's free ``memory``, or ``nothing`` that this
    machine could ask. A part (one call's bytes; with unit ``object`` the object) is at least
    ``smallest_part_bytes`` (the last one of an object may be shorter), at most
    ``largest_part_bytes`` (None: any) and a multiple of ``alignment_bytes``.
    ``kernel_counts``: the byte counters of the process and of the directory's device tell
    whether bytes were really moved. ``is_storage`` False labels the results NOT_STORAGE;
    ``stores_data`` False means that nothing can be read back, so that no data is made and
    nothing is verified; ``never_waits``, that its calls return at once, so that nothing
    is gained by having several in flight. ``stores`` are its ways to keep objects, for
    ``--kv-store``; ``makes_calls``: those of ``--kv-engine``, ``--kv-lookup``,
    ``--kv-publish`` and ``--kv-phase=restart``; ``options`` what it knows of
    ``--kv-backend-option``.
    """

    unit: Unit
    directory: bool
    bounded_by: Bound
    smallest_part_bytes: int
    largest_part_bytes: int | None
    alignment_bytes: int
    kernel_counts: bool
    is_storage: bool
    stores_data: bool = True
    never_waits: bool = False
    stores: tuple[str, ...] = ()
    makes_calls: bool = False
    options: tuple[BackendOption, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("unit", get_args(Unit)), ("bounded_by", get_args(Bound))):
            if getattr(self, name) not in known:
                raise OptionError(
                    f"the traits' {name} is {getattr(self, name)!r}; it must be one of"
                    f" {', '.join(known)}"
                )
        self._check_parts()
        if not self.directory and (self.bounded_by == "disk" or self.kernel_counts):
            what = "kernel_counts" if self.kernel_counts else "bounded_by 'disk'"
            raise OptionError(
                f"the traits have {what} without a directory; it is the directory's disk that is"
                " asked, so state directory=True or leave that out"
            )
        if self.is_storage and not self.stores_data:
            raise OptionError(
                "the traits have is_storage without stores_data; a storage keeps data"
            )
        names = [option.name for option in self.options]
        if len(set(names)) != len(names):
            raise OptionError(f"the traits' options are {names}; each must be there once")

    def _check_parts(self) -> None:
        """The sizes of parts allow of at least one."""
        smallest, largest, align = (
            self.smallest_part_bytes, self.largest_part_bytes, self.alignment_bytes,
        )  # fmt: skip
        if align < 1 or align & (align - 1):
            raise OptionError(f"the traits' alignment_bytes is {align}; it must be a power of two")
        if smallest < 1 or smallest > (largest or smallest):
            raise OptionError(
                f"the traits' smallest_part_bytes is {smallest}; it must be at least 1 and at most"
                f" largest_part_bytes, which is {largest}"
            )
        unit = max(align, PAGE_BYTES)  # what is verified, and so transferred, are pages
        if largest is not None and largest // unit * unit < max(smallest, unit):
            raise OptionError(
                f"the traits' largest_part_bytes is {largest}; no multiple of {unit} lies between"
                f" smallest_part_bytes ({smallest}) and it"
            )

    @property
    def secrets(self) -> frozenset[str]:
        """The names of the options whose values nobody may see."""
        return frozenset(option.name for option in self.options if option.secret)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same traits back."""
        data = asdict(self)
        data["stores"] = list(self.stores)
        data["options"] = list(data["options"])
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BackendTraits:
        """The inverse of ``to_json``; OptionError for a value that breaks a rule."""
        # Also those with a default: a file that lacks one is not whole.
        values = {**data, **{trait.name: data[trait.name] for trait in fields(cls)}}
        values["stores"] = tuple(values["stores"])
        values["options"] = tuple(BackendOption(**option) for option in values["options"])
        return cls(**values)
