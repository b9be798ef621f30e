"""The faults that a run on several hosts must survive: what happens, and what must be said.

Each is one row of docs/faults.md, which ``tox -e faults`` writes.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.plugins.kvcache_test_faults import SWITCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.session import Session

DEADLINE_S = 20  # of what only a deadline ends; the trial before it must be over by then
BAD = "n2"  # the host where everything goes wrong; ranks 1 of 2 and 2 of 3 run there


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """``inject`` does it, ``mend`` undoes it; ``phase`` None: before the launch is begun.

    ``said`` is a regular expression on the first line of the failed trial's error.
    ``hangs``: nobody but the deadline can notice it. ``cut``: the host can't be reached.
    ``lasts``: it is there until it is mended, which may be after the next case has begun.
    """

    name: str
    inject: Callable[[Session], None]
    said: str
    mend: Callable[[Session], None] = lambda _session: None
    phase: str | None = "window"
    args: tuple[str, ...] = ()
    hangs: bool = False
    cut: bool = False
    lasts: bool = False


def _switch(word: str) -> Callable[[Session], None]:
    def write(session: Session) -> None:
        session.cluster.path(BAD, SWITCH).write_text(word)

    return write


def _unswitch(session: Session) -> None:
    session.cluster.path(BAD, SWITCH).unlink(missing_ok=True)


def _kill(host: str, word: str, sig: int) -> Callable[[Session], None]:
    def kill(session: Session) -> None:
        session.cluster.kill(host, session.find(host, word).pid, sig)

    return kill


def _fill(session: Session) -> None:
    command = ["dd", "if=/dev/zero", "of=/mnt/kv/ballast", "bs=1M"]
    session.cluster.run(BAD, command)


def _empty(session: Session) -> None:
    session.cluster.path(BAD, "/mnt/kv/ballast").unlink(missing_ok=True)


FAULTY = ("--kv-plugin=kvcache_test_faults", "--kv-backend=faulty")
RANK = rf"rank 1 (\(pid \d+\) )?on host {BAD}"

FAULTS = (
    Fault(
        name="host cut off before the launch",
        inject=lambda session: session.cluster.cut(BAD),
        mend=lambda session: session.cluster.heal(BAD),
        said=rf"host {BAD} .*(lost|reached)",
        phase=None,
        cut=True,
    ),
    Fault(
        name="host cut off: frames dropped",
        inject=lambda session: session.cluster.cut(BAD),
        mend=lambda session: session.cluster.heal(BAD),
        said=rf"host {BAD} with rank 1 is lost",
        cut=True,
    ),
    Fault(
        name="host cut off: carrier down",
        inject=lambda session: session.cluster.carrier(BAD, up=False),
        mend=lambda session: session.cluster.carrier(BAD, up=True),
        said=rf"host {BAD} with rank 1 is lost",
        cut=True,
    ),
    Fault(
        name="no sshd",
        inject=lambda session: session.cluster.stop_sshd(BAD),
        mend=lambda session: session.cluster.start_sshd(BAD),
        said=rf"host {BAD} can't be reached over ssh \(Connection refused\)",
        phase=None,
    ),
    Fault(
        name="interpreter and launcher gone",
        inject=lambda session: session.cluster.hide(BAD, session.column.prefix / "bin"),
        mend=lambda session: session.cluster.reveal(BAD, session.column.prefix / "bin"),
        said=rf"host {BAD}: .*(is missing; install the launcher|could not be asked)",
        phase=None,
    ),
    Fault(
        name="rank killed (SIGKILL)",
        inject=_kill(BAD, "pytest_kvcache.ranks.worker", signal.SIGKILL),
        said=rf"{RANK} (was killed by signal 9|ended with exit code 9)",
    ),
    Fault(
        name="rank stopped (SIGSTOP)",
        inject=_kill(BAD, "pytest_kvcache.ranks.worker", signal.SIGSTOP),
        said=rf"{RANK}: has not reported for 10 s",
    ),
    Fault(
        name="rank hangs in a read",
        inject=_switch("hang"),
        mend=_unswitch,
        said="not over after|not all ranks",
        args=(*FAULTY, f"--kv-deadline={DEADLINE_S}"),
        hangs=True,
    ),
    Fault(
        name="rank raises",
        inject=_switch("raise"),
        mend=_unswitch,
        said=rf"{RANK}: RuntimeError: a bug in a backend",
        args=FAULTY,
    ),
    Fault(
        name="rank exits 0",
        inject=_switch("exit"),
        mend=_unswitch,
        said=RANK,
        args=FAULTY,
    ),
    Fault(
        name="launcher's daemon killed",
        inject=lambda session: _kill(BAD, session.column.daemon, signal.SIGKILL)(session),
        said=rf"host {BAD}: the launcher's daemon there is gone|{RANK} was the first to end",
    ),
    Fault(
        name="launcher killed",
        inject=lambda session: _kill("n0", session.column.running, signal.SIGKILL)(session),
        said="the launcher was killed by signal 9",
    ),
    Fault(
        name="disk full on one host",
        inject=_fill,
        mend=_empty,
        said=rf"{RANK}: .*No space left on device",
        args=("--kv-duration=6", "--kv-storage-capacity-gb=0.02", "--kv-store=file"),
        lasts=True,
    ),
)
