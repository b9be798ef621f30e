"""Which option decides a field of a plan, and where the field's value comes from. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_kvcache.options.table import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pytest_kvcache.options.options import Options
    from pytest_kvcache.options.table import OptionSpec
    from pytest_kvcache.plan.plan import CaseFacts


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
    for name, spec in deciding.items() if facts.trace is not None else ():
        if spec.trace_has_own and not options.overrides(spec.name):
            found[name] = "scenario"
    if facts.block_why and found["block_tokens"] == "scenario":
        found["block_tokens"] = facts.block_why
    if options.data is None and facts.on_network:
        found["data"] = "network filesystem"
    if options.request_rate is None:
        found["arrival"] = "default"
    if not options.storage_capacity_gb:  # 0 leaves it to us, whoever has typed it
        found["capacity_blocks"] = "default"
    if facts.trace is not None and found["scenario"] == "default":
        found["scenario"] = given.get("trace", "default")
    return found | _beside(options, facts)


def _beside(options: Options, facts: CaseFacts) -> dict[str, str]:
    """Of what is no field of the plan, but must be known where it is read."""
    found: dict[str, str] = {"trace_time_unit": "assumed"} if facts.unit_is_assumed else {}
    allowing = [spec.name for spec in OPTIONS if spec.allows and getattr(options, spec.name)]
    return found | {name: options.origins[name] for name in allowing}
