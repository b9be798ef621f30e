"""Writes the tables of engines.md from the profiles of the package: ``python docs/engines.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.backends.calls import FileCalls, SlotCalls
from pytest_kvcache.backends.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.backends.calls import BucketCalls
    from pytest_kvcache.backends.profiles import EngineProfile

PAGE = Path(__file__).with_name("engines.md")
MARK = "<!-- written by engines.py; edit pytest_kvcache/backends/profiles.py instead -->"
END = "<!-- end of what engines.py writes -->"
_ASKED = {"fstat": "fstat", "isatty": "ioctl", "lseek": "lseek"}
_DIRECTORIES = {"ahead": [], "stat": ["stat (mkdir)"], "mkdir": ["mkdir", "stat"]}


def described(profile: EngineProfile) -> Iterator[str]:
    """One engine: a heading and its facts."""
    yield f"### {profile.name}"
    yield ""
    origin = "seen under strace in its released wheel" if profile.seen else "read in its source"
    yield f"{profile.version}; {origin}."
    yield ""
    yield from (f"- {fact}" for fact in facts(profile))
    yield ""


def facts(profile: EngineProfile) -> Iterator[str]:
    """What it does, in the order of an object's life."""
    calls = profile.calls
    how = "direct I/O, where a probe finds that it works" if profile.io == "direct" else "buffered"
    apart = ", its keys and its values apart" if profile.layout == "kv" else ""
    yield f"object: a block of {profile.block_tokens} tokens{apart}, {how}; nothing is synced"
    if isinstance(calls, FileCalls):
        yield from of_files(profile, calls)
    elif isinstance(calls, SlotCalls):
        yield from of_slots(calls)
    else:
        yield from of_buckets(calls)
    yield f"at the same time: {at_once(profile)}"
    yield f"evicts: {profile.evicts}"
    yield f"not imitated: {profile.misses}"


def of_files(profile: EngineProfile, calls: FileCalls) -> Iterator[str]:
    """A file per object."""
    levels = " and ".join(str(16**digits) for digits in calls.levels)
    where = f"two levels of {levels} directories" if calls.levels else "one directory"
    if len(calls.levels) == 1:
        where = f"{levels} directories"
    yield f"a file per object, in {where}"
    if profile.lookup != "memory":
        which = "for every block of a prompt" if profile.lookup == "all" else "up to the first miss"
        threads = profile.lookup_threads
        by = "one thread" if threads == 1 else f"{threads} threads"
        files = " (of both files)" if profile.layout == "kv" else ""
        yield f"lookup: `{calls.lookup_call}` {which}{files}, by {by}"
    else:
        yield "lookup: none, an index in memory"
    if calls.batch_submits is not None:
        moved = f"open × n, io_submit of {calls.batch_submits} at a time, close × n"
        yield f"store: `{moved}`, under the files' own names"
        yield f"load: `{moved}`"
        yield "delete: `unlink`"
        return
    opened = [_ASKED[call] for call in calls.store_opened]
    write = "write" if calls.write_bytes is None else f"write × n of {calls.write_bytes >> 20} MiB"
    publish = [] if calls.publish == "in-place" else [calls.publish]
    store = [
        *calls.before_store, *_DIRECTORIES[calls.directories], "open", *opened, write, "close",
        *publish, *calls.after_store,
    ]  # fmt: skip
    temporary = ""
    if publish:
        kind = "the same for all writers" if calls.shares_temporary else "another one each time"
        temporary = f" (temporary name: {kind})"
    yield f"store: `{', '.join(store)}`{temporary}"
    load = [
        *calls.before_load, "open", *(_ASKED[call] for call in calls.load_opened), "read",
        *["read"] * calls.reads_on, "close",
    ]  # fmt: skip
    yield f"load: `{', '.join(load)}`"
    yield f"delete: `{', '.join([*calls.before_delete, 'unlink'])}`"


def of_slots(calls: SlotCalls) -> Iterator[str]:
    """Slots of one file."""
    made = "allocated ahead" if calls.allocates else "sparse"
    gone = ", and without a name" if calls.unlinked else ""
    yield f"slots of one file of each rank, {made}{gone}"
    yield "lookup: none, an index in memory"
    buffers = f" of {calls.vectors} buffers" if calls.vectors > 1 else ""
    header = f", {len(calls.header)} of them of a header" if calls.header else ""
    yield f"store: one `pwritev`{buffers}; load: {1 + len(calls.header)} × `preadv`{header}"
    yield "delete: no call"


def of_buckets(calls: BucketCalls) -> Iterator[str]:
    """Files of many objects."""
    size = f"{calls.size_bytes >> 20} MiB, or {calls.objects} objects"
    yield f"files of up to {size}, and one beside each that says what is where; one directory"
    yield "lookup: none, an index in memory"
    yield "store, when a file's objects are all there: `open, pwritev, open, write, close, close`"
    yield "load, of what a request reads of one file: `open, pread × n, close`"
    yield "delete, of a whole file: `unlink, unlink`"


def at_once(profile: EngineProfile) -> str:
    """How many objects are under way, of all requests and of one."""
    if not isinstance(profile.calls, FileCalls | SlotCalls):
        calls = profile.calls
        return (
            f"a file that is written, and an object of each of {calls.readers} requests that load"
        )
    if isinstance(profile.calls, FileCalls) and profile.calls.batch_submits is not None:
        batch = f"a batch of one request, of at most {profile.readers} objects"
        return f"{batch}, that is read, and one that is written"
    if profile.shares_workers:
        workers = f"{profile.depth} objects, read or written"
    else:
        workers = f"{profile.readers} read and {profile.writers} written"
    if profile.request_depth is None:
        return f"{workers}; of one request all"
    of_request = f"of one request {profile.request_depth}"
    return f"{workers}; {of_request}" + (", each of a part of its own" if profile.tiles else "")


def page(text: str) -> str:
    """The page with its table written anew."""
    head, found, rest = text.partition(MARK)
    _old, ended, tail = rest.partition(END)
    if not (found and ended):
        raise SystemExit(f"{PAGE} must have the lines {MARK!r} and {END!r} around its table")
    body = [line for profile in PROFILES.values() for line in described(profile)]
    return f"{head}{MARK}\n\n" + "\n".join(body) + f"\n{END}{tail}"


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} is up to date")


if __name__ == "__main__":
    main()
