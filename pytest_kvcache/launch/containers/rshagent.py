"""The launcher's ssh inside a container: asks the relay outside to reach a host.

``python -m pytest_kvcache.launch.containers.rshagent HOST COMMAND…``. A container has neither the
user's ssh nor the keys, and need not: the relay that holds the container (relay.py)
has both. It listens on an abstract Unix socket, which needs no file and which a container
in the host's network shares. The agent hands over its own stdout and stderr, so nothing
is copied, and ends with the exit code that it is sent. Either side sees the other's death
by the end of the connection. Standard library only: it is known to both sides.
"""

from __future__ import annotations

import os
import socket
import sys

AGENT_VARIABLE = "PYTEST_KVCACHE_AGENT"
"""``<name of the socket>:<key>``; the key shows that a request comes from our container."""
LOST_EXIT = 255
"""Exit code without an answer, as ssh's without a connection."""
REQUEST_BYTES = 128 * 1024
_STDOUT, _STDERR = 1, 2


def main(host: str, command: str) -> int:
    """Have ``command`` run on ``host``; return its exit code."""
    name, _, key = os.environ.get(AGENT_VARIABLE, "").partition(":")
    request = os.fsencode(f"{key}\0{host}\0{command}")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(f"\0{name}")
            socket.send_fds(connection, [request], [_STDOUT, _STDERR])
            answer = connection.recv(64)
    except OSError as error:
        print(  # noqa: T201  into mpirun.log, for people
            f"kvcache: host {host} can't be reached from this container: {error}", file=sys.stderr
        )
        return LOST_EXIT
    return int(answer) if answer else LOST_EXIT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], " ".join(sys.argv[2:])))
