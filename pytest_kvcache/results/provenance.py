"""What a result was measured on, and whether two of them may be compared. Pure.

Imports neither pytest nor MPI; known to everyone.

``facts`` are of six kinds, a table of the kind's fields each:

==============  ====================================================================
plan            every value of the plan that decides what is measured, the data too
placement       how many ranks each host has
device          the block devices that keep the bytes, name and model, and the kinds of
                layers between the filesystem and them (device mapper, RAID, loop, …)
filesystem      type and size, the server of one that comes over a network, and the mount
                options that may change what is measured (``mountoptions``)
software        Python, kernel, MPI library, launcher, this package
hosts           the names of the hosts
==============  ====================================================================

A difference in the first four closes a gate, unless the user allows that kind: it is
another load, or another storage, and no regression of this one. A device is known by its
name *and* its model, and the filesystem on it by its type *and* its size: names can
change between two boots, and then the user has to say that it is the same disk; to take
another disk for the same one would be worse. The hit ratio is no setting, but decides how
much is read: where it moved, that is reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from pytest_kvcache.errors import ResultError
from pytest_kvcache.options.rules import CLOSING
from pytest_kvcache.results.verdictcodes import INVALIDATING
from pytest_kvcache.system.mountoptions import normalised
from pytest_kvcache.units import GIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_kvcache.results.outcome import TrialResult
    from pytest_kvcache.system.filesystem import FilesystemFacts

    Facts = Mapping[str, Mapping[str, Any]]

KINDS: Final = ("plan", "placement", "device", "filesystem", "software", "hosts")
_DISTURBED: Final = frozenset(
    {
        "BUSY_DEVICE",
        "LATE_REPLAY",
        "LATE_STAMPS",
        "NOT_STEADY",
        "PAUSED",
        "STALL",
        "THROTTLED",
        "UNEVEN",
    }
)
"""Verdicts under which figures may look better than the storage is, or worse."""
_NO_STORAGE: Final = "NOT_STORAGE"
_NOT_SHOWN: Final = INVALIDATING | {_NO_STORAGE, "UNPROVEN", "WARM_METADATA"}
"""Verdicts under which figures may be those of something else: a cache, the harness, a clock.

