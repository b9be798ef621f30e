"""Which option decides a field of a plan, and where the field's value comes from. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_kvcache.options.engines import brought_by
from pytest_kvcache.options.sharing import brought_by_sharing
from pytest_kvcache.options.table import OPTIONS
from pytest_kvcache.phases import PHASES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pytest_kvcache.options.options import Options
    from pytest_kvcache.options.table import OptionSpec
    from pytest_kvcache.plan.building import CaseFacts


def decided_by(fields: Collection[str], path: str = "") -> Mapping[str, OptionSpec]:
    """Field → the option that decides it, of those that an option decides.

    ``path`` is where the fields are in the plan: empty, or ``trace.``.
    """
    every = {spec.decides or spec.name: spec for spec in OPTIONS}
    found = {name: every.get(path + name) for name in fields}
    return MappingProxyType({name: spec for name, spec in found.items() if spec is not None})


def origins_of(
    deciding: Mapping[str, OptionSpec], options: Options, facts: CaseFacts
) -> dict[str, str]:
    """Where the value of each field that an option decides comes from."""
    given = options.origins
    found: dict[str, str] = {
        name: given.get(spec.name, "default") for name, spec in deciding.items()
    }
    found |= _of_sharing(deciding, options) | _of_engine(deciding, options)
    for name, spec in deciding.items() if facts.trace is not None else ():
        if spec.trace_has_own and not options.overrides(spec.name):
            found[name] = "scenario"
    found |= _of_untimed(options, facts)
    if facts.block_why and found["block_tokens"] == "scenario":
        found["block_tokens"] = facts.block_why
    if options.data is None and facts.on_network:
        found["data"] = "network filesystem"
    if options.request_rate is None:
        found["arrival"] = "default"
    if not options.storage_capacity_gb:  # 0 leaves it to us, whoever has typed it
        found["capacity_blocks"] = "default"
    for name in ("trace", "closed"):  # either selects scenarios
        if getattr(options, name) and found["scenario"] == "default":
            found["scenario"] = given.get(name, "default")
    return found | _of_tiers(options) | _of_whole_objects(facts) | _beside(options, facts)


def _of_untimed(options: Options, facts: CaseFacts) -> dict[str, str]:
    """A fixed amount of work, or a restart, has no time and no schedule."""
    by = "requests" if options.requests is not None and facts.trace is None else None
    by = "phase" if PHASES[options.phase].restarts else by
    timed = ("duration_s", "ramp_s", "request_rate", "load_steps")
    found = {} if by is None else dict.fromkeys(timed, by)
    if PHASES[options.phase].restarts and options.fill is None:
        found["fill_blocks"] = "phase"
    return found


def _of_engine(deciding: Mapping[str, OptionSpec], options: Options) -> dict[str, str]:
    """What the profile of an engine brings comes from it, by its name."""
    brought = brought_by(options.engine)
    return {
        name: str(options.engine)
        for name, spec in deciding.items()
        if spec.name in brought and not options.given(spec.name)
    }


def _of_sharing(deciding: Mapping[str, OptionSpec], options: Options) -> dict[str, str]:
    """What a shared store brings comes from that."""
    brought = brought_by_sharing(options.sharing)
    return {
        name: "--kv-sharing"
        for name, spec in deciding.items()
        if spec.name in brought and not options.given(spec.name)
    }


def _of_tiers(options: Options) -> dict[str, str]:
    """Two options size the tiers; an ini's policy is for runs that have some."""
    given = options.origins
    sizes = [given[name] for name in ("gpu_mem_gb", "cpu_mem_gb") if name in given]
    found: dict[str, str] = {"tiers": " and ".join(dict.fromkeys(sizes)) or "default"}
    return (
        found if options.gpu_mem_gb or options.cpu_mem_gb else {**found, "tier_policy": "default"}
    )


def _of_whole_objects(facts: CaseFacts) -> dict[str, str]:
    """A scenario that stores whole turns decides how large objects are, and how many wait."""
    if facts.most_stores is None:
        return {"most_stores": "default"}
    return {"most_stores": "scenario", "block_tokens": "scenario"}


def _beside(options: Options, facts: CaseFacts) -> dict[str, str]:
    """Origins of what is no field of the plan, but must be known with it."""
    found: dict[str, str] = {"trace_time_unit": "assumed"} if facts.unit_is_assumed else {}
    beside = ("disable_multi_turn", "disable_prefix_caching", "enable_rag", "rag_num_docs")
    given = options.origins
    found |= {n: given[n] for n in beside if n in given and getattr(options, n)}
    allowing = [spec.name for spec in OPTIONS if spec.allows and getattr(options, spec.name)]
    return found | {name: options.origins[name] for name in allowing}
