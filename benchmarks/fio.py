"""fio beside us: its command for a pattern, and the figures of its JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GIB = 1 << 30
MISSING = "fio is not installed, and these figures are ratios to it: apt install fio"
_PERCENTILES = {"p50": "50.000000", "p95": "95.000000", "p99": "99.000000", "p999": "99.900000"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FioJob:
    """A pattern. Sizes in bytes, ``size_bytes`` per job; ``kind`` is read or write.

    Offsets are random. ``direct`` is O_DIRECT, ``memory`` what buffers are made of (fio's
    ``iomem``).
    """

    kind: str
    block_bytes: int
    jobs: int
    depth: int
    engine: str
    size_bytes: int
    seconds: float
    ramp_s: float = 0.5
    direct: bool = True
    memory: str = "malloc"

    def argv(self, directory: Path) -> list[str]:
        """The command. Every run lays its files out anew, as ours does, and removes them.

        Buffers are random once and changed a little before each write (fio's default,
        ``scramble_buffers``), which is what our stamps do; refilling them would charge
        fio with a random number generator.
        """
        return [
            "fio", "--output-format=json", "--name=beside", "--group_reporting",
            f"--rw=rand{self.kind}",
            f"--bs={self.block_bytes}", f"--numjobs={self.jobs}", f"--iodepth={self.depth}",
            f"--ioengine={self.engine}", f"--size={self.size_bytes}",
            f"--direct={int(self.direct)}", f"--iomem={self.memory}", "--invalidate=1",
            "--randrepeat=0", "--norandommap", "--clat_percentiles=0", "--lat_percentiles=1",
            f"--percentile_list={':'.join(map(str, (50, 95, 99, 99.9)))}",
            "--time_based", f"--runtime={int(self.seconds * 1000)}ms",
            f"--ramp_time={int(self.ramp_s * 1000)}ms",
            f"--directory={directory}", "--unlink=1", "--overwrite=1",
        ]  # fmt: skip

    def run(self, directory: Path) -> dict[str, Any]:
        """Run it; figures as ``figures`` gives them. Raises CalledProcessError."""
        done = subprocess.run(
            self.argv(directory), check=True, capture_output=True, text=True, cwd=directory
        )
        return {"job": asdict(self), **figures(json.loads(done.stdout), self.kind)}


def memory_for(buffer_bytes: int, meminfo: str) -> str:
    """``mmaphuge``, which our buffers are too, if the kernel has huge pages in reserve for it.

    ``meminfo`` is the text of /proc/meminfo. Else ``malloc``: small pages, of which a
    transfer of some MiB pins hundreds and reaches the device in more pieces.
    """
    fields = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    free = int(fields.get("HugePages_Free", "0"))
    page_bytes = int(fields.get("Hugepagesize", "0 kB").split()[0]) * 1024
    return "mmaphuge" if free * page_bytes >= buffer_bytes > 0 else "malloc"


def is_missing() -> bool:
    """Whether there is no fio here."""
    return shutil.which("fio") is None


def version() -> str:
    """The version that fio prints."""
    done = subprocess.run(["fio", "--version"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def figures(report: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What one group of jobs did: rates per second, latency (fio's lat) in ms, CPU seconds per GiB.

    Raises ValueError if the report has no such group, or one that failed.
    """
    if len(report["jobs"]) != 1:
        raise ValueError(f"fio reports {len(report['jobs'])} groups; it must be 1")
    (group,) = report["jobs"]
    if group["error"]:
        raise ValueError(f"fio ended with error {group['error']}; look at its directory and size")
    part = group[kind]
    if not part["io_bytes"]:
        raise ValueError(f"fio made no {kind}; give it more seconds")
    percentiles = part["lat_ns"]["percentile"]
    cpu_s = (group["usr_cpu"] + group["sys_cpu"]) / 100 * group["job_runtime"] / 1000
    return {
        "gib_per_s": part["bw_bytes"] / GIB,
        "ops_per_s": part["iops"],
        "ms": {name: percentiles[key] / 1e6 for name, key in _PERCENTILES.items()},
        "cpu_s_per_gib": cpu_s / (part["io_bytes"] / GIB),
        "count": part["total_ios"],
    }
