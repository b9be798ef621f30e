"""What an engine profile brings of the options, and what of them can't go with it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.backends.calls import BUCKET_ROOM_BYTES, BucketCalls, FileCalls, SlotCalls
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.errors import OptionError, UnknownNameError
from pytest_kvcache.phases import PHASES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.options.options import Options

WHOLE_OBJECT = "object"
"""The transfer size that is the object's."""


def parse_engine(text: str, option: str) -> str:
    """The name of a profile."""
    if text not in PROFILES:
        raise UnknownNameError("engine", text, PROFILES, option=option)
    return text


def brought_by(engine: str | None) -> Mapping[str, Any]:
    """Name of an option → its value by the profile, where nobody gives another one."""
    if engine is None:
        return {}
    profile = PROFILES[engine]
    found: dict[str, Any] = {
        "block_tokens": profile.block_tokens,
        "io": profile.io,
        "sync": "none",
        "layout": profile.layout,
        "queue_depth": profile.depth,
        "transfer_size": WHOLE_OBJECT,
        "lookup": profile.lookup,
        "request_depth": profile.request_depth,
    }
    if isinstance(profile.calls, FileCalls):
        found["publish"] = profile.calls.publish
    if profile.lookup != "memory":
        found["restart_by"] = "lookups"  # it has no index, and asks when it needs a block
    return found


def makes_calls(options: Options) -> bool:
    """Whether objects are stored by the calls of an engine, instead of our own way."""
    return options.engine is not None or options.lookup != "memory" or options.publish != "in-place"


def header_bytes(engine: str | None) -> int:
    """What lies beside the data of each object of an engine, and takes room, at most."""
    calls = None if engine is None else PROFILES[engine].calls
    if isinstance(calls, BucketCalls):
        return BUCKET_ROOM_BYTES
    return calls.header_room_bytes if isinstance(calls, SlotCalls) else 0


def makes_batches(engine: str) -> bool:
    """Whether an engine opens all files of a batch before it moves any."""
    calls = PROFILES[engine].calls
    return isinstance(calls, FileCalls) and calls.batch_submits is not None


def check_engine(options: Options) -> None:
    """Refuse what contradicts the profile, or the calls that a knob of it makes."""
    _check_depth(options)
    if not makes_calls(options):
        return
    value: str
    knob = "--kv-lookup" if options.lookup != "memory" else "--kv-publish"
    value = options.lookup if options.lookup != "memory" else options.publish
    if options.sharing != "rank" and not (options.given("lookup") or options.given("publish")):
        knob, value = "--kv-sharing", options.sharing
    told = f"{knob} is {value}" if options.engine is None else f"--kv-engine is {options.engine}"
    _check_calls(options, told)
    if options.engine is None:
        return
    calls = PROFILES[options.engine].calls
    if isinstance(calls, SlotCalls):
        _check_slots(options, told)
    elif isinstance(calls, BucketCalls):
        _check_buckets(options, told)
    elif makes_batches(options.engine):
        _check_batches(options, told)


def _check_calls(options: Options, told: str) -> None:
    """What no engine does."""
    if options.store == "slab":
        raise OptionError(
            f"{told}, which has a way of its own to keep objects, and --kv-store is slab; leave one"
            " of them out"
        )
    if options.sync == "data":
        raise OptionError(
            f"{told}, and --kv-sync is data; no engine syncs what it stores, and its calls here do"
            " not either, so leave one of them out"
        )
    if options.lookup != "memory" and options.overrides("lookup"):
        _check_asks(options)
    if options.io_engine not in ("auto", "threads"):
        how = "one after the other"
        if options.engine is not None and makes_batches(options.engine):
            how = "in batches"
        raise OptionError(
            f"{told}, whose calls are made {how} by threads, and --kv-io-engine is"
            f" {options.io_engine}; leave one of them out"
        )
    if options.precondition:
        raise OptionError(
            f"{told}, and --kv-precondition overwrites objects in place, which no engine does;"
            " leave one of them out"
        )


def _check_asks(options: Options) -> None:
    """Who loads nothing asks for nothing; a profile, or an ini, may serve other phases."""
    if not PHASES[options.phase].loads:
        raise OptionError(
            f"--kv-lookup is {options.lookup}, which asks for what is to be loaded, and"
            f" --kv-phase={options.phase} loads nothing; leave one of them out"
        )


def _check_depth(options: Options) -> None:
    """Of one request there is no more under way than of all."""
    depth = options.request_depth
    if depth is not None and depth > options.queue_depth and options.given("request_depth"):
        raise OptionError(
            f"--kv-request-depth is {depth} and --kv-queue-depth is {options.queue_depth}, the most"
            " that is under way of all requests together; lower one or raise the other"
        )


def _check_batches(options: Options, told: str) -> None:
    """The files of a batch are opened under their names, and each moved by one call."""
    told = f"{told}, which opens all files of a batch before it moves any"
    if options.publish != "in-place":
        raise OptionError(
            f"{told}, under their own names, and --kv-publish is {options.publish}; leave one of"
            " them out"
        )
    if options.transfer_size != WHOLE_OBJECT:
        raise OptionError(
            f"{told}, each by one call, and --kv-transfer-size is given; leave one of them out"
        )


def _check_buckets(options: Options, told: str) -> None:
    """Who packs objects into buckets writes, reads and displaces them in one way."""
    told = f"{told}, which packs objects into buckets and"
    profile = PROFILES[options.engine or ""]
    refused = {
        f"--kv-publish={options.publish}": options.publish != "in-place",
        f"--kv-lookup={options.lookup}": options.lookup != "memory",
        f"--kv-store={options.store}": options.store != "auto",
        f"--kv-io={options.io}": options.io != profile.io,
        "--kv-transfer-size": options.transfer_size != WHOLE_OBJECT,
        "--kv-queue-depth": options.queue_depth != profile.depth,
        "--kv-request-depth": options.request_depth != profile.request_depth,
        f"--kv-layout={options.layout}": options.layout != profile.layout,
        "--kv-fill": options.fill is not None,
        "--kv-interference": options.interference,
        "--kv-io-trace": options.io_trace is not None,
    }
    for what, is_there in refused.items():
        if is_there:
            raise OptionError(f"{told} can't go with {what}; leave one of them out")


def _check_slots(options: Options, told: str) -> None:
    """Objects in slots of one file have no names, and are moved by one call each."""
    told = f"{told}, which keeps objects in slots of one file"
    if options.publish != "in-place":
        raise OptionError(
            f"{told}, and --kv-publish is {options.publish}; a slot has no name that it could be"
            " published under, so leave one of them out"
        )
    if options.lookup != "memory":
        raise OptionError(
            f"{told}, and --kv-lookup is {options.lookup}; which slot holds what is known in memory"
            " alone, so leave one of them out"
        )
    if options.store != "auto":
        raise OptionError(f"{told}, and --kv-store is {options.store}; leave one of them out")
    calls = PROFILES[options.engine or ""].calls
    if options.keep and isinstance(calls, SlotCalls) and calls.unlinked:
        raise OptionError(
            f"{told} that has no name, and --kv-keep is given; nothing of it could be kept, so"
            " leave one of them out"
        )
    if header_bytes(options.engine) and options.io == "direct":
        raise OptionError(
            f"{told} with headers of a few bytes before them, and --kv-io is direct, which moves"
            " whole pages; leave one of them out"
        )
    if options.transfer_size != WHOLE_OBJECT:
        raise OptionError(
            f"{told}, each moved by one call, and --kv-transfer-size is given; leave one of them"
            " out"
        )
