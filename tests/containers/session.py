"""A pytest session of the benchmark with ranks in containers; not a test module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.containers.engine import IMAGE
from tests.site import PATIENCE_S, SUITE, is_locked, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SMALL = (
    *SUITE, "-p", "no:cacheprovider", "-rf", "--kv-exec-type=docker", f"--kv-image={IMAGE}",
    "--kv-np=2", "--kv-oversubscribe", "--kv-allow-run-as-root", "--kv-model=tiny-1b",
    "--kv-num-users=5", "--kv-context-scale=0.05", "--kv-block-tokens=16", "--kv-duration=1",
    "--kv-ramp=0", "--kv-trials=1", "--kv-metrics=read.p50_ms",
)  # fmt: skip


@dataclass
class Session:
    """``pytest`` in ``place``, a directory on a disk; the cache is beside the results."""

    place: Path
    env: Mapping[str, str]
    args: tuple[str, ...] = ()
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.cache.mkdir(exist_ok=True)
        words = [*SMALL, f"--kv-cache-dir={self.cache}", *self.args]
        environ = {k: v for k, v in os.environ.items() if k not in ("CI", "BUILD_NUMBER")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *words],
            cwd=self.place,
            env={**environ, "COLUMNS": "80", **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @property
    def cache(self) -> Path:
        """The cache directory."""
        return self.place / "cache"

    def end(self) -> str:
        """Wait for its end; everything it printed."""
        text, _ = self.process.communicate(timeout=PATIENCE_S)
        return text

    def close(self) -> None:
        """End it at once, and leave no pipe of it."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def run_file(self) -> Path:
        """The only one."""
        (path,) = self.place.glob("results/*/run.json")
        return path

    def run(self) -> dict[str, Any]:
        """Its content."""
        data: dict[str, Any] = json.loads(self.run_file().read_text(encoding="utf-8"))
        return data

    def trials(self) -> list[dict[str, Any]]:
        """Those of its only case."""
        (case,) = self.run()["cases"]
        return list(case["trials"])

    def wait_for_window(self, trial: int = 0) -> Path:
        """Wait until the ranks of a trial measure; its directory."""
        wait_for(lambda: self.process.poll() is not None or self._measuring(trial))
        found = self._measuring(trial)
        assert found, self.end()
        return found[0]

    def _measuring(self, trial: int) -> list[Path]:
        events = self.place.glob(f"results/*/*/trial-{trial + 1}/events.jsonl")
        return [path.parent for path in events if '"phase":"window"' in path.read_text()]

    def nothing_is_left(self) -> bool:
        """Neither data nor the lock of this host."""
        return not any(self.cache.iterdir()) and not is_locked(os.uname().nodename)
