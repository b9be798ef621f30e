"""``--kv-workload``: a TOML file that changes the table of distributions. Pure but for reading it.

::

    [profiles.chat]                 # of a shipped profile what differs, of a new one every key
    context_tokens = 8192

    [scenarios.mixed]               # all its weights; a profile is a scenario by itself
    chat = 0.5
    agent = 0.5

    [retrieval]
    top_k = 8

    [service_classes.interactive]   # with --kv-performance-profile=latency
    p95_ms = 40

    [objectives]
    load_gib_per_s = 2.0
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from pytest_kvcache.errors import OptionError, did_you_mean
from pytest_kvcache.tomlfile import read_toml
from pytest_kvcache.workloads.scenarios import (
    LIMITS,
    TABLE,
    TRACE,
    Profile,
    Range,
    Retrieval,
    Service,
    ServiceClass,
    WorkloadTable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_Value = TypeVar("_Value", Profile, Retrieval, ServiceClass, Service)

MAX_DOCUMENTS = 100_000
"""Of one user."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # part of test ids and file names
_MOST_TOKENS = 100_000_000
_MOST_S = 86_400.0
_MOST_MS = 86_400_000.0
_SHARES_TO_ONE = 1e-9  # what decimal fractions may be off


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a key's value must be, in words, and how it is read; ``read`` gives None if it is not.

    The words stand behind "it must be".
    """

    words: str
    read: Callable[[object], Any]


def _whole(low: int, high: int) -> _Rule:
    def read(value: object) -> int | None:
        return value if type(value) is int and low <= value <= high else None

    return _Rule(f"a whole number from {low} to {high}", read)


def _number(low: float, high: float, *, above: bool = False) -> _Rule:
    def read(value: object) -> float | None:
        if type(value) not in {int, float} or not isinstance(value, (int, float)):
            return None
        inside = low < value <= high if above else low <= value <= high
        return float(value) if inside and math.isfinite(value) else None

    least = f"above {low:g} and at most" if above else f"from {low:g} to"
    return _Rule(f"a number {least} {high:g}", read)


def _span(ends: _Rule) -> _Rule:
    def read(value: object) -> Range | None:
        if not isinstance(value, list) or len(value) != 2:  # noqa: PLR2004  low and high
            return None
        low, high = map(ends.read, value)
        return None if low is None or high is None or low > high else Range(low=low, high=high)

    return _Rule(f"[low, high], ascending, each {ends.words}", read)


_TOKENS = _whole(1, _MOST_TOKENS)
_RATIO = _number(0, 1)
_TIME_MS = _number(0, _MOST_MS, above=True)
_RULES: Final[Mapping[type, Mapping[str, _Rule]]] = {
    Profile: {
        "system_prompts": _whole(1, 1_000_000),
        "system_tokens": _TOKENS,
        "opening_tokens": _span(_TOKENS),
        "message_tokens": _span(_TOKENS),
        "output_tokens": _span(_TOKENS),
        "context_tokens": _TOKENS,
        "think_s": _span(_number(0, _MOST_S)),
        "retrieval_ratio": _RATIO,
    },
    Retrieval: {
        "documents": _whole(1, MAX_DOCUMENTS),
        "document_tokens": _span(_TOKENS),
        "chunk_tokens": _TOKENS,
        "top_k": _whole(1, 1_000),
        "added_ratio": _number(0, 1, above=True),
    },
    ServiceClass: {"share": _RATIO, **dict.fromkeys(LIMITS, _TIME_MS)},
    Service: {
        "load_gib_per_s": _number(0, 1e6, above=True),
        "compliance_ratio": _number(0, 1, above=True),
        "unclassed": _Rule("the name of a class", lambda v: v if isinstance(v, str) else None),
    },
}
_TABLES: Final = ("profiles", "scenarios", "retrieval", "service_classes", "objectives")
_OF_NAMES: Final = ("profiles", "scenarios", "service_classes")
"""Those that have a table for each name."""


def read_workload(path: str, option: str) -> WorkloadTable:
    """The shipped table as a file changes it.

    Raises OptionError with file, table, key and rule.
    """
    if not path.strip():
        raise OptionError(f"{option} is empty; name a TOML file, or leave it out")
    data = read_toml(path, option, "a TOML file of scenarios")
    if not data:
        raise OptionError(f"{path} changes nothing; it must have one of the tables {_listed()}")
    for table, content in data.items():
        _check_table(path, table, content)
    profiles = {**TABLE.profiles, **_profiles(path, data.get("profiles", {}))}
    own = {name: {name: 1.0} for name in profiles if name not in TABLE.profiles}
    scenarios = {**TABLE.scenarios, **own, **_scenarios(path, data.get("scenarios", {}), profiles)}
    return WorkloadTable(
        profiles=profiles,
        scenarios=scenarios,
        retrieval=_changed(path, "retrieval", TABLE.retrieval, data.get("retrieval", {})),
        service=_service(path, data.get("service_classes", {}), data.get("objectives", {})),
        file=PurePath(path).name,
        given=tuple(_given(data)),
    )


def _listed() -> str:
    return ", ".join(f"[{t}.NAME]" if t in _OF_NAMES else f"[{t}]" for t in _TABLES)


def _given(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each table's keys, or the names of its tables."""
    return [(table, name) for table, content in data.items() for name in content]


