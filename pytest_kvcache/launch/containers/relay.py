"""Holds the container that the launcher runs in, and reaches other hosts for it.

``python -m pytest_kvcache.launch.containers.relay FILE``, FILE being the JSON of a ``RelayConfig``:
the supervisor runs it in place of the launcher. The container lives as long as the pipe
to its standard input is open, so none outlives this program, however it ends. Requests of
the agent (rshagent.py) start containers on other hosts, held in the same way through ssh.
Controller side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.launch.containers.command import RelayConfig
from pytest_kvcache.launch.containers.rshagent import AGENT_VARIABLE, LOST_EXIT, REQUEST_BYTES
from pytest_kvcache.launch.containers.runtimes import REFUSED_EXIT, exit_meaning

if TYPE_CHECKING:
    from types import FrameType

_PATIENCE_S = 25.0  # for the first process of a remote container and its cleanup helpers
_LAST_WORDS_S = 1.0  # for the threads that report how a container ended
_SIGNALLED = 128
# These are no answer to our detaching, whichever was first: refused, killed, cut off.
_MEANINGFUL_EXITS = (REFUSED_EXIT, 137, LOST_EXIT)
_OUTPUTS = 2  # the descriptors that come with a request: stdout and stderr


class Relay:
    """Starts the containers of other hosts on request of the one that is held here."""

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        self._key = secrets.token_hex(16)
        self._name = f"pytest-kvcache-{secrets.token_hex(8)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"\0{self._name}")
        self._listener.listen(len(config.remotes) + 1)
        self._remotes: list[subprocess.Popen[bytes]] = []
        self._answers: list[threading.Thread] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def address(self) -> str:
        """What the agent's variable has to say."""
        return f"{self._name}:{self._key}"

    def close(self) -> None:
        """Detach from all remote containers, and wait until they have gone."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        for process in self._remotes:
            _detach(process)
        for process in self._remotes:
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.terminate()
        for answer in self._answers:
            answer.join(_LAST_WORDS_S)

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _address = self._listener.accept()
                answer = threading.Thread(target=self._answer, args=(connection,), daemon=True)
                self._answers.append(answer)
                answer.start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            data, fds, _flags, _address = socket.recv_fds(connection, REQUEST_BYTES, _OUTPUTS)
            key, _, rest = os.fsdecode(data).partition("\0")
            host, _, command = rest.partition("\0")
            if key == self._key and host in self._config.remotes and len(fds) == _OUTPUTS:
                process = self._start(host, command, fds)
                threading.Thread(target=_follow, args=(connection, process), daemon=True).start()
                code = _shell_code(process.wait())
                if code in _MEANINGFUL_EXITS or (code and not _is_detached(process)):
                    _report(f"host {host}", code)
                with suppress(OSError):  # the agent is gone
                    connection.send(str(code).encode())

    def _start(self, host: str, command: str, outputs: list[int]) -> subprocess.Popen[bytes]:
        """Start the client of a container on ``host`` that runs the shell's ``command``."""
        try:
            process = subprocess.Popen(
                self._config.remote_argv(host, command),
                stdin=subprocess.PIPE,
                stdout=outputs[0],
                stderr=outputs[1],
                start_new_session=True,  # whoever ends us must not end it before the launcher
            )
        finally:
            for fd in outputs:
                os.close(fd)
        self._remotes.append(process)
        return process


def _follow(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """Detach from the remote container when the agent that asked for it is gone."""
    with suppress(OSError):
        connection.recv(1)
    _detach(process)


def _detach(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _is_detached(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdin is not None
    return process.stdin.closed


def _shell_code(code: int) -> int:
    return code if code >= 0 else _SIGNALLED - code


def _report(where: str, code: int) -> None:
    """Write into mpirun.log: for people, and for whatever explains a failure to them."""
    print(  # noqa: T201
        f"kvcache: the container on {where} ended: {exit_meaning(code)}",
        file=sys.stderr,
        flush=True,
    )


def main(path: str) -> int:
    """Run the container; return what its command returned."""
    config = RelayConfig.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    relay = Relay(config)
    process = subprocess.Popen(
        config.argv,
        stdin=subprocess.PIPE,
        env={**os.environ, AGENT_VARIABLE: relay.address},
        start_new_session=True,  # the container's first process ends the launcher, no signal
    )

    def end(_signum: int, _frame: FrameType | None) -> None:
        _detach(process)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    code = _shell_code(process.wait())
    relay.close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
