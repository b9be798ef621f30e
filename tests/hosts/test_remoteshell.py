from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.hosts.remoteshell import RemoteShell

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BATCH = ("-o", "BatchMode=yes")
ALIVE = ("-o", "ServerAliveInterval=3")
CONNECT = ("-o", "ConnectTimeout=5")
UNSET = {"hostname": "n1", "serveraliveinterval": "0", "connecttimeout": "none"}


class Ssh:
    """What ``-G`` says for each host; writes down what it was asked."""

    def __init__(self, **settings: dict[str, str]) -> None:
        self._settings = settings
        self.asked: list[list[str]] = []

    def __call__(self, argv: Sequence[str], **_how: Any) -> subprocess.CompletedProcess[str]:
        self.asked.append(list(argv))
        settings = self._settings.get(argv[-1], UNSET)
        text = "".join(f"{key} {value}\n" for key, value in settings.items())
        return subprocess.CompletedProcess(argv, 0, text, "")


def words(ssh: Ssh, *hosts: str) -> tuple[str, ...]:
    return RemoteShell.prepare(["ssh", "-p", "22"], hosts, run=ssh).words[3:]


def test_keepalives_are_added_where_nobody_has_set_any() -> None:
    assert words(Ssh(), "n1") == (*BATCH, *ALIVE, *CONNECT)


def test_settings_that_ssh_does_not_show_are_not_set() -> None:
    assert words(Ssh(n1={"hostname": "n1"}), "n1") == (*BATCH, *ALIVE, *CONNECT)


@pytest.mark.parametrize(
    ("key", "value", "added"),
    [("serveraliveinterval", "60", CONNECT), ("connecttimeout", "30", ALIVE)],
)
def test_what_the_user_has_set_stays_as_it_is(key: str, value: str, added: tuple[str, str]) -> None:
    assert words(Ssh(n1=UNSET | {key: value}), "n1") == (*BATCH, *added)


def test_a_configuration_that_sets_all_still_gets_no_questions() -> None:
    configured = UNSET | {"serveraliveinterval": "15", "connecttimeout": "10"}
    assert words(Ssh(n1=configured), "n1") == BATCH


def test_one_host_without_keepalives_is_enough() -> None:
    configured = UNSET | {"serveraliveinterval": "15", "connecttimeout": "10"}
    assert words(Ssh(n1=configured, n2=UNSET), "n1", "n2") == (*BATCH, *ALIVE, *CONNECT)


def test_options_are_added_once_for_all_hosts() -> None:
    assert words(Ssh(), "n1", "n2", "n3").count("ServerAliveInterval=3") == 1


def test_a_large_cluster_is_not_asked_host_by_host() -> None:
    ssh = Ssh()
    words(ssh, *(f"n{number}" for number in range(1000)))
    assert len(ssh.asked) == 16


def test_the_command_itself_is_asked_with_all_its_words() -> None:
    ssh = Ssh()
    words(ssh, "n1")
    assert ssh.asked == [["ssh", "-p", "22", "-G", "n1"]]


def test_without_other_hosts_nothing_is_asked() -> None:
    ssh = Ssh()
    assert words(ssh) == BATCH
    assert ssh.asked == []


@pytest.mark.parametrize("body", ["exit 1", "echo usage", "echo hostname n1; exit 1", "exit 255"])
def test_a_command_that_is_no_ssh_is_left_as_it_is(tmp_path: Path, body: str) -> None:
    path = tmp_path / "rsh"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    assert RemoteShell.prepare([str(path), "-x"], ["n1"]).words == (str(path), "-x")


def test_a_command_that_is_not_there_is_left_for_the_connection_to_tell() -> None:
    assert RemoteShell.prepare(["/no/ssh"], ["n1"]).words == ("/no/ssh",)


def test_a_command_that_never_answers_is_no_ssh() -> None:
    def hang(argv: Sequence[str], **how: Any) -> subprocess.CompletedProcess[str]:
        assert how["stdin"] == subprocess.DEVNULL  # it can't wait for a person either
        raise subprocess.TimeoutExpired(list(argv), how["timeout"])

    assert RemoteShell.prepare(["ssh"], ["n1"], run=hang).words == ("ssh",)


def test_the_host_stands_between_the_words_and_what_is_run_there() -> None:
    argv = RemoteShell(("ssh", "-p", "22")).argv("n1", ["/py", "-m", "m"], {"A": "1"})
    assert argv == ["ssh", "-p", "22", "n1", "cd / && exec env A=1 /py -m m"]


@pytest.mark.parametrize(
    "odd", ["a b", "it's", '"', "$HOME", "`id`", "a;b", "*", "\\", "ä", "a\nb", "", "-n", "&&", "#"]
)
def test_words_arrive_as_they_were_whatever_is_in_them(tmp_path: Path, odd: str) -> None:
    program = tmp_path / f"show {odd}".replace("/", "_")
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$0" "$@" "$VARIABLE" "$PWD"\n')
    program.chmod(0o755)
    argv = RemoteShell(("env", "-u", "x")).argv("h", [str(program), odd, "x"], {"VARIABLE": odd})
    shown = subprocess.run(["sh", "-c", argv[-1]], capture_output=True, text=True, check=True)
    assert shown.stdout.split("\0") == [str(program), odd, "x", odd, "/", ""]
