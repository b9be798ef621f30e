"""Which mount options decide what is measured."""

from __future__ import annotations

import pytest

from pytest_kvcache.system.mountoptions import asks_for_flushes, normalised


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ("rw,relatime", ("relatime",)),
        ("rw,noatime,data=journal,discard", ("data=journal", "discard", "noatime")),
        ("discard,noatime,rw,data=journal", ("data=journal", "discard", "noatime")),
        ("rw,nosuid,nodev,seclabel,barrier=1", ()),
        ("rw,relatime,barrier=0", ("nobarrier", "relatime")),
        ("rw,nobarrier,relatime", ("nobarrier", "relatime")),
        ("rw,lowerdir=/a:/b,upperdir=/c,workdir=/d,xino=off", ("xino=off",)),
        ("rw,vers=4.2,nconnect=8,addr=10.0.0.1,clientaddr=10.0.0.2", ("nconnect=8", "vers=4.2")),
        ('rw,context="system_u:object_r:t:s0:c1,c2",relatime', ("relatime",)),
        ("", ()),
    ],
)
def test_options_that_matter_have_one_name_and_one_order(
    options: str, kept: tuple[str, ...]
) -> None:
    assert normalised(options) == kept


@pytest.mark.parametrize(
    ("options", "flushes"),
    [
        ("rw,relatime", True),
        ("rw,barrier=1", True),
        ("rw,relatime,nobarrier", False),
        ("rw,barrier=0", False),
        ("rw,fsync_mode=nobarrier", False),
        ("rw,fsync_mode=posix", True),
    ],
)
def test_a_sync_flushes_the_device_unless_its_filesystem_is_told_not_to(
    options: str, *, flushes: bool
) -> None:
    assert asks_for_flushes(options) is flushes
