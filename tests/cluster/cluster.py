"""Several hosts on one machine: namespaces, joined by a bridge, each with an sshd of its own.

n0 is the launcher's host; n1, n2, ... are the others. Every host has a network, a name,
processes, shared memory and mounts of its own; the bridge has a namespace of its own, so
that the machine's network is untouched. Nothing of it has a name on the machine: two
clusters never meet, and all of one ends with the process that made it.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cluster.processes import HostProcess, Process, children, members

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

PRIVATE = (Path("/mnt/kv"),)
PRIVATE_BYTES = 1 << 30
NETWORK = "10.77.0"  # within the cluster only
PATIENCE_S = 30.0  # for what must come, on a machine under any load
PROGRAMS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "bridge": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
}
ISOLATED = ("--net", "--uts", "--ipc", "--pid", "--mount", "--mount-proc", "--fork")
DROPS, FORWARDS = "0", "3"  # states of a port of a bridge

SSH_CONFIG = """\
Host *
  IdentityFile {directory}/id
  IdentitiesOnly yes
  UserKnownHostsFile /dev/null
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking no
  LogLevel ERROR
"""
SSHD_CONFIG = """\
HostKey {directory}/hostkey
AuthorizedKeysFile {directory}/id.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
PidFile /run/sshd.pid
MaxStartups 100
ClientAliveInterval {client_alive_s}
"""


class ClusterError(RuntimeError):
    """The cluster can't be made or changed as asked."""


@functools.cache
def why_unavailable() -> str | None:
    """Why no cluster can run here; None if one can."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    for name, package in PROGRAMS.items():
        if program(name) is None:
            return f"no {name} here: apt-get install {package}"
    for command in ("mount -t tmpfs tmpfs /tmp", "ip link add type veth"):
        tried = _output(["unshare", *ISOLATED, "--", *command.split()])
        if tried.returncode != 0:
            return f"no namespaces here: {tried.stderr.strip()}"
    return None


@functools.cache
def why_no_clock_shift() -> str | None:
    """Why no host can have another clock here; None if it can."""
    tried = _output(["unshare", "--time", "--monotonic", "1", "--fork", "--", "true"])
    return f"no time namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def program(name: str) -> str | None:
    """The path of a program, also of one that is only on root's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return shutil.which(name, path=path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What is on a host that was not there when it came up."""

    processes: tuple[Process, ...]
    shared_memory: tuple[str, ...]  # names in /dev/shm
    cache: tuple[str, ...]  # names in the private directories
    temporary: tuple[str, ...]  # names in /tmp

    def __bool__(self) -> bool:
        return any((self.processes, self.shared_memory, self.cache, self.temporary))