Whoever allows them, or can't help them, judges the figures all the same, and is warned.
"""
_UNCERTAIN: Final = _DISTURBED | {"UNPROVEN", "WARM_METADATA"}
"""Verdicts that leave nothing ``ok`` where only one side has them."""
_SHOWN_ONE_SIDED: Final = _UNCERTAIN | {"SATURATED", "UNSATURATED"}
_OPTIONS: Final = "mount options"
HITS_MOVED: Final = 0.01  # of the hit ratio: as much as a percent of all blocks
LEAVES_REQUESTS: Final = frozenset(
    {
        "backend", "traits", "backend_options", "object_layout", "store", "io", "sync",
        "capacity_blocks", "queue_depth", "io_engine", "transfer_size", "cores", "verify", "data",
        "tiers", "tier_policy", "most_stores", "io_trace", "precondition_bytes", "service",
    }
)  # fmt: skip
"""Of the plan, what decides how blocks are kept and judged: whatever else differs, and whatever
a later version adds, may make other requests."""
_ABSENT: Final = object()
_LONG: Final = 60  # characters of a value that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a case's values were measured on; None is what an older file does not have."""

    is_storage: bool | None = None
    """Whether every rank of every launch wrote to storage, not to memory or nowhere."""
    verdicts: tuple[str, ...] | None = None
    """The codes of all verdicts on the launches, those without stores too; sorted, each once."""
    facts: Facts | None = field(default=None, hash=False)
    """Kind → field → value."""
    hit_ratio: float | None = None
    """The mean over trials; None also where nothing was looked up."""

    def __post_init__(self) -> None:
        if self.is_storage is not None and not isinstance(self.is_storage, bool):
            raise ResultError(f"is_storage is {self.is_storage!r}; it must be true or false")
        if not all(isinstance(code, str) for code in self.verdicts or ()):
            raise ResultError(f"verdicts are {self.verdicts!r}; they must be a list of codes")
        if self.facts is not None and not (
            isinstance(self.facts, Mapping)
            and set(self.facts) == set(KINDS)
            and all(isinstance(fields, Mapping) for fields in self.facts.values())
        ):
            raise ResultError(f"facts are odd; they must be objects of {', '.join(KINDS)}")
        if not (self.hit_ratio is None or isinstance(self.hit_ratio, (int, float))):
            raise ResultError(f"hit_ratio is {self.hit_ratio!r}; it must be a number")

    @property
    def is_known(self) -> bool:
        """Whether nothing of the provenance is unknown."""
        return None not in (self.is_storage, self.verdicts, self.facts)

    def to_json(self) -> dict[str, Any]:
        """The provenance as it stands in a benchmark entry's ``extra_info``."""
        return {
            "is_storage": self.is_storage,
            "verdicts": None if self.verdicts is None else list(self.verdicts),
            "facts": None if self.facts is None else {k: dict(v) for k, v in self.facts.items()},
            "hit_ratio": self.hit_ratio,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Provenance:
        """The inverse of ``to_json``; what is not there is unknown."""
        verdicts = data.get("verdicts")
        if not (verdicts is None or isinstance(verdicts, list)):
            raise ResultError(f"verdicts are {verdicts!r}; they must be a list of codes")
        rest: dict[str, Any] = {  # __post_init__ checks them
            name: data.get(name) for name in ("is_storage", "facts", "hit_ratio")
        }
        return cls(verdicts=None if verdicts is None else tuple(verdicts), **rest)


UNKNOWN: Final = Provenance()
"""Nothing is known."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that is not the same on both sides."""

    kind: str
    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        before, now = self.before, self.now
        if self.name == _OPTIONS and isinstance(before, list) and isinstance(now, list):
            before, now = _only(before, now), _only(now, before)
        return f"{self.name} {_shown(before)} -> {_shown(now)}"


class Placed(Protocol):
    """A rank, as far as it tells what it ran on (``RankResult``, or one that is planned)."""

    @property
    def host(self) -> str:
        """The host's name."""

    @property
    def rank(self) -> int:
        """The rank's number."""

    @property
    def filesystem(self) -> FilesystemFacts | None:
        """What holds its directory; None: it has none, or that is not known."""

    @property
    def io_mode(self) -> str | None:
        """How files were opened; None: it has not run yet."""

    @property
    def io_engine(self) -> str | None:
        """What carried its transfers out; None: likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRank:
    """A rank that has not run yet."""

    host: str
    rank: int
    filesystem: FilesystemFacts | None = None
    io_mode: str | None = None
    io_engine: str | None = None


def provenance_of(
    trials: Iterable[TrialResult],
    plan: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Provenance:
    """The provenance of a case from its trials.

    ``plan`` is what of the plan decides what is measured (`Plan.workload`); without it
    and the run's ``environment`` there are no facts. A trial that left no record has no
    ranks, and says nothing about the storage. Of a trial of two launches both count.
    """
    trials = list(trials)
    measured = [trial.measured for trial in trials if trial.measured is not None]
    ranks = [rank for trial in measured for rank in trial.ranks]
    hits = [t.cache.hit_ratio for t in measured if t.cache.hit_ratio is not None]
    codes = {verdict.code for trial in trials for verdict in trial.verdicts}
    pairs = [trial.interference for trial in trials if trial.interference is not None]
    beside = {code for pair in pairs for code in pair.without_stores.verdicts}
    facts = None
    if plan is not None and environment is not None:
        facts = facts_of(plan, environment, ranks)
    return Provenance(
        is_storage=all(rank.is_storage for rank in ranks) and _NO_STORAGE not in beside
        if ranks
        else None,
        verdicts=tuple(sorted(codes | beside)),
        facts=facts,
        hit_ratio=sum(hits) / len(hits) if hits else None,
    )


def facts_of(
    plan: Mapping[str, Any], environment: Mapping[str, Any], ranks: Iterable[Placed]
) -> Facts:
    """Everything that two results may differ in, apart from what was measured."""
    ranks = list(ranks)
    counts: dict[str, set[int]] = {}
    for rank in ranks:
        counts.setdefault(rank.host, set()).add(rank.rank)
    filesystems = [rank.filesystem for rank in ranks if rank.filesystem is not None]
    software = ("python", "implementation", "kernel", "mpi", "launcher", "image_id", "version")
    return {
        "plan": dict(_flat(plan)),
        "placement": {"ranks per host": _joined(sorted(map(len, counts.values()))) or None},
        "device": {
            "device": _joined(_each(map(_device, filesystems))) or None,
            "layers": _joined(_each(map(_layers, filesystems))) or None,
        },
        "filesystem": {
            "filesystem": _joined(_each(map(_filesystem, filesystems))) or None,
            _OPTIONS: _mount_options(ranks),
            "io mode": _joined(_each(rank.io_mode for rank in ranks)) or None,
        },
        "software": {
            **{name: environment.get(name) for name in software},
            "io engine": _joined(_each(rank.io_engine for rank in ranks)) or None,
        },
        "hosts": {"hosts": _joined(sorted(counts)) or None},
    }


def differences(baseline: Provenance, now: Provenance) -> list[Difference]:
    """Every fact that both sides have, and have differently, by kind."""
    if baseline.facts is None or now.facts is None:
        return []
    found = []
    for kind in KINDS:
        before, after = baseline.facts[kind], now.facts[kind]
        for name in dict.fromkeys([*before, *after]):
            pair = before.get(name, _ABSENT), after.get(name, _ABSENT)
            is_known = kind == "plan" or not any(side is None or side is _ABSENT for side in pair)
            if is_known and pair[0] != pair[1]:
                found.append(Difference(kind, name, *pair))
    return found


def _unknown_facts(baseline: Provenance, now: Provenance) -> Iterator[str]:
    """What only this run tells, as its version looks for more: not known to be the same."""
    if baseline.facts is None or now.facts is None:
        return
    for kind in KINDS:
        known, stated = baseline.facts[kind], now.facts[kind]
        names = [name for name, value in stated.items() if value is not None and name not in known]
        if kind != "plan" and names:
            yield f"{kind}: the baseline does not tell its {', '.join(names)}; record it anew"


def incomparable(
    baseline: Provenance, now: Provenance, across: frozenset[str] = frozenset()
) -> str | None:
    """Why the two must not be compared; None: nothing that is known stands against it.

    ``across`` are the kinds of facts that may differ.
    """
    if None not in (baseline.is_storage, now.is_storage) and baseline.is_storage != now.is_storage:
        storage, other = ("the baseline", "this run")
        if now.is_storage:
            storage, other = other, storage
        return (
            f"{storage} was measured on storage and {other} was not (NOT_STORAGE): compare"
            " runs of one backend (--kv-backend)"
        )
    for side, codes in _one_sided(baseline, now, INVALIDATING):
        if codes:
            shown = ", ".join(sorted(codes))
            return f"only {side} has the invalidating verdict {shown}: mend its cause, repeat it"
    return other_settings(baseline, now, across)


def other_settings(baseline: Provenance, now: Provenance, across: frozenset[str]) -> str | None:
    """What of the settings differs that the user has not allowed to."""
    closing = [d for d in differences(baseline, now) if d.kind in CLOSING - across]
    if not closing:
        return None
    kinds = ",".join(dict.fromkeys([*sorted(across), *(d.kind for d in closing)]))
    return (
        f"{closing[0].kind} differs from the baseline's ({'; '.join(map(str, closing))}): compare"
        f" runs of one kind, or say that it may differ (--kv-compare-across={kinds})"
    )


def uncertain(baseline: Provenance, now: Provenance) -> str | None:
    """Why a better figure may be none: one side alone was disturbed, unproven or warm."""
    for side, codes in _one_sided(baseline, now, _UNCERTAIN):
        if disturbances := codes & _DISTURBED:
            shown = ", ".join(sorted(disturbances))
            return f"only {side} has {shown}, so its figures can't be relied on: repeat it"
        if codes:
            shown = ", ".join(sorted(codes))
            return (
                f"only {side} has {shown}, so its figures may be of a cache: compare runs that are"
                " both proven, or neither"
            )
    return None


def cautions(now: Provenance) -> str:
    """Which verdicts a reader must know of a run that is judged alone; empty: none."""
    return "; ".join(_had("this run", frozenset(now.verdicts or ())))


def both_cautions(baseline: Provenance, now: Provenance) -> str:
    """What no side can be preferred for: both have such a verdict, or who has is not known."""
    if baseline.verdicts is None or now.verdicts is None:
        side, known = ("this run", now) if now.verdicts is not None else ("the baseline", baseline)
        codes = (_DISTURBED | _NOT_SHOWN).intersection(known.verdicts or ())
        return f"{side} had {', '.join(sorted(codes))}, of the other is unknown" if codes else ""
    codes = frozenset(baseline.verdicts).intersection(now.verdicts)
    return "; ".join(_had("both sides", codes))


def _had(who: str, codes: frozenset[str]) -> Iterator[str]:
    """The disturbances, and apart from them what may be no figures of the storage."""
    alone = who == "this run"
    if shown := ", ".join(sorted(codes & _DISTURBED)):
        yield f"{who} had {shown}" + (
            "" if alone else ": what they compare is the disturbance as well"
        )
    if shown := ", ".join(sorted(codes & _NOT_SHOWN)):
        what = "its figures" if alone else "what they compare"
        yield f"{who} had {shown}: {what} may not be the storage's"


def describe_differences(baseline: Provenance, now: Provenance) -> Iterator[str]:
    """What a reader of a comparison must know of its sides, a line per kind."""
    by_kind: dict[str, list[str]] = {}
    for difference in differences(baseline, now):
        by_kind.setdefault(difference.kind, []).append(str(difference))
    for kind, texts in by_kind.items():
        yield f"{kind}: {'; '.join(texts)}"
    yield from _unknown_facts(baseline, now)
    hits = (baseline.hit_ratio, now.hit_ratio)
    if hits[0] is not None and hits[1] is not None and abs(hits[1] - hits[0]) >= HITS_MOVED:
        yield f"hit ratio: {hits[0]:.3f} -> {hits[1]:.3f}, so another share of the blocks is read"
    elif hits[0] is not None and hits[0] == hits[1] and _same_work(baseline, now):
        yield f"hit ratio: {hits[0]:.3f} on both sides, which did the same requests"
    for side, codes in _one_sided(baseline, now, _SHOWN_ONE_SIDED):
        if codes:
            yield f"verdicts: only {side} has {', '.join(sorted(codes))}"


def _same_work(baseline: Provenance, now: Provenance) -> bool:
    """Whether both had a fixed number of requests, the same ones as far as the plans tell."""
    one, other = (
        {
            name: value
            for name, value in ({} if side.facts is None else side.facts["plan"]).items()
            if name.partition(".")[0] not in LEAVES_REQUESTS
        }
        for side in (baseline, now)
    )
    return one.get("requests") is not None and one == other


def _one_sided(
    baseline: Provenance, now: Provenance, codes: frozenset[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    """Which of these codes only one side has; nothing where a side does not tell."""
    if baseline.verdicts is not None and now.verdicts is not None:
        before, after = codes.intersection(baseline.verdicts), codes.intersection(now.verdicts)
        yield "this run", after - before
        yield "the baseline", before - after


def _device(filesystem: FilesystemFacts) -> str | None:
    """Name and model of what keeps the bytes, where there is a block device."""
    name, model = filesystem.device, filesystem.device_model
    return name and (f"{name} ({model})" if model else name)


def _filesystem(filesystem: FilesystemFacts) -> str:
    """Type and size; of one that a server or a pool lends, which may grow, where it is from."""
    if not filesystem.device and re.search("[:/]", filesystem.source):
        return f"{filesystem.type} from {filesystem.source}"
    return f"{filesystem.type} of {filesystem.total_bytes / GIB:.4g} GiB"


def _layers(filesystem: FilesystemFacts) -> str | None:
    """The kinds of links below the filesystem: ``dm on partition on disk``; None: not known.

    Of filesystems and block devices of a storage, names are another fact: a filesystem that
    lies below (of a loop device's file, or an overlay's directory) is named by its type.
    """

    def below(index: int | None) -> str:
        found = []
        for number, link in enumerate(filesystem.chain.links):
            if link.above == index:
                kind = link.name if link.kind == "filesystem" else link.kind
                rest = below(number)
                found.append(f"{kind} on {rest}" if rest else kind)
        text = _joined(sorted(found))
        return f"({text})" if len(found) > 1 else text

    return below(0) or None


def _mount_options(ranks: Iterable[Placed]) -> list[str] | None:
    """The mount options that matter; of one that not every host has, how many have it."""
    stated: dict[str, set[str]] = {}
    for rank in ranks:
        if rank.filesystem is not None:
            stated.setdefault(rank.host, set()).update(normalised(rank.filesystem.options))
    counts = Counter(option for options in stated.values() for option in options)
    shown = [
        option if count == len(stated) else f"{option} ({count} of {len(stated)} hosts)"
        for option, count in sorted(counts.items())
    ]
    return shown if stated else None


def _only(here: Sequence[str], there: Sequence[str]) -> str:
    """Which options only one side has."""
    own = [option for option in here if option not in there]
    others = [option for option in there if option not in here]
    return ",".join(own) or f"without {','.join(others)}"


def _each(texts: Iterable[str | None]) -> list[str]:
    return sorted({text for text in texts if text})


def _joined(parts: Iterable[object]) -> str:
    return " + ".join(map(str, parts))


def _flat(data: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects, by their path."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(not there)"
    text = "none" if value is None else str(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
