"""Everything of one pytest invocation: the run file. Pure.

It holds everything from which its summaries can be computed again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import ResultError
from pytest_kvcache.plan.interference import without_stores
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.provenance import provenance_of
from pytest_kvcache.results.record import check_finite
from pytest_kvcache.version import RUN_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.provenance import Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Everything of one pytest invocation: the run file."""

    run_id: str
    started_at: str
    command: tuple[str, ...]
    version: str
    commit: str | None
    environment: Mapping[str, Any]
    cases: tuple[CaseResult, ...] = field(default=())

    @property
    def asked(self) -> tuple[CaseResult, ...]:
        """The cases that were asked for; steps of a search, and sides without stores, are not."""
        return tuple(case for case in self.cases if not _is_beside(case.plan))

    @property
    def shown(self) -> tuple[CaseResult, ...]:
        """What is to be seen: these, and what none of them has, for it was cut off."""
        on_the_way = {
            (step.case, step.digest)
            for case in self.cases
            if case.path is not None
            for step in case.path.steps
        }
        others = [
            without_stores(c.plan) for c in self.cases if c.plan.interference == "with-stores"
        ]
        return tuple(
            c
            for c in self.cases
            if (c.name, c.plan_digest) not in on_the_way and c.plan not in others
        )

    def provenance(self, case: CaseResult) -> Provenance:
        """What stands behind the values of one of its cases."""
        return provenance_of(
            case.trials,
            case.effective_plan.workload,
            {**self.environment, "version": self.version},
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunResult:
        """The inverse of ``to_json``; ResultError for another schema or a missing part."""
        if data.get("schema") != RUN_SCHEMA:
            raise ResultError(f"the schema is {data.get('schema')!r}; it must be {RUN_SCHEMA!r}")
        if not isinstance(data.get("cases"), list):
            raise ResultError("a run file's cases must be a list")
        check_finite(data)
        try:
            return cls(
                run_id=data["run_id"],
                started_at=data["started_at"],
                command=tuple(data["command"]),
                version=data["version"],
                commit=data["commit"],
                environment=data["environment"],
                cases=tuple(CaseResult.from_json(case) for case in data["cases"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultError(
                f"a part of the run file is missing or odd: {error!r}; {_writer(data)}"
            ) from error
        except ResultError as error:
            raise ResultError(f"{error}; {_writer(data)}") from error

    def to_json(self) -> dict[str, Any]:
        """The run file."""
        return {
            "schema": RUN_SCHEMA,
            "run_id": self.run_id,
            "started_at": self.started_at,
            "command": list(self.command),
            "version": self.version,
            "commit": self.commit,
            "environment": dict(self.environment),
            "cases": [case.to_json() for case in self.cases],
        }


def _is_beside(plan: Plan) -> bool:
    """Whether a case is there for another one's sake."""
    return plan.search_step or plan.interference == "without-stores"


def _writer(data: Mapping[str, Any]) -> str:
    """What wrote a run file, and reads it unless somebody has changed it."""
    commit = f", commit {str(data['commit'])[:12]}," if data.get("commit") else ""
    version = data.get("version", "of an unknown version")
    return f"pytest-kvcache {version}{commit} wrote it, and reads it unless it was changed"