def _check_table(path: str, table: str, content: object) -> None:
    if table not in _TABLES:
        hint = did_you_mean(table, _TABLES)
        raise OptionError(f"{path} has {table!r}{hint}, which is unknown; known are {_listed()}")
    if not isinstance(content, Mapping) or not content:
        raise OptionError(f"{path}: {table} is {content!r}; it must be a table with keys")
    for name, part in content.items() if table in _OF_NAMES else ():
        if name == TRACE and table != "service_classes":
            raise OptionError(
                f"{path} [{table}] names {name!r}, which is the replay of a trace; give it another"
                " name"
            )
        if not _NAME.fullmatch(name):
            raise OptionError(
                f"{path} [{table}] names {name!r}; a name must be letters, digits, '.', '_', '+'"
                " and '-', and begin with a letter or digit"
            )
        if not isinstance(part, Mapping) or not part:
            raise OptionError(
                f"{path} [{table}] has {name} = {part!r}; it must be a table, [{table}.{name}],"
                " with keys"
            )


def _values(path: str, table: str, kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a table's keys, each by its rule."""
    rules, values = _RULES[kind], {}
    for key, value in content.items():
        if key not in rules:
            _unknown(path, table, key, rules)
        values[key] = rules[key].read(value)
        if values[key] is None:
            raise OptionError(f"{path} [{table}] {key} is {value!r}; it must be {rules[key].words}")
    return values


def _unknown(path: str, table: str, key: str, known: Collection[str]) -> NoReturn:
    raise OptionError(
        f"{path} [{table}] has an unknown key {key!r}{did_you_mean(key, known)}; known are"
        f" {', '.join(known)}"
    )


def _changed(path: str, table: str, before: _Value, content: Mapping[str, Any]) -> _Value:
    try:
        return replace(before, **_values(path, table, type(before), content))
    except ValueError as error:
        raise OptionError(f"{path} [{table}]: {error}; correct the table") from error


def _made(path: str, table: str, kind: type[_Value], content: Mapping[str, Any]) -> _Value:
    """A value of a table of its own, which gives every key without a default."""
    values = _values(path, table, kind, content)
    lacking = [key for key in _RULES[kind] if key not in values and key != "retrieval_ratio"]
    if lacking:
        raise OptionError(
            f"{path} [{table}] lacks {', '.join(lacking)}; what does not ship must have every key"
        )
    try:
        return kind(**values)
    except ValueError as error:
        raise OptionError(f"{path} [{table}]: {error}; correct the table") from error


def _profiles(path: str, tables: Mapping[str, Any]) -> dict[str, Profile]:
    return {
        name: _changed(path, f"profiles.{name}", TABLE.profiles[name], content)
        if name in TABLE.profiles
        else _made(path, f"profiles.{name}", Profile, content)
        for name, content in tables.items()
    }


def _scenarios(
    path: str, tables: Mapping[str, Any], profiles: Mapping[str, Profile]
) -> dict[str, dict[str, float]]:
    rule, found = _number(0, 1e6), {}
    for name, content in tables.items():
        table = f"scenarios.{name}"
        for profile, weight in content.items():
            if profile not in profiles:
                _unknown(path, table, profile, profiles)
            if rule.read(weight) is None:
                raise OptionError(
                    f"{path} [{table}] {profile} is {weight!r}; a weight must be {rule.words}"
                )
        if not sum(content.values()):
            raise OptionError(f"{path} [{table}] has weights of 0 only; one must be above 0")
        found[name] = {profile: float(weight) for profile, weight in content.items()}
    return found


def _service(path: str, classes: Mapping[str, Any], objectives: Mapping[str, Any]) -> Service:
    before = TABLE.service
    found = dict(before.classes)
    for name, content in classes.items():
        table = f"service_classes.{name}"
        found[name] = (
            _changed(path, table, found[name], content)
            if name in found
            else _made(path, table, ServiceClass, content)
        )
    found = {name: each for name, each in found.items() if each.share}
    total = sum(each.share for each in found.values())
    if abs(total - 1) > _SHARES_TO_ONE:
        shares = ", ".join(f"{name} {each.share:g}" for name, each in found.items())
        raise OptionError(
            f"{path} [service_classes]: the shares are {shares}, {total:g} in all; they must be 1"
            " in all, and a class of share 0 is left out"
        )
    service = _changed(path, "objectives", before, objectives)
    if service.unclassed not in found:
        raise OptionError(
            f"{path} [objectives] unclassed is {service.unclassed!r}; it must be one of the classes"
            f" {', '.join(found)}"
        )
    return replace(service, classes=found)


def check_used(
    table: WorkloadTable, scenarios: Collection[str], *, latency: bool, enable_rag: bool
) -> None:
    """Raise OptionError for a key of the file that nothing of these scenarios would read."""
    synthetic = [name for name in scenarios if name in table.scenarios]
    mixes = [table.dialogues(name, enable_rag=enable_rag) for name in synthetic]
    profiles = {name for mix in mixes for name in mix.profiles}
    retrieves = any(mix.retrieval is not None for mix in mixes)
    adds = enable_rag and any(not table.profiles[name].retrieval_ratio for name in profiles)
    shown = ", ".join(scenarios)
    for part, key in table.given:
        where = f"{table.file} [{part}.{key}]" if part in _OF_NAMES else f"{table.file} [{part}]"
        if part == "scenarios" and key not in scenarios:
            why = f"--kv-scenario is {shown}; run it, or leave the table out"
        elif part == "profiles" and key not in profiles:
            why = f"no user of the scenario {shown} is of it; run it, give it a weight in a"
            why += " [scenarios.NAME], or leave the table out"
        elif part == "retrieval" and not (adds if key == "added_ratio" else retrieves):
            why = f"nobody of the scenario {shown} would read {key}; add --kv-enable-rag, or leave"
            why += " it out"
        elif part in ("service_classes", "objectives") and not latency:
            why = "objectives judge with --kv-performance-profile=latency only; add it, or leave"
            why += " the table out"
        elif key == "unclassed" and len(synthetic) == len(scenarios):
            why = f"all users of the scenario {shown} have classes; leave unclassed out"
        else:
            continue
        raise OptionError(f"{where} is not used: {why}")
