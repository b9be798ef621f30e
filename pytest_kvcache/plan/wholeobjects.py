"""Scenarios that bring values of their own and store whole objects. Pure.

What such a scenario says of an option stands unless somebody typed another value, or a test
gave one: an ini file serves all scenarios of a checkout.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import OptionError
from pytest_kvcache.models import MODELS
from pytest_kvcache.options.table import OPTIONS
from pytest_kvcache.workloads.protocol import WholeObjectFamily

if TYPE_CHECKING:
    from pytest_kvcache.options.options import Options, Origin
    from pytest_kvcache.options.table import OptionSpec
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.workloads.protocol import WorkloadFamily

# What a scenario of whole objects leaves no choice in: the only values, and why.
_ONLY = {
    "block_tokens": ((), "an object is a whole turn, whatever its length"),
    "layout": (("block",), "an object holds all layers of a turn"),
    "store": (("auto", "file"), "objects have sizes of their own, which slabs can't hold"),
    "phase": (("both",), "each request reads what it has stored"),
}


def options_of(options: Options, family: WorkloadFamily) -> Options:
    """The options of one scenario's cases: its own values where nobody typed others."""
    if not isinstance(family, WholeObjectFamily):
        return options
    specs = {spec.name: spec for spec in OPTIONS}
    values: dict[str, Any] = {}
    texts: dict[str, tuple[str, Origin]] = {}
    for name, text in family.values.items():
        if options.overrides(name):
            continue
        values[name] = None if text is None else specs[name].parse(text, specs[name].flag)
        if text is not None:
            texts[name] = (text, "scenario")
    given = {name: told for name, told in options.texts.items() if name not in values}
    return replace(options, **values, texts={**given, **texts})


def changed_values(plan: Plan, family: WholeObjectFamily) -> tuple[str, ...]:
    """The options by whose values a plan's load is another than the scenario's, by their names.

    A capacity below the need counts where somebody chose it: it evicts what would be read.
    """
    specs = {spec.name: spec for spec in OPTIONS}
    changed = [
        name
        for name, text in family.values.items()
        if name not in _ONLY
        and not _is_held(plan, specs[name], specs[name].parse(text, name) if text else None)
    ]
    if plan.capacity_blocks < plan.need_blocks and (
        plan.origins.get("capacity_blocks", "default") != "default"
    ):
        changed.append("storage_capacity_gb")
    return tuple(changed)


def _is_held(plan: Plan, spec: OptionSpec, value: Any) -> bool:
    """Whether the plan has this value of an option that a scenario of whole objects fixes."""
    tiers = {str(tier.name): tier for tier in plan.tiers}
    if spec.name == "model":  # whatever its type
        (own,) = (MODELS[name].without_windows() for name in value)
        return own.with_kv_dtype(plan.model.dtype) == plan.model
    if spec.name == "kv_dtype":
        own_model = MODELS.get(plan.model.name)
        return own_model is None or own_model.with_kv_dtype(value).dtype == plan.model.dtype
    if spec.name in ("gpu_mem_gb", "cpu_mem_gb"):
        tier = tiers.get(spec.name[:3])
        return bool(value == (0 if tier is None else tier.capacity_bytes))
    if spec.name == "cpu_tier":
        return "cpu" not in tiers or tiers["cpu"].kind == value
    if spec.name == "tier_policy" and not tiers:
        return True
    held = getattr(plan, spec.decides or spec.name)
    return bool(held == (value or ()) if spec.name == "load_steps" else held == value)


def check_whole_objects(options: Options, scenario: str, family: WorkloadFamily) -> None:
    """Raise OptionError for what was typed for this run and can't be had."""
    if not isinstance(family, WholeObjectFamily):
        return
    for name, (only, why) in _ONLY.items():
        value = getattr(options, name)
        if options.overrides(name) and value not in only:
            flag = "--kv-" + name.replace("_", "-")
            raise OptionError(
                f"{flag} is {value}, and --kv-scenario is {scenario}, where {why}; leave it out"
            )
    only, why = _ONLY["layout"]
    if options.layout not in only and not options.given("layout"):
        raise OptionError(
            f"--kv-engine is {options.engine}, whose layout is {options.layout}, and --kv-scenario"
            f" is {scenario}, where {why}; leave one of them out, or add --kv-layout={only[0]}"
        )


def block_tokens_of(options: Options, family: WorkloadFamily) -> int | None:
    """Tokens of the largest object; None where the options decide on blocks."""
    if not isinstance(family, WholeObjectFamily):
        return None
    return family.block_tokens(options.context_scale)


def most_stores_of(family: WorkloadFamily) -> int | None:
    """Objects that wait to be stored before users wait; None: what the queue depth gives."""
    return family.most_stores if isinstance(family, WholeObjectFamily) else None


def check_filesystems(options: Options) -> None:
    """Raise OptionError where closed rules want two filesystems and there is one.

    Rules.md 6.4.1, v3.0: what is written of results must not disturb the storage. A cache
    directory that this machine does not have can't be compared.
    """
    if not options.closed or not Path(options.cache_dir).exists():
        return
    results = Path(options.results_dir).absolute()
    there = next(path for path in (results, *results.parents) if path.exists())
    if there.stat().st_dev == Path(options.cache_dir).stat().st_dev:
        raise OptionError(
            f"--kv-results-dir is {options.results_dir} and --kv-cache-dir is {options.cache_dir},"
            " which are on one filesystem; with --kv-closed they must be on two, so name another"
            " directory for one of them"
        )
