"""What a stream of requests depends on: options, seed, trial and rank, and on nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.workloads.fixedwork import FixedWork
from pytest_kvcache.workloads.openloop import OpenLoop, arrival_offsets_ns
from pytest_kvcache.workloads.phases import build_workload
from pytest_kvcache.workloads.scenarios import SYNTHETIC
from pytest_kvcache.workloads.synthetic import SyntheticFamily
from tests.factories import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.workloads.protocol import Request


def stream(plan: Plan, rank: int, *, at_a_rate: bool = False) -> Iterator[Request]:
    """The population and the requests of a rank, as in `Rank`; without the moments of a rate."""
    family = SyntheticFamily()
    workload = build_workload(family, plan.context(rank, None), plan.phase, plan.reread_factor)
    yield from workload.population()
    if at_a_rate:
        identity = f"{plan.seed}/{plan.trial}/{rank}"
        offsets_ns = arrival_offsets_ns(
            per_s=90.0 / plan.np, arrival="poisson", span_s=9.0, identity=identity
        )
        workload = OpenLoop(workload, offsets_ns, identity)
    else:
        workload = FixedWork(workload, 60)
    while (request := workload.next_request(0)) is not None:
        yield request._replace(arrival_ns=None)


@pytest.mark.parametrize("scenario", SYNTHETIC)
@pytest.mark.parametrize("at_a_rate", [False, True])
def test_a_rank_makes_the_same_requests_however_many_ranks_there_are(
    scenario: str, *, at_a_rate: bool
) -> None:
    alone, among_four = (
        list(islice(stream(make_plan(np=np, scenario=scenario), 0, at_a_rate=at_a_rate), 60))
        for np in (1, 4)
    )
    assert len(alone) > 30
    assert alone[: len(among_four)] == among_four[: len(alone)]


@pytest.mark.parametrize("scenario", SYNTHETIC)
def test_trials_and_ranks_make_other_requests(scenario: str) -> None:
    plan = make_plan(np=2, scenario=scenario)
    streams = [
        [request.keys for request in stream(each, rank)]
        for each in (plan, replace(plan, trial=1), replace(plan, seed=43))
        for rank in range(2)
    ]
    assert all(one != other for number, one in enumerate(streams) for other in streams[:number])


_PRINTS = """
import hashlib
from tests.factories import make_plan
from tests.workloads.test_seeds import stream
print(hashlib.sha256(repr(list(stream(make_plan(), 0))).encode()).hexdigest())
"""


@pytest.mark.thorough
def test_no_clock_and_no_process_is_in_a_request() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", _PRINTS], check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1
