"""Cases planned and launched without pytest; what the benchmarks share."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING

from pytest_kvcache.atomic import write_json
from pytest_kvcache.launch.preflight import find_setup
from pytest_kvcache.launchers.protocol import LaunchJob
from pytest_kvcache.options.options import build_options
from pytest_kvcache.plan.planner import Planner, name_cases
from pytest_kvcache.registry import build_registry
from pytest_kvcache.session import new_run_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.planner import Case


def options(**given: str | Sequence[str]) -> Options:
    """Options as given in a call; repeatable ones as a list of texts."""
    return build_options({name: (value, "call") for name, value in given.items()})


def plan_case(asked: Options) -> Case:
    """The one case the options ask for."""
    registry = build_registry(asked.plugin)
    return Planner(registry, new_run_id()).plan(asked, name_cases(asked, registry)[0])


def launch(case: Case, directory: Path) -> tuple[float, int]:
    """Seconds from the launch to the first measured operation; peak bytes of a rank.

    Calibration and population are not in these seconds.
    """
    plan = case.plan
    write_json(directory / "plan.json", plan.to_json())
    asked = options(allow_run_as_root="true")
    setup = find_setup(asked, build_registry(), os.environ)
    argv = setup.launcher.argv(
        LaunchJob(
            hosts=(("127.0.0.1", plan.np),),
            controller_host="127.0.0.1",
            local_hosts=frozenset({"127.0.0.1"}),
            program=(
                setup.python, "-m", "mpi4py", "-m", "pytest_kvcache.ranks.worker",
                str(directory), str(plan.world_size),
            ),
            env={"OMP_NUM_THREADS": "1"},
            params=(),
            allow_run_as_root=True,
        )
    )  # fmt: skip
    began_ns = time.monotonic_ns()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    record = json.loads((directory / "trial.json").read_text())
    lines = (directory / "events.jsonl").read_text().splitlines()
    start_ns = next(e["start_ns"] for e in map(json.loads, lines) if "start_ns" in e)
    population_s = max(rank["population_s"] for rank in record["ranks"])
    first_s = min(rank["start_s"] for rank in record["ranks"])
    peak = max(rank["peak_rss_bytes"] for rank in record["ranks"])
    return (start_ns - began_ns) / 1e9 + first_s - population_s, peak
