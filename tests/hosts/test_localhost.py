from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.hosts.localhost import (
    Memory,
    available_disk_bytes,
    available_memory,
    available_memory_bytes,
    cores_words,
    is_local,
    is_root,
    launcher_name,
    memory_words,
    usable_cores,
)
from pytest_kvcache.system.cgroups import Groups

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.0.1.1", socket.gethostname()])
def test_this_machine_is_known_by_its_names_and_addresses(name: str) -> None:
    assert is_local(name)


@pytest.mark.parametrize("name", ["192.0.2.1", "2001:db8::1", "host.invalid"])
def test_another_machine_is_not_this_one(name: str) -> None:
    # Addresses for documentation (RFC 5737, RFC 3849) and a name that never resolves (RFC 2606).
    assert not is_local(name)


@pytest.mark.parametrize("name", ["a" * 64, "a..b", "é" * 64 + ".x"])
def test_a_name_that_no_resolver_takes_is_not_this_machine(name: str) -> None:
    assert not is_local(name)


def test_an_address_of_the_loopback_in_ipv6_is_this_machine() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert is_local("::1")


def test_a_name_is_compared_as_names_are_without_regard_to_case() -> None:
    assert is_local("LocalHost")
    assert is_local(socket.gethostname().upper())


def test_the_first_part_of_our_name_is_ours_where_nobody_resolves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "n1-of-a-test.invalid")

    assert is_local("n1-of-a-test")
    assert not is_local("n2-of-a-test")


def test_a_launcher_gets_a_name_that_it_takes_for_its_own_host() -> None:
    own = socket.gethostname()

    for known in ("localhost", "127.0.0.1", own):
        assert launcher_name(known) == known
    for alias in ("127.0.0.2", "127.0.1.1", "::1", "0.0.0.0", "LOCALHOST", f"{own}-ib0"):
        assert launcher_name(alias) == own


def groups_of(root: Path, **files: str) -> Groups:
    """A group with these files (an underscore is a dot)."""
    for name, text in files.items():
        (root / name.replace("_", ".", 1)).write_text(text)
    return Groups(v1={}, v2=(root,))


@pytest.mark.parametrize(
    ("quota", "cores"), [("20000", 1), ("100000", 1), ("max", None), ("99900000", None)]
)
def test_a_quota_makes_cores_fewer_but_never_none(
    tmp_path: Path, quota: str, cores: int | None
) -> None:
    groups = groups_of(tmp_path, cpu_max=f"{quota} 100000\n")
    assert usable_cores(groups) == (cores or len(os.sched_getaffinity(0)))


def test_a_part_of_a_core_counts_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    assert usable_cores(groups_of(tmp_path, cpu_max="150000 100000\n")) == 2
    assert cores_words(2, 1.5) == "2 cores (its control group allows 1.5)"
    assert cores_words(1, None) == "1 core"


def test_memory_is_what_the_machine_and_the_control_group_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    300000 kB\n")
    machine = 300000 * 1024
    tight = groups_of(tmp_path, memory_max=f"{250 << 20}\n", memory_current=f"{50 << 20}\n")
    limited = available_memory(str(meminfo), tight)
    assert limited == Memory(free_bytes=200 << 20, limit_bytes=250 << 20)
    assert available_memory_bytes(str(meminfo), tight) == 200 << 20
    assert memory_words(200 << 20, 250 << 20) == (
        "200 MiB of memory free (its control group allows 250 MiB)"
    )
    wide = groups_of(tmp_path, memory_max=f"{1 << 40}\n")
    assert available_memory(str(meminfo), wide) == Memory(free_bytes=machine, limit_bytes=None)
    assert available_memory(str(tmp_path / "absent"), Groups(v1={}, v2=())) is None


def test_cores_are_those_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores() == len(before)


def test_memory_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4000 kB\nMemFree:   500 kB\nMemAvailable:    3000 kB\n")
    assert available_memory_bytes(str(meminfo)) == 3000 * 1024


@pytest.mark.parametrize("text", ["MemTotal:  4000 kB\n", ""])
def test_a_kernel_that_does_not_say_is_not_guessed_at(tmp_path: Path, text: str) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(text)
    assert available_memory_bytes(str(meminfo)) is None
    assert available_memory_bytes(str(tmp_path / "absent")) is None


def test_free_space_is_what_users_may_take(tmp_path: Path) -> None:
    facts = os.statvfs(tmp_path)
    assert 0 < available_disk_bytes(str(tmp_path)) <= facts.f_bfree * facts.f_frsize


def test_root_is_told_by_the_effective_user() -> None:
    assert is_root() == (os.geteuid() == 0)
