"""One launch of all ranks, from the command to the checked record.

Controller side; imports neither pytest nor MPI. Whatever the end of a launch is, nothing
of it stays on a host that can be reached.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_kvcache.backends.posix.cachedir import remove_run_dir, run_dir
from pytest_kvcache.errors import LaunchError, ResultError, StorageError
from pytest_kvcache.hosts.processes import LaunchProcesses, describe_process
from pytest_kvcache.hosts.sessiondirs import SessionDirs, temporary_directory
from pytest_kvcache.hosts.sharedmemory import Segments
from pytest_kvcache.launch.diagnosis import cause_of_death, explanation, relevant_lines
from pytest_kvcache.launch.supervise import LaunchExit, StopLaunch, supervise, tail_lines
from pytest_kvcache.launchers.families import FAMILIES, leftovers_of
from pytest_kvcache.results.events import EventTail
from pytest_kvcache.results.invariants import check_record
from pytest_kvcache.results.record import TrialRecord
from pytest_kvcache.system.cgroups import Groups, MemoryKills
from pytest_kvcache.system.clocks import SpanWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pytest_kvcache.hosts.cluster import Cluster
    from pytest_kvcache.launchers.family import LauncherFamily
    from pytest_kvcache.plan.plan import Plan

_TAIL_LINES = 12  # of the launcher's output, shown with a failure
_LOG_LINES = 5000  # of it, searched for the cause: each of many ranks may print some
_CENSUS_AFTER_S = 8.0  # ranks that are not together by then are counted
_CENSUS_EVERY_S = 2.0
_GRACE_S = 3.0  # between SIGTERM and SIGKILL of the launcher


class HostWatch:
    """Looks after the hosts of one launch while the launcher itself says nothing.

    A launcher may wait for ever for a host that is cut off, or for a rank that ended
    before all ranks were together.
    """

    def __init__(self, plan: Plan, cluster: Cluster | None) -> None:
        self._plan = plan
        self._cluster = cluster
        self._names = [host.name for host in plan.layout.hosts]
        self._began_s = time.monotonic()
        self._counted_s = self._began_s + _CENSUS_AFTER_S
        self._short: str | None = None
        self._ranks: list[Mapping[str, Any]] = []
        self._killed_before = self._memory_kills()
        self.misplaced: str | None = None
        """Why the launch can't count: a rank on another host than planned."""

    def ranks_together(self, ranks: Sequence[Mapping[str, Any]]) -> None:
        """Have the hosts report which process of a rank ends, and when, from here on."""
        self._ranks = list(ranks)
        if self._cluster is not None:
            layout = self._plan.layout
            self.misplaced = self._misplaced(self._cluster)
            pids = {
                host: [ranks[rank]["pid"] for rank in layout.ranks_on(host)] for host in self._names
            }
            self._cluster.watch(pids)

    def _misplaced(self, cluster: Cluster) -> str | None:
        """The first rank that is not on the host it was planned for, by what that calls itself."""
        for rank, who in enumerate(self._ranks):
            name = self._plan.layout.host_of(rank)
            expected = cluster.hostname(name)
            if expected is not None and who["host"] != expected:
                return (
                    f"rank {rank} runs on {who['host']}, the plan has it on {name}, which calls"
                    f" itself {expected}: the launcher has placed ranks in its own way, look at"
                    " --kv-mpi-params and the launcher's own settings"
                )
        return None

    def first_gone(self) -> str | None:
        """The first rank that ended; None if none has, or nobody was watching."""
        if self._cluster is None or not self._ranks:
            return None
        layout = self._plan.layout
        ours = {
            (host, self._ranks[rank]["pid"]): rank
            for host in self._names
            for rank in layout.ranks_on(host)
        }
        gone = next((ours[end] for end in self._cluster.gone() if end in ours), None)
        if gone is None:
            return None
        who = self._ranks[gone]
        return f"rank {gone} (pid {who['pid']}) on host {who['host']} was the first to end"

    def check(self, *, together: bool) -> None:
        """Raise StopLaunch if a host is lost, or ranks that never got together are gone."""
        if self.misplaced is not None:
            raise StopLaunch(self.misplaced)
        lost = {} if self._cluster is None else self._cluster.lost(self._names)
        if lost:
            raise StopLaunch("; ".join(self._lost(host, why) for host, why in lost.items()))
        now_s = time.monotonic()
        counts = self._cluster is None or self._cluster.sees_ranks
        if counts and not together and now_s - self._counted_s >= _CENSUS_EVERY_S:
            self._counted_s = now_s
            self._count()

    def _lost(self, host: str, why: str) -> str:
        ranks = self._plan.layout.ranks_on(host)
        shown = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"
        return f"host {host} with {shown} is lost: {why}"

    def _count(self) -> None:
        """Stop a launch that is twice short of the same ranks: they are not just late."""
        short = self._missing()
        if short is not None and short == self._short:
            raise StopLaunch(short)
        self._short = short

    def _missing(self) -> str | None:
        """Who is short of ranks once ranks run anywhere; until then the launcher is under way."""
        here = LaunchProcesses(marker=self._plan.run_id)
        everyone = here.ranks()
        if self._cluster is None:
            counts = {"this machine": (everyone, self._plan.world_size)}
        else:
            own = [host for host in self._names if self._cluster.is_own(host)]
            others = [host for host in self._names if host not in own]
            # Nothing there: the launcher is on its way, or what it started has ended.
            counts = {
                host: (count or 0, len(self._plan.layout.ranks_on(host)))
                for host, count in self._cluster.ranks(others).items()
                if count is not None or not here.reaches(host)
            }
            planned = 1 + sum(len(self._plan.layout.ranks_on(host)) for host in own)
            counts["this machine"] = (everyone, planned)
        if not any(running for running, _planned in counts.values()):
            return None
        for host, (running, planned) in counts.items():
            if running < planned:
                return (
                    f"{running} of {planned} rank processes run on {host}, and the ranks are not"
                    " together; the others ended or never began, see the last lines"
                )
        return None

    def _memory_kills(self) -> dict[str, MemoryKills]:
        if self._cluster is None:
            return {socket.gethostname(): MemoryKills.now(Groups.of_process())}
        return self._cluster.memory_kills(self._names)

    def killed_for_memory(self) -> list[str]:
        """What the kernels of the hosts have done since the launch began, a phrase each."""
        killed = {
            host: kills.since(self._killed_before[host])
            for host, kills in self._memory_kills().items()
            if host in self._killed_before
        }
        return [
            f"the kernel of host {host} {text} meanwhile; give the ranks more, or lower --kv-np,"
            " --kv-queue-depth or the capacity"
            for host, text in killed.items()
            if text
        ]

    def diagnose(self) -> list[str]:
        """What other hosts can say of an end that nobody has explained."""
        return [] if self._cluster is None else self._cluster.diagnose(self._names)

    def clean_up(self) -> list[str]:
        """End what is left on other hosts; sentences on what can't be ended."""
        return [] if self._cluster is None else self._cluster.clean_up(self._names)


