"""A pytest session of the benchmark on the launcher's host of a test cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cluster.launchers import COLUMNS, Column
from tests.site import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cluster.cluster import Cluster
    from tests.cluster.processes import HostProcess, Process

PLUGINS = Path(__file__).parents[1] / "plugins"
CACHE_DIR = "/mnt/kv"  # private to each host
RESULTS = "/tmp/results"  # private to the launcher's host
SMALL = (
    "--kv-allow-run-as-root", "--kv-oversubscribe", "--kv-model=tiny-1b", "--kv-num-users=2",
    "--kv-context-scale=0.05", "--kv-block-tokens=16", "--kv-duration=2", "--kv-ramp=0",
    "--kv-allow-invalid", "--kv-metrics=read.p50_ms",
    f"--kv-cache-dir={CACHE_DIR}", f"--kv-results-dir={RESULTS}",
)  # fmt: skip


def by_ssh(cluster: Cluster) -> str:
    """The option that has the hosts of a cluster reached by ssh."""
    return f"--kv-ssh={' '.join(cluster.ssh_command)}"


@dataclass
class Session:
    """``pytest`` on n0; its files are looked at from the machine while it runs."""

    cluster: Cluster
    args: Sequence[str]
    column: Column = COLUMNS[0]
    env: dict[str, str] = field(default_factory=dict)
    without: Sequence[str] = ()
    """Of the usual options, those that are left out."""
    within: Sequence[str] = ()
    """What runs pytest, such as an allocation."""
    process: HostProcess = field(init=False)

    def __post_init__(self) -> None:
        usual = (by_ssh(self.cluster), *SMALL)
        command = [
            *self.within, self.column.python, "-m", "pytest", "--pyargs", "pytest_kvcache.suite",
            "-p", "no:cacheprovider", "-rf", *(arg for arg in usual if arg not in self.without),
            *self.column.args, *self.args,
        ]  # fmt: skip
        environ = {k: v for k, v in os.environ.items() if k not in ("CI", "BUILD_NUMBER")}
        self.process = self.cluster.popen(
            "n0",
            command,
            cwd="/tmp",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                **environ,
                "PYTHONPATH": str(PLUGINS),
                "COLUMNS": "80",
                **self.column.env,
                **self.env,
            },
        )

    def end(self, timeout_s: float = 120.0) -> str:
        """Wait for its end; everything it printed."""
        text, _ = self.process.communicate(timeout=timeout_s)
        return text

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send a signal to pytest itself."""
        self.process.send_signal(sig)

    # --- what it has written -------------------------------------------------------------

    @property
    def run_file(self) -> Path | None:
        """The run file, once there is one."""
        results = self.cluster.path("n0", RESULTS)
        return next(iter(results.glob("*/run.json")), None) if results.exists() else None

    def trials(self, case: int = 0) -> list[dict[str, Any]]:
        """What the run file says of a case's trials so far."""
        if self.run_file is None:
            return []
        cases = json.loads(self.run_file.read_text())["cases"]
        return list(cases[case]["trials"]) if len(cases) > case else []

    def wait_for_trials(self, count: int, case: int = 0) -> float:
        """Wait until so many are in the run file; the time of the last."""
        self._wait(lambda: len(self.trials(case)) >= count)
        return time.monotonic()

    def wait_for_phase(self, phase: str, trial: int, case: str = "*") -> None:
        """Wait until a launch is in a phase."""
        results = self.cluster.path("n0", RESULTS)

        def is_there() -> bool:
            events = results.glob(f"*/{case}/trial-{trial + 1}/events.jsonl")
            return any(f'"phase":"{phase}"' in path.read_text() for path in events)

        self._wait(is_there)

    def _wait(self, condition: Any) -> None:
        """Wait, but not for a session that has ended."""
        wait_for(lambda: condition() or self.process.poll() is not None)
        if not condition():
            raise AssertionError(f"the session ended first:\n{self.end()}")

    # --- its processes -------------------------------------------------------------------

    def find(self, host: str, word: str) -> Process:
        """The process of a host that has ``word`` in its command, the youngest of several."""
        found: list[Process] = []

        def is_there() -> bool:
            found[:] = [p for p in self.cluster.processes(host) if any(word in a for a in p.argv)]
            return bool(found)

        self._wait(is_there)
        return found[-1]
