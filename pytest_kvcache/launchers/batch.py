"""What batch systems set in a job's environment, and what launchers make of it.

One table. A launcher that finds itself in a job takes hosts and slots from there, which
has none for the coordinator, and starts its daemons through the batch system. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSystem:
    """One batch system, as seen from inside one of its jobs."""

    name: str
    variables: frozenset[str]
    """Any of them tells that this is a job of it."""
    allocators: tuple[str, ...] = ()
    """Open MPI's components (``ras``) that read hosts and slots from it."""
    starter: str | None = None
    """What replaces ssh unless it is disabled: ``plm_ssh_disable_NAME`` of Open MPI 5."""


# Components and variables by the sources of Open MPI 4 (orte/mca/{ras,plm}) and of PRRTE 2
# to 4 (src/mca/{ras,plm}), and of MPICH's hydra (tools/bootstrap). A name that a build lacks
# may stand in a list of exclusions.
BATCH_SYSTEMS = (
    BatchSystem(
        name="Slurm",
        variables=frozenset({"SLURM_JOB_ID", "SLURM_JOBID"}),
        allocators=("slurm",),
    ),
    BatchSystem(
        name="PBS",  # and its relatives: Torque, OpenPBS, PBS Professional
        variables=frozenset({"PBS_JOBID", "PBS_ENVIRONMENT", "PBS_NODEFILE"}),
        allocators=("pbs", "tm"),
    ),
    BatchSystem(
        name="Grid Engine",
        variables=frozenset({"PE_HOSTFILE", "SGE_TASK_ID", "SGE_JOB_SPOOL_DIR"}),
        allocators=("gridengine",),
        starter="qrsh",
    ),
    BatchSystem(
        name="LSF",
        variables=frozenset(
            {"LSB_JOBID", "LSB_HOSTS", "LSB_MCPU_HOSTS"}
            | {"LSB_DJOB_HOSTFILE", "LSB_AFFINITY_HOSTFILE"}
        ),
        allocators=("lsf",),
    ),
    BatchSystem(
        name="LoadLeveler",
        variables=frozenset({"LOADL_STEP_ID", "LOADL_HOSTFILE"}),
        allocators=("loadleveler",),
        starter="llspawn",
    ),
    BatchSystem(
        name="Flux", variables=frozenset({"FLUX_JOB_ID", "FLUX_URI"}), allocators=("flux",)
    ),
    BatchSystem(
        name="Cobalt", variables=frozenset({"COBALT_JOBID", "COBALT_NODEFILE"})
    ),
    BatchSystem(
        name="ALPS",
        variables=frozenset({"ALPS_APP_ID", "BASIL_RESERVATION_ID", "BATCH_PARTITION_ID"}),
        allocators=("alps",),
    ),
)  # fmt: skip


def batch_systems(environ: Mapping[str, str]) -> tuple[BatchSystem, ...]:
    """Return those that this environment shows a job of, usually none or one."""
    return tuple(system for system in BATCH_SYSTEMS if not system.variables.isdisjoint(environ))