class Host:
    """One host: the process that made its namespaces, and the first process within."""

    def __init__(self, spec: Mapping[str, Any], log: Path, *, clock_shift_s: int) -> None:
        self.name: str = spec["name"]
        self.clock_shift_s = clock_shift_s
        self.log = log
        self.found: dict[str, frozenset[str]] = {}
        self.pid = 0
        clock = (f"--monotonic={clock_shift_s}", f"--boottime={clock_shift_s}")
        spaces = (*ISOLATED, *(("--time", *clock) if clock_shift_s else ()))
        script = Path(__file__).with_name("host.py")
        with log.open("wb") as stderr:
            self._maker = subprocess.Popen(
                ["unshare", "--kill-child", *spaces, "--", sys.executable, "-I", "-S", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd="/",
                start_new_session=True,
            )
        self._say(json.dumps(spec))

    def _say(self, line: str) -> None:
        assert self._maker.stdin is not None
        with suppress(BrokenPipeError):  # then the log says why
            self._maker.stdin.write(f"{line}\n")
            self._maker.stdin.flush()

    def wait_ready(self) -> None:
        """Wait until everything is mounted."""
        assert self._maker.stdout is not None
        if self._maker.stdout.readline() != "ready\n":
            self.close()
            raise ClusterError(f"{self.name} did not start: {_last_line(self.log)}")
        (self.pid,) = children(self._maker.pid)

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command, to be run within."""
        clock = ["--time"] if self.clock_shift_s else []
        spaces = ["--net", "--uts", "--ipc", "--pid", "--mount", *clock]
        return ["nsenter", f"--target={self.pid}", *spaces, "--", *command]

    def view(self, path: str | Path) -> Path:
        """Where the machine sees a path of the host; links of the host's may mislead."""
        return Path(f"/proc/{self.pid}/root", str(path).lstrip("/"))

    def close(self) -> None:
        """End every process within; the namespaces and mounts go with the last one."""
        for pid in children(self._maker.pid) if self._maker.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with self._maker as maker:
            assert maker.stdin is not None
            with suppress(BrokenPipeError):
                maker.stdin.close()
            maker.wait()


class Cluster:
    """n0 and `hosts` other hosts, up between `start` and `close`, or in a with statement.

    `directory`, which must be new, takes keys and logs. All hosts see it, and `share`, and
    `shared_dir`, which is made where it is missing and plays a parallel file system. Every
    host has its own /tmp, /run, /dev/shm and `private` directories, the latter as large as
    `private_bytes` says of the host. `clock_shift_s` puts a host's monotonic and boot-time
    clocks ahead. With `client_alive_s` an sshd notices that its client has gone.
    """

    def __init__(
        self,
        directory: Path,
        hosts: int = 2,
        *,
        share: Sequence[Path] = (),
        private: Sequence[Path] = PRIVATE,
        shared_dir: Path | None = None,
        private_bytes: Mapping[str, int] | None = None,
        clock_shift_s: Mapping[str, int] | None = None,
        client_alive_s: int = 0,
    ) -> None:
        self.directory = directory.absolute()
        self.names = tuple(f"n{number}" for number in range(hosts + 1))
        self.share = (self.directory, *share, *([shared_dir] if shared_dir else []))
        self.private = tuple(private)
        self.shared_dir = shared_dir
        self.ssh_config = self.directory / "ssh_config"
        self.ssh_command = ("ssh", "-F", str(self.ssh_config))
        self.ssh_agent = self.directory / "ssh"
        self._private_bytes = dict(private_bytes or {})
        self._clock_shift_s = dict(clock_shift_s or {})
        self._client_alive_s = client_alive_s
        self._is_begun = False
        self._hosts: dict[str, Host] = {}
        self._switch: subprocess.Popen[str] | None = None
        self._processes: list[HostProcess] = []
        for name in (*self._private_bytes, *self._clock_shift_s):
            if name not in self.names:
                raise ValueError(f"{name} is no host of {', '.join(self.names)}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- up and down ----------------------------------------------------------------------

    def start(self) -> None:
        """Bring all hosts up; what was begun is ended if that fails."""
        self.directory.mkdir(parents=True)
        self._is_begun = True
        atexit.register(self.close)
        try:
            self._write_files()
            for name in self.names:
                self._hosts[name] = self._new_host(name)
            self._start_switch()
            for host in self._hosts.values():
                host.wait_ready()
            self._connect()
            self._start_sshds(self.names)
            for host in self._hosts.values():
                host.found = {path: _names(host.view(path)) for path in self._watched()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every process of every host; nothing of the cluster stays."""
        atexit.unregister(self.close)
        while self._hosts:
            self._hosts.popitem()[1].close()
        if self._switch is not None:
            with self._switch as switch:
                switch.kill()
            self._switch = None
        for process in self._processes:
            process.wait()
        self._processes.clear()
        if self._is_begun:
            shutil.rmtree(self.directory)
            self._is_begun = False

    def _write_files(self) -> None:
        if self.shared_dir is not None:
            self.shared_dir.mkdir(parents=True, exist_ok=True)
        for name in ("id", "hostkey"):
            (self.directory / name).unlink(missing_ok=True)
            _check(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / name)]
            )
        values = {"directory": self.directory, "client_alive_s": self._client_alive_s}
        self.ssh_config.write_text(SSH_CONFIG.format(**values))
        (self.directory / "sshd_config").write_text(SSHD_CONFIG.format(**values))
        names = "".join(f"{self.address(name)} {name} {name}-ib0\n" for name in self.names)
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        self._write_account()
        self.ssh_agent.write_text(f'#!/bin/sh\nexec {" ".join(self.ssh_command)} "$@"\n')
        self.ssh_agent.chmod(0o755)

    def _write_account(self) -> None:
        """Root with a shell that reads no file of the machine's root, and not locked for sshd."""
        lines = Path("/etc/passwd").read_text().splitlines()
        accounts = "\n".join(line for line in lines if not line.startswith("root:"))
        root = f"root:x:0:0:root:{pwd.getpwuid(0).pw_dir}:/bin/sh"
        (self.directory / "passwd").write_text(f"{root}\n{accounts}\n")
        (self.directory / "shadow").touch(mode=0o600)
        (self.directory / "shadow").write_text("root:*:::::::\n")

    def _new_host(self, name: str) -> Host:
        spec = {
            "name": name,
            "share": [str(path) for path in self.share],
            "private": [str(path) for path in self.private],
            "private_bytes": self._private_bytes.get(name, PRIVATE_BYTES),
            "files": {
                str(self.directory / "passwd"): "/etc/passwd",
                str(self.directory / "shadow"): "/etc/shadow",
                str(self.directory / "hosts"): "/etc/hosts",
                str(self.ssh_config): "/etc/ssh/ssh_config",  # so that plain ssh works as well
            },
        }
        log = self.directory / f"{name}.log"
        return Host(spec, log, clock_shift_s=self._clock_shift_s.get(name, 0))

    def _start_switch(self) -> None:
        """A network namespace that lives as long as the process which echoes a line."""
        self._switch = subprocess.Popen(
            ["unshare", "--net", "--", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
        )
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write("\n")
        self._switch.stdin.flush()
        if self._switch.stdout.readline() != "\n":
            raise ClusterError("the namespace of the bridge could not be made")

    def _connect(self) -> None:
        """A cable from every host to the bridge."""
        lines = ["link add br0 type bridge", "link set br0 up"]
        for name, host in self._hosts.items():
            lines += [
                f"link add {name} type veth peer name eth0 netns {host.pid}",
                f"link set {name} master br0 up",
            ]
        self._on_switch(["ip", "-batch", "-"], "\n".join(lines))
        for name, host in self._hosts.items():
            lines = [
                "link set lo up",
                f"addr add {self.address(name)}/24 dev eth0",
                "link set eth0 up",
            ]
            _check(_in_network(host.pid, ["ip", "-batch", "-"]), "\n".join(lines))

    def _on_switch(self, command: Sequence[str], text: str = "") -> None:
        assert self._switch is not None
        _check(_in_network(self._switch.pid, command), text)

    # --- commands -------------------------------------------------------------------------

    def run(
        self,
        host: str,
        argv: Sequence[str | Path],
        *,
        input: str | None = None,  # noqa: A002  as subprocess.run calls it
        timeout: float = 60.0,
        check: bool = False,
        **kwargs: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end; its output is captured."""
        if input is not None:
            kwargs["stdin"] = subprocess.PIPE
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.popen(host, argv, **{**pipes, **kwargs}) as process:
            stdout, stderr = process.communicate(input, timeout)
        if check and process.returncode != 0:
            raise ClusterError(f"{host}: {argv!r} ended with {process.returncode}: {stderr}")
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)

    def popen(
        self,
        host: str,
        argv: Sequence[str | Path],
        *,
        cwd: str | Path = "/",
        **kwargs: Any,
    ) -> HostProcess:
        """Start a command on a host, in a session of its own; it is there when this returns."""
        command = self._host(host).enter(["env", "-C", str(cwd), *map(str, argv)])
        settings = {"stdin": subprocess.DEVNULL, "text": True, "start_new_session": True, **kwargs}
        process = HostProcess(command, **settings)
        self._processes.append(process)
        process.wait_started()
        return process

    def _host(self, name: str) -> Host:
        try:
            return self._hosts[name]
        except KeyError:
            raise ClusterError(f"no host {name} is up; there are {[*self._hosts]}") from None

    def enter(self, host: str, command: Sequence[str]) -> list[str]:
        """What runs a command on a host, for whoever starts it himself."""
        return self._host(host).enter(command)

    # --- what a host is -------------------------------------------------------------------

    def address(self, host: str) -> str:
        """The address of a host."""
        return f"{NETWORK}.{self.names.index(host) + 10}"

    def path(self, host: str, path: str | Path) -> Path:
        """Where the machine sees a path of a host, without running anything there."""
        return self._host(host).view(path)

    def processes(self, host: str) -> list[Process]:
        """All processes of a host but its first one and those of its sshd."""
        return [p for p in members(self._host(host).pid) if not p.name.startswith("sshd")]

    def pids(self, host: str) -> list[int]:
        """Their pids, in the machine's numbering."""
        return [process.pid for process in self.processes(host)]

    def kill(self, host: str, pid: int, sig: int = signal.SIGKILL) -> None:
        """Send a signal to a process of a host."""
        if pid not in {process.pid for process in members(self._host(host).pid)}:
            raise ClusterError(f"{pid} is no process of {host}")
        os.kill(pid, sig)

    def leftovers(self, host: str) -> Leftovers:
        """What is there now and was not when the host came up."""
        found = self._host(host).found
        new = {path: _names(self.path(host, path)) - found[path] for path in self._watched()}
        return Leftovers(
            processes=tuple(self.processes(host)),
            shared_memory=tuple(sorted(new["/dev/shm"])),
            cache=tuple(sorted(name for path in self.private for name in new[str(path)])),
            temporary=tuple(sorted(new["/tmp"])),
        )

    def _watched(self) -> list[str]:
        return ["/tmp", "/dev/shm", *map(str, self.private)]

    # --- faults ---------------------------------------------------------------------------

    def cut(self, host: str) -> None:
        """Drop all frames from and to a host, silently: its carrier stays up."""
        self._on_switch(["bridge", "link", "set", "dev", self._host(host).name, "state", DROPS])

    def heal(self, host: str) -> None:
        """Let frames of a host pass again."""
        self._on_switch(["bridge", "link", "set", "dev", self._host(host).name, "state", FORWARDS])

    def carrier(self, host: str, *, up: bool) -> None:
        """Pull a host's cable, or plug it in, which heals a cut as well."""
        self._on_switch(["ip", "link", "set", self._host(host).name, "up" if up else "down"])

    def stop_sshd(self, host: str) -> None:
        """New connections are refused from now on; sessions go on."""
        pid_file = self.path(host, "/run/sshd.pid")
        listener = int(pid_file.read_text())
        for process in members(self._host(host).pid):
            if process.pid_inside == listener:
                os.kill(process.pid, signal.SIGTERM)
        _wait_for(lambda: not pid_file.exists(), f"sshd of {host} does not end")

    def start_sshd(self, host: str) -> None:
        """Take connections; nothing to do if the host does."""
        self._start_sshds([host])

    def _start_sshds(self, names: Sequence[str]) -> None:
        config = str(self.directory / "sshd_config")
        command = [program("sshd") or "sshd", "-f", config, "-E", "/run/sshd.log"]
        files = {name: self.path(name, "/run/sshd.pid") for name in names}
        nowhere = subprocess.DEVNULL
        missing = [name for name, file in files.items() if not file.exists()]
        for process in [
            self.popen(name, command, stdout=nowhere, stderr=nowhere) for name in missing
        ]:
            process.wait()
        for name, file in files.items():
            _wait_for(file.exists, f"sshd of {name} does not start")

    def hide(self, host: str, path: str | Path, *, behind: str | Path | None = None) -> None:
        """Put another file or directory over a path of one host; by default an empty directory.

        A link is followed. To make a file missing, hide its directory.
        """
        if behind is None:
            command = ["mount", "-t", "tmpfs", "tmpfs", str(path)]
        else:
            command = ["mount", "--bind", str(behind), str(path)]
        self.run(host, command, check=True)

    def reveal(self, host: str, path: str | Path) -> None:
        """Take it away again, also from under processes that use it."""
        self.run(host, ["umount", "--lazy", str(path)], check=True)


def _in_network(pid: int, command: Sequence[str]) -> list[str]:
    name, *words = command
    return ["nsenter", f"--target={pid}", "--net", "--", program(name) or name, *words]


def _output(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def _check(command: Sequence[str], text: str = "") -> None:
    done = _output(command, text)
    if done.returncode != 0:
        raise ClusterError(f"{command!r} ended with {done.returncode}: {done.stderr.strip()}")


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").splitlines() or ["it said nothing"])[-1]


def _names(path: Path) -> frozenset[str]:
    return frozenset(entry.name for entry in path.iterdir())


def _wait_for(condition: Callable[[], bool], complaint: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > until_s:
            raise ClusterError(f"{complaint} within {PATIENCE_S:.0f} s")
        time.sleep(0.005)
