"""What a result was measured on, and whether two of them may be compared. Pure.

Imports neither pytest nor MPI; known to everyone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.errors import ResultError
from pytest_kvcache.verdictcodes import INVALIDATING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What stands behind a case's values; None is what an older file does not tell."""

    is_storage: bool | None = None
    """Whether every rank of every trial wrote to storage, not to memory or nowhere."""
    verdicts: tuple[str, ...] | None = None
    """The codes of all trials' verdicts, sorted, each once."""

    def __post_init__(self) -> None:
        if self.is_storage is not None and not isinstance(self.is_storage, bool):
            raise ResultError(f"is_storage is {self.is_storage!r}; it must be true or false")
        if not all(isinstance(code, str) for code in self.verdicts or ()):
            raise ResultError(f"verdicts are {self.verdicts!r}; they must be a list of codes")

    @property
    def is_told(self) -> bool:
        """Whether nothing is unknown."""
        return self.is_storage is not None and self.verdicts is not None

    @property
    def invalidating(self) -> frozenset[str]:
        """The verdicts that fail a trial unless somebody allows them."""
        return INVALIDATING.intersection(self.verdicts or ())

    def to_json(self) -> dict[str, Any]:
        """As in a benchmark entry's ``extra_info``."""
        verdicts = None if self.verdicts is None else list(self.verdicts)
        return {"is_storage": self.is_storage, "verdicts": verdicts}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Evidence:
        """The inverse of ``to_json``; what is not there is not told."""
        verdicts = data.get("verdicts")
        if not (verdicts is None or isinstance(verdicts, list)):
            raise ResultError(f"verdicts are {verdicts!r}; they must be a list of codes")
        is_storage: Any = data.get("is_storage")  # __post_init__ checks it
        return cls(is_storage=is_storage, verdicts=None if verdicts is None else tuple(verdicts))


UNTOLD: Final = Evidence()
"""Nothing is known."""


def evidence_of(trials: Iterable[Mapping[str, Any]]) -> Evidence:
    """The evidence of a case from its trials as in the run file; ResultError for odd ones.

    A trial that left no record has no ranks, and says nothing about the storage.
    """
    flags: list[bool] = []
    codes: set[str] = set()
    for trial in trials:
        try:
            flags += [rank["is_storage"] for rank in trial.get("ranks", ())]
            codes |= {verdict["code"] for verdict in trial["verdicts"]}
        except (AttributeError, KeyError, TypeError) as error:
            raise ResultError(f"a trial's ranks or verdicts are odd ({error!r})") from error
    if not all(isinstance(flag, bool) for flag in flags):
        raise ResultError(f"is_storage of the ranks is {flags}; it must be true or false")
    return Evidence(
        is_storage=all(flags) if flags else None, verdicts=tuple(sorted(map(str, codes)))
    )


def incomparable(baseline: Evidence, now: Evidence) -> str | None:
    """Why the two must not be compared; None: nothing that is told stands against it."""
    if None not in (baseline.is_storage, now.is_storage) and baseline.is_storage != now.is_storage:
        storage, other = ("the baseline", "this run")
        if now.is_storage:
            storage, other = other, storage
        return (
            f"{storage} was measured on storage and {other} was not (NOT_STORAGE): compare"
            " runs of one backend (--kv-backend)"
        )
    if baseline.verdicts is None or now.verdicts is None:
        return None
    only_before = baseline.invalidating - now.invalidating
    only_now = now.invalidating - baseline.invalidating
    for side, codes in (("this run", only_now), ("the baseline", only_before)):
        if codes:
            shown = ", ".join(sorted(codes))
            return f"only {side} has the invalidating verdict {shown}: mend its cause, repeat it"
    return None