class FailureCleanup:
    """What follows a launch that failed; here nothing beyond the processes themselves."""

    def cause(self, exit_code: int, lines: Sequence[str]) -> str | None:
        """What the launch's end means where the launcher itself says nothing."""
        del exit_code, lines
        return None

    def clean_up(self, lines: Sequence[str]) -> list[str]:
        """End what is left; sentences on what can't be ended. ``lines`` are the log's last."""
        del lines
        return []


class Launch:
    """One launch; ``record`` runs it."""

    def __init__(
        self,
        argv: Sequence[str],
        plan: Plan,
        directory: Path,
        *,
        cluster: Cluster | None,
        on_event: Callable[[Mapping[str, Any]], None],
        cleanup: FailureCleanup | None = None,
        families: Sequence[LauncherFamily] = tuple(FAMILIES.values()),
    ) -> None:
        self._families = families
        self._leaves = leftovers_of(families)
        self._argv = list(argv)
        self._plan = plan
        self._directory = directory
        self._log = directory / "mpirun.log"
        self._on_event = on_event
        self._tail = EventTail(directory / "events.jsonl")
        self._watch = HostWatch(plan, cluster)
        self._cleanup = cleanup or FailureCleanup()
        self._failed: Mapping[str, Any] | None = None
        self._waiting: Mapping[str, Any] | None = None
        self._ranks: list[Mapping[str, Any]] = []
        self._span = SpanWatch()

    def record(self, environ: Mapping[str, str]) -> TrialRecord:
        """Launch, wait, read the record. Raises LaunchError or ResultError."""
        before = (
            Segments.now(patterns=self._leaves.segments),
            SessionDirs.now(temporary_directory(environ), self._leaves.files),
        )
        try:
            ended = supervise(
                self._argv,
                log_path=self._log,
                cwd=self._directory,
                env=environ,
                deadline_s=self._plan.deadline_s,
                on_poll=self._poll,
                marker=self._plan.run_id,
                grace_s=_GRACE_S,
            )
            self._read_events()
        except BaseException:
            self._tidy(before)
            raise
        problem = self._problem(ended) or _stuck(ended)
        if problem is not None:
            left = self._tidy(before)
            raise LaunchError(
                "\n  ".join([problem, *left]),
                argv=self._argv,
                exit_code=ended.exit_code,
                tail=tail_lines(self._log, _TAIL_LINES),
            )
        return self._read_record()

    def _poll(self) -> None:
        self._read_events()
        self._watch.check(together=bool(self._ranks))

    def _read_events(self) -> None:
        self._span.look()
        for event in self._tail.poll():
            if event["event"] == "phase":
                self._span.receive(event["phase"])
            elif event["event"] == "failed" and self._failed is None:
                self._failed = event
            elif event["event"] == "ranks":
                self._ranks = event["ranks"]
                self._watch.ranks_together(self._ranks)
            elif event["event"] == "progress":
                self._waiting = event["waiting"]
            self._on_event(event)

    def _tidy(self, before: tuple[Segments, SessionDirs]) -> list[str]:
        """Remove what a launch that went wrong may leave behind; what stays is reported."""
        for things in before:
            things.remove_new()
        left = self._cleanup.clean_up(tail_lines(self._log, _LOG_LINES))
        left += self._watch.clean_up()
        if self._plan.needs_directory and not self._plan.keep:
            left += self._remove_data()
        if left:
            with self._log.open("a", encoding="utf-8") as log:
                log.writelines(f"[kv] {line}\n" for line in left)
        return left

    def _remove_data(self) -> list[str]:
        """Remove what ranks stored; where one of them is stuck in the storage, we would be too."""
        plan = self._plan
        if LaunchProcesses(marker=plan.run_id).ranks():
            place = run_dir(plan.cache_dir, plan.run_id)
            return [f"{place} is there until its storage answers again, and is removed then"]
        try:
            remove_run_dir(plan.cache_dir, plan.run_id)
        except StorageError as error:
            return [str(error)]
        return []

    def _problem(self, ended: LaunchExit) -> str | None:
        """Why the launch failed, in one sentence and the last lines; None: it did not."""
        cause = self._cause(ended)
        if cause is None:
            return None
        tail = relevant_lines(tail_lines(self._log, _LOG_LINES), _TAIL_LINES, self._families)
        shown = "".join(f"\n    {line}" for line in tail)
        return f"{cause}\n  last lines of {self._log}:{shown or ' (empty)'}"

    def _cause(self, ended: LaunchExit) -> str | None:
        """The first thing that went wrong, and whether the kernel was short of memory."""
        cause = self._first_cause(ended)
        if cause is None or self._failed is not None:
            return cause
        return "; ".join([cause, *self._watch.killed_for_memory()])

    def _first_cause(self, ended: LaunchExit) -> str | None:
        if ended.ended_by == "stopped" or self._watch.misplaced is not None:
            return ended.reason or self._watch.misplaced
        if self._failed is not None:
            rank, host = self._failed["rank"], self._failed["host"]
            return f"rank {rank} on host {host}: {self._failed['error']}"
        if ended.ended_by == "deadline":
            return self._overdue()
        if ended.exit_code != 0 or not (self._directory / "trial.json").is_file():
            return self._death(ended.exit_code)
        return None

    def _death(self, exit_code: int | None) -> str:
        """What the launcher says of a rank, unless another one was the first to end.

        Launchers take one of those that went down with it for the culprit; that the
        coordinator gave up explains nothing.
        """
        lines = tail_lines(self._log, _LOG_LINES)
        died = cause_of_death(lines, self._ranks, self._families)
        if died is None or died.startswith("the coordinator"):
            ended = None if exit_code is None else self._cleanup.cause(exit_code, lines)
            return ended or self._explained(
                died or _ending(exit_code, explanation(lines, self._families))
            )
        first = self._watch.first_gone()
        if first is None or first.partition("(")[0] == died.partition("(")[0]:
            return died
        return f"{first}; {died}"

    def _overdue(self) -> str:
        limit = f"the launch was not over after {self._plan.deadline_s:g} s and was ended"
        if self._waiting is None:
            return f"{limit}; look for a rank that hangs, or raise --kv-deadline"
        rank, host, wait_s = (self._waiting[key] for key in ("rank", "host", "s"))
        return (
            f"rank {rank} on host {host} has waited {wait_s:.0f} s for one transfer, and {limit};"
            " look for a storage that hangs there, or raise --kv-deadline"
        )

    def _explained(self, how: str) -> str:
        """What the hosts say, and what little else is known."""
        gone = self._watch.first_gone()
        return "; ".join([*([] if gone is None else [gone]), *self._watch.diagnose(), how])

    def _read_record(self) -> TrialRecord:
        path = self._directory / "trial.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultError(f"{path} is no whole record: {error}") from error
        record = TrialRecord.from_json(data, self._plan)
        record = replace(record, clock=self._span.fill(record.clock))
        check_record(record, self._plan)
        return record


def _ending(exit_code: int | None, reason: str | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"the launcher was killed by signal {-exit_code}"
    if exit_code == 0:
        return "the launcher ended with exit code 0, but the ranks left no record"
    why = "" if reason is None else f": {reason}"
    return f"the launcher ended with exit code {exit_code}{why}"


def _stuck(ended: LaunchExit) -> str | None:
    """Processes that not even SIGKILL could end would disturb whatever comes next."""
    if not ended.survivors:
        return None
    named = ", ".join(map(describe_process, ended.survivors))
    return f"{named} of the launch can't be ended: stuck in the kernel"
