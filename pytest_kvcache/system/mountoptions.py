"""Mount options: those that decide what is measured, by one name each. Pure, of text alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_QUOTED: Final = re.compile(r'="[^"]*"')  # a security label, which may have commas in it
# One thing under several names.
_SAME: Final = {
    "barrier": None,  # what every filesystem does that is not told otherwise
    "barrier=1": None,
    "barrier=flush": None,
    "barrier=0": "nobarrier",
    "barrier=none": "nobarrier",
}
# Without a flush of the device's own cache what a sync wrote may still be in that alone:
# ext4, btrfs, nilfs2 and others; f2fs.
_UNFLUSHED: Final = frozenset({"nobarrier", "fsync_mode=nobarrier"})
# Who may do what, and what it is called: no byte moves another way for it.
_RIGHTS: Final = frozenset(
    {
        "allow_other",
        "context",
        "default_permissions",
        "defcontext",
        "fscontext",
        "gid",
        "group_id",
        "idmapped",
        "nodev",
        "noexec",
        "nosuid",
        "nosymfollow",
        "rootcontext",
        "rootmode",
        "rw",
        "seclabel",
        "uid",
        "user_id",
    }
)
# Where it is, or who asks: another of each container and each mount; what a server lends is
# known by its source.
_PLACES: Final = frozenset(
    {
        "addr",
        "clientaddr",
        "fd",
        "lowerdir",
        "mountaddr",
        "mountport",
        "pgrp",
        "port",
        "subvol",
        "subvolid",
        "upperdir",
        "workdir",
    }
)


def normalised(options: str) -> tuple[str, ...]:
    """The options that may change what is measured, in one order, each once."""
    return tuple(sorted(set(_that_matter(options))))


def asks_for_flushes(options: str) -> bool:
    """Whether a sync has the device write out its own cache: False of ``nobarrier``."""
    return not _UNFLUSHED.intersection(normalised(options))


def _that_matter(options: str) -> Iterator[str]:
    for option in _QUOTED.sub("=", options).split(","):
        known = _SAME.get(option, option)
        if known and known.partition("=")[0] not in _RIGHTS | _PLACES:
            yield known
