"""What goes with ``--kv-phase=restart``, which makes no requests, and what belongs to it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_kvcache.backends.calls import BucketCalls, SlotCalls
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.table import flag_of
from pytest_kvcache.phases import PHASES

if TYPE_CHECKING:
    from pytest_kvcache.options.options import Options

RESTART_METRICS: Final = ("run.s", "restart.objects_per_s")
"""What such a run is asked for where nobody names metrics: what few objects have, too."""

_OF_IT: Final = ("restart_by", "drop_caches")
# What is of requests, or of what they read and store; given in a weaker place (an ini file, where
# the phase is typed) it is for other runs.
_OF_REQUESTS: Final = (
    "duration", "ramp", "requests", "request_rate", "arrival", "load_steps", "generation_mode",
    "performance_profile", "prefill_rate", "cost", "power", "lookup", "verify", "io_trace",
    "disable_multi_turn", "disable_prefix_caching",
)  # fmt: skip


def check_restart(options: Options) -> None:
    """Refuse what a restart would ignore, or can't be made of; elsewhere, what is only its own."""
    if not PHASES[options.phase].restarts:
        for name in _OF_IT:
            if options.overrides(name) and getattr(options, name):
                raise OptionError(
                    f"{_shown(options, name)}, which belongs to a restart; add --kv-phase=restart,"
                    " or leave it out"
                )
        return
    _check_no_requests(options)
    _check_no_tiers(options)
    if options.store == "slab":
        raise OptionError(
            "--kv-store is slab, and --kv-phase=restart finds objects by the names of their files;"
            " what a slab holds is known in memory alone, so use --kv-store=file, or auto"
        )
    if options.engine is not None:
        _check_profile(options, options.engine)


def _check_no_requests(options: Options) -> None:
    """A restart is over when every index is usable again."""
    for name in _OF_REQUESTS:
        if options.outweighs(name, "phase") and getattr(options, name):
            hint = "; --kv-restart-by=lookups asks for every key" if name == "lookup" else ""
            raise OptionError(
                f"{_shown(options, name)}, and --kv-phase=restart makes no requests, and reads and"
                f" stores nothing in its window; leave one of them out{hint}"
            )
    if options.trace is not None:
        raise OptionError(
            "--kv-phase is restart, which makes no requests, and those of a trace are all that it"
            " has: nothing is stored before it begins; leave out --kv-trace, and say how much is"
            " stored with --kv-num-users or --kv-fill"
        )
    if options.enable_autoscaling:
        raise OptionError(
            "--kv-enable-autoscaling searches for a number of users by their requests, and"
            " --kv-phase=restart makes none; leave one of them out"
        )


def _check_no_tiers(options: Options) -> None:
    for name in ("gpu_mem_gb", "cpu_mem_gb"):
        if getattr(options, name):
            raise OptionError(
                f"{flag_of(name)} puts a memory tier in front of the storage, and what is in memory"
                " is lost when --kv-phase=restart begins; leave one of them out"
            )


def _check_profile(options: Options, engine: str) -> None:
    """An engine whose objects have no names, or that forgets them, finds nothing again."""
    profile = PROFILES[engine]
    if isinstance(profile.calls, BucketCalls):
        raise OptionError(
            f"--kv-engine is {engine}, which packs objects into buckets, and --kv-phase=restart"
            " finds objects by the names of their files: the tables beside the buckets would have"
            " to be read; name an engine with a file per object, or leave it out"
        )
    if isinstance(profile.calls, SlotCalls):
        what = "which of them holds what is known in memory alone, and lost"
        if profile.calls.header:
            what = "what they hold would have to be read from the header before each object"
        raise OptionError(
            f"--kv-engine is {engine}, which keeps objects in slots of one file, and"
            f" --kv-phase=restart finds objects by the names of their files: {what}; name an engine"
            " with a file per object, or leave it out"
        )
    if profile.lookup == "memory" and not options.overrides("restart_by"):
        raise OptionError(
            f"--kv-engine is {engine}, whose index is in memory and lost when it ends, so that it"
            " finds nothing again after --kv-phase=restart; name another engine, or say"
            " --kv-restart-by=scan for what finding its files again would take"
        )


def _shown(options: Options, name: str) -> str:
    text = options.texts[name][0]
    value = text if isinstance(text, str) else " ".join(text)
    given = "given" if getattr(options, name) is True else value
    return f"{flag_of(name)} is {given}"
