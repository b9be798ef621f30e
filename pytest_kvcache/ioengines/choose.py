"""Which engine carries out a rank's transfers, and why: what was asked, what works here.

Rank side: imports neither pytest nor MPI. ``auto`` takes the first of io_uring, libaio and
threads that the kernel grants and that is asynchronous where the rank's data lies (probe.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.infiles import ObjectFiles, Slabs
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.batches import BatchEngine
from pytest_kvcache.ioengines.buckets import BucketEngine
from pytest_kvcache.ioengines.inline import InlineEngine
from pytest_kvcache.ioengines.libaio import Context
from pytest_kvcache.ioengines.probe import ProbePlan, probe, seen
from pytest_kvcache.ioengines.ringfiles import FileEngine
from pytest_kvcache.ioengines.ringslabs import SlabEngine
from pytest_kvcache.ioengines.threads import ThreadsEngine
from pytest_kvcache.ioengines.uring import Ring
from pytest_kvcache.system.kernelqueues import KERNEL_ENGINES, explained, refusal, system_call

if TYPE_CHECKING:
    from pytest_kvcache.backends.posix.enginebuckets import EngineBuckets
    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.ioengines.kernel import Queue
    from pytest_kvcache.ioengines.protocol import IoEngine, IoEngineName
    from pytest_kvcache.system.kernelqueues import KernelEngine, SystemCall


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """The engine, and one sentence that says why it and none of those before it.

    ``asynchronous``: what the probe found, None where nothing was probed. Only an engine that
    was asked for by name is ever taken with False.
    """

    name: IoEngineName
    reason: str
    asynchronous: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a choice depends on.

    ``files`` is where the objects are, None for a backend that moves their bytes itself;
    ``directory`` the rank's own, for the probe. ``batch_submits``: objects move in batches, of
    which the kernel is told so many at a time; None: each by itself. With so many
    ``bucket_readers`` they are packed, into ``buckets``, which not every backend has.
    """

    host: str
    files: Slabs | ObjectFiles | None
    directory: str | None
    depth: int
    transfer_bytes: int
    never_waits: bool = False
    batch_submits: int | None = None
    bucket_readers: int | None = None
    buckets: EngineBuckets | None = None


def choose_engine(
    asked: str, situation: Situation, *, call: SystemCall = system_call
) -> EngineChoice:
    """The engine for what was asked: ``auto`` or a name; StorageError if it can't be had."""
    if situation.batch_submits is not None and not situation.never_waits:
        return _batches(situation, call)
    if situation.bucket_readers is not None and not situation.never_waits:
        return EngineChoice(
            name="threads",
            reason="a thread writes the engine's buckets, each by one call, and"
            f" {situation.bucket_readers} read out of them, each for one request",
        )
    for name in KERNEL_ENGINES:
        if name == asked:
            return _named(name, situation, call)
    if asked == "threads":
        return EngineChoice(name="threads", reason="asked for by --kv-io-engine=threads")
    return _plain_calls(situation) or _first_that_works(situation, call)


def _plain_calls(situation: Situation) -> EngineChoice | None:
    """Where the kernel has nothing to move by itself, or one thing at a time; None: elsewhere."""
    if situation.never_waits:
        return EngineChoice(name="inline", reason="the backend never waits")
    if situation.depth == 1:
        return EngineChoice(
            name="inline", reason="with --kv-queue-depth=1 plain calls cost the least"
        )
    if situation.files is None:
        return EngineChoice(
            name="threads", reason="the backend moves bytes itself, in calls that block"
        )
    return None


def _batches(situation: Situation, call: SystemCall) -> EngineChoice:
    """Threads that have the kernel move a batch at a time, as an engine does."""
    problem = refusal("libaio", situation.depth, call)
    if problem is not None:
        raise StorageError(
            f"{situation.host}: --kv-engine names one that moves its files in batches by io_submit,"
            f" which can't be had there: {problem}; or name another engine"
        )
    return EngineChoice(
        name="threads",
        reason="the engine's files move in batches by io_submit, for which reads and writes have a"
        " thread each",
    )


def _first_that_works(situation: Situation, call: SystemCall) -> EngineChoice:
    passed_over: list[str] = []
    for name in KERNEL_ENGINES:
        problem = refusal(name, situation.depth, call)
        if problem is None:
            asynchronous, finding = _try(name, situation, call)
            if asynchronous:
                return EngineChoice(
                    name=name, reason="; ".join([*passed_over, finding]), asynchronous=True
                )
            problem = finding
        passed_over.append(f"{name} is passed over: {problem}")
    return EngineChoice(name="threads", reason="; ".join(passed_over))


def _named(name: KernelEngine, situation: Situation, call: SystemCall) -> EngineChoice:
    asked = f"{situation.host}: --kv-io-engine is {name}"
    if situation.files is None:
        raise StorageError(
            f"{asked}, and the backend does not keep its objects in files; take threads or auto"
        )
    problem = refusal(name, situation.depth, call)
    if problem is not None:
        raise StorageError(f"{asked}, which can't be had there: {problem}; or take auto")
    asynchronous, finding = _try(name, situation, call)
    return EngineChoice(
        name=name, reason=f"asked for by --kv-io-engine={name}; {finding}",
        asynchronous=asynchronous,
    )  # fmt: skip


def _try(name: KernelEngine, situation: Situation, call: SystemCall) -> tuple[bool, str]:
    """Whether the engine is asynchronous there, and what was seen."""
    files = situation.files
    assert files is not None
    assert situation.directory is not None
    plan = ProbePlan.of(
        directory=situation.directory,
        direct=not files.buffered,
        one_file=isinstance(files, Slabs),
        depth=situation.depth,
        transfer_bytes=situation.transfer_bytes,
    )
    try:
        queue = open_queue(name, plan.transfers, plan.transfers, call)
    except OSError as error:
        return False, explained(name, error)
    try:
        found = probe(queue, plan)
    except OSError as error:
        return False, f"trying it in {situation.directory} failed ({error.strerror})"
    finally:
        queue.close()
    lacking = [result for result in found if not result.asynchronous]
    if lacking:
        return False, f"it is not asynchronous in {situation.directory}: {seen(lacking)}"
    return True, f"{name} is asynchronous here: {seen(found)}"


def open_queue(name: IoEngineName, slots: int, depth: int, call: SystemCall = system_call) -> Queue:
    """Make the kernel's queue; OSError where it can't be had."""
    return Context(slots, depth, call=call) if name == "libaio" else Ring(slots, call=call)


def make_engine(name: IoEngineName, backend: Backend, situation: Situation) -> IoEngine:
    """Make the engine that was chosen; the loop registers its buffers next."""
    files, depth = situation.files, situation.depth
    if name == "inline":
        return InlineEngine(backend, depth)
    if name == "threads" and situation.batch_submits is not None:
        assert not isinstance(files, Slabs)
        return BatchEngine(backend, depth, files, situation.batch_submits)
    if name == "threads" and situation.bucket_readers is not None:
        return BucketEngine(backend, depth, situation.buckets, situation.bucket_readers)
    if name == "threads":
        return ThreadsEngine(backend, depth)
    assert files is not None

    def opened(slots: int) -> Queue:
        return open_queue(name, slots, depth)

    if isinstance(files, Slabs):
        return SlabEngine(name, files, depth, opened)
    return FileEngine(name, files, depth, opened)
