"""The hosts of a run: what they are, whether they can be used, whether they are there.

Controller side; imports neither pytest nor MPI. All hosts are asked at the same time.
"""

from __future__ import annotations

import secrets
import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import KVCacheError
from pytest_kvcache.hosts.facts import HostFacts, machine_identity
from pytest_kvcache.hosts.links import Answer, HostLinks
from pytest_kvcache.hosts.localhost import is_local
from pytest_kvcache.hosts.lock import Patience, is_taken
from pytest_kvcache.launchers.families import BUILT_IN_LEFTOVERS
from pytest_kvcache.system.cgroups import MemoryKills
from pytest_kvcache.system.gpus import TIMEOUT_S
from pytest_kvcache.units import format_count
from pytest_kvcache.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_kvcache.hosts.access import HostAccess
    from pytest_kvcache.hosts.facts import HostQuestion
    from pytest_kvcache.hosts.hostlist import RankLayout
    from pytest_kvcache.launchers.family import Leftovers

_FRESH_S = 5.0
_FACTS_S = 30.0  # a cold interpreter on a parallel file system may take a while
_ANSWER_S = 10.0
_CLEAN_UP_S = 10.0
_BESIDE = "(this process)"  # no host is called so
_AGENT = ("-m", "pytest_kvcache.hosts.agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the hosts of a layout answered; ``names`` in its order.

    ``groups`` are the sets of hosts that see one cache directory; a host with a problem
    is in none. ``problems`` are sentences without the host's name.
    """

    names: tuple[str, ...]
    facts: Mapping[str, HostFacts]
    problems: Mapping[str, Sequence[str]]
    groups: tuple[frozenset[str], ...]
    elapsed_s: float
    made_s: float

    def is_old(self) -> bool:
        """Whether a host that was lost then may be back now."""
        return time.monotonic() - self.made_s > _FRESH_S

    def with_problems(self, more: Mapping[str, Sequence[str]]) -> Survey:
        """The survey with more problems."""
        hosts = dict.fromkeys([*self.problems, *more])
        merged = {h: (*self.problems.get(h, ()), *more.get(h, ())) for h in hosts}
        return replace(self, problems=merged)

    def group_of(self, name: str) -> frozenset[str]:
        """The hosts that share the cache directory with ``name``, itself included."""
        return next((group for group in self.groups if name in group), frozenset({name}))

    def tightest_share(self, layout: RankLayout) -> tuple[int, int] | None:
        """(bytes free, ranks on them) where a rank's share is smallest; None: unknown."""
        ranks = {host.name: host.ranks for host in layout.hosts}
        shares = [
            (min(self._free(name) for name in group), sum(ranks[name] for name in group))
            for group in self.groups
        ]
        return min(shares, key=lambda share: share[0] / share[1], default=None)

    def _free(self, name: str) -> int:
        filesystem = self.facts[name].filesystem
        assert filesystem is not None
        return int(filesystem["available_bytes"])


@dataclass(slots=True)
class _PartialSurvey:
    """What a survey has found so far."""

    facts: dict[str, HostFacts] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def sort(self, answers: Mapping[str, Answer]) -> dict[str, Any]:
        """The values; every problem goes to its host."""
        values = {}
        for host, answer in answers.items():
            if answer.problem is None:
                values[host] = answer.value
            else:
                self.problems.setdefault(host, []).append(answer.problem)
        return values

    def sound(self) -> list[str]:
        """The hosts that answered and have no problem."""
        return [host for host in self.facts if not self.problems.get(host)]


class Cluster:
    """Connections to the hosts of a run, and an agent of our own where none is needed."""

    def __init__(
        self,
        run_id: str,
        access: HostAccess,
        python: str,
        env: Mapping[str, str],
        patience: Patience | None = None,
        *,
        leaves: Leftovers = BUILT_IN_LEFTOVERS,
    ) -> None:
        """``env`` is what the interpreter needs on every host; ``patience`` None: no waiting.

        ``leaves`` is what launchers may leave on the hosts.
        """
        self._leaves = leaves
        self._patience = patience or Patience(0.0)
        self._env = dict(env)
        self._run_id = run_id
        self._access = access
        self._python = python
        self._links = HostLinks(access.explain)
        self._question: HostQuestion | None = None
        self._commands: dict[str, Sequence[str]] = {}
        self._hostnames: dict[str, str] = {}
        self._claim: Mapping[str, Any] = {}

    @property
    def sees_ranks(self) -> bool:
        """Whether ``ranks``, ``watch`` and ``gone`` know anything."""
        return self._access.sees_ranks

    def survey(self, names: Sequence[str], question: HostQuestion, *, keep: bool) -> Survey:
        """Ask every host; those that can be used are held for this run from then on."""
        began_s, found = time.monotonic(), _PartialSurvey()
        self._question = question
        program = [self._python, *_AGENT]
        others = self._others(names)
        refused = self._access.prepare(others, question.cache_dir)
        self._links.refuse(refused)
        commands = {
            host: self._access.argv(host, program, self._env)
            for host in others
            if host not in refused
        }
        self._commands |= commands
        self._links.open(commands, program)
        request = {"do": "facts", "question": question.to_json()}
        facts_s = _FACTS_S + TIMEOUT_S * question.gpus
        answers = self._ask(names, request, facts_s)
        self._refuse_other_versions(answers)
        for host, value in found.sort(answers).items():
            self._take_facts(found, host, value)
        self._hostnames |= {host: facts.hostname for host, facts in found.facts.items()}
        self._find_doubles(found)
        claim = {
            "do": "claim", "run_id": self._run_id, "cache_dir": question.cache_dir, "keep": keep,
            "sees_ranks": self.sees_ranks, "leaves": self._leaves.to_json(),
        }  # fmt: skip
        self._claim = claim
        waited_s = self._patience.waited_s
        found.sort(self._claimed(self._others(found.sound()), claim))
        if self._patience.waited_s > waited_s:  # what another run has left is free now
            answers = self._ask(found.sound(), request, facts_s)
            for host, value in found.sort(answers).items():
                self._take_facts(found, host, value)
        self._claim_here(claim)
        groups: tuple[frozenset[str], ...] = ()
        if question.cache_dir is not None:
            groups = self._sharing(found, question.cache_dir)
        return Survey(
            names=tuple(names),
            facts=found.facts,
            problems={host: tuple(texts) for host, texts in found.problems.items()},
            groups=groups,
            elapsed_s=time.monotonic() - began_s,
            made_s=time.monotonic(),
        )

    def _claimed(self, names: Sequence[str], claim: Mapping[str, Any]) -> dict[str, Answer]:
        """Have the hosts' agents take their locks, as long as there is patience."""
        answers = self._ask(names, claim, _ANSWER_S)
        while True:
            taken = {host: a.problem for host, a in answers.items() if is_taken(a.problem)}
            first = next((problem for problem in taken.values() if problem is not None), None)
            if first is None or not self._patience.wait(first):
                return answers
            answers |= self._ask(taken, claim, _ANSWER_S)

    def _claim_here(self, claim: Mapping[str, Any]) -> None:
        """If this process is killed, an agent beside it ends what is left on its own host."""
        if self.sees_ranks:
            program = [sys.executable, *_AGENT]
            self._links.open({_BESIDE: program}, program)
            self._links.ask({_BESIDE: {**claim, "locks": False}}, _ANSWER_S)

    def lost(self, names: Sequence[str]) -> dict[str, str]:
        """Hosts that are not there any more, and why."""
        return self._links.lost(self._others(names))

    def ranks(self, names: Sequence[str]) -> dict[str, int | None]:
        """How many processes of ranks run on each host; None: nothing of the launcher does.

        A host that does not answer is left out.
        """
        answers = self._ask(names, {"do": "ranks", "run_id": self._run_id}, _ANSWER_S)
        return {host: answer.value for host, answer in answers.items() if answer.problem is None}

    def memory_kills(self, names: Sequence[str]) -> dict[str, MemoryKills]:
        """What the kernel of each host has killed for memory so far, of those that answer."""
        answers = self._ask(names, {"do": "memory kills"}, _ANSWER_S)
        return {
            host: MemoryKills(**answer.value)
            for host, answer in answers.items()
            if answer.problem is None
        }

    def watch(self, pids: Mapping[str, Sequence[int]]) -> None:
        """Have their hosts report the end of these processes, without asking again."""
        if not self.sees_ranks:
            return
        self._links.forget_ends()
        self._links.answer_here(filter(self.is_own, pids))
        for host, numbers in pids.items():
            self._links.send(host, {"do": "watch", "pids": list(numbers)})

    def gone(self) -> list[tuple[str, int]]:
        """(host, pid) of watched processes that have ended, as it was reported."""
        return [(host, pid) for _at_s, host, pid in sorted(self._links.ends())]

    def diagnose(self, names: Sequence[str]) -> list[str]:
        """What the other hosts can say of a launch that ended for no known reason."""
        others = [host for host in self._others(names) if host not in self.lost(names)]
        found = _PartialSurvey()
        orphans = {"do": "orphans", "run_id": self._run_id}
        left_alone = found.sort(self._ask(others if self.sees_ranks else (), orphans, _ANSWER_S))
        if self._question is not None:
            question = replace(self._question, gpus=False)  # seconds, and they are still there
            request = {"do": "facts", "question": question.to_json()}
            for host, value in found.sort(self._ask(others, request, _ANSWER_S)).items():
                self._take_facts(found, host, value)
        lines = [f"host {host}: {text}" for host, texts in found.problems.items() for text in texts]
        return lines + [
            f"host {host}: the launcher's daemon there is gone, and left"
            f" {format_count(count, 'rank')} alone"
            for host, count in left_alone.items()
            if count
        ]

    def clean_up(self, names: Sequence[str]) -> list[str]:
        """End what a launch left on the other hosts; a sentence on each thing that stays.

        A host that can't be reached cleans itself up and is reported elsewhere.
        """
        there = [host for host in self._others(names) if host not in self.lost(names)]
        answers = self._ask(there, {"do": "clean up"}, _CLEAN_UP_S)
        left = []
        for host, answer in answers.items():
            if answer.problem is not None and host not in self.lost(names):
                left.append(f"host {host}: clean-up failed: {answer.problem}")
            left += [f"host {host}: {what} can't be ended" for what in answer.value or ()]
        return left

    def hostname(self, name: str) -> str | None:
        """What a host calls itself; None: it has not said."""
        return self._hostnames.get(name)

    def close(self) -> None:
        """Give the hosts back; where an agent was killed or is stuck, by another one.

        That one ends its predecessor and what the run has left. A host that is cut off
        does without.
        """
        left = [host for host in self._links.close() if host in self._commands]
        if not left:
            return
        again = HostLinks(self._access.explain)
        again.open({host: self._commands[host] for host in left}, [self._python, *_AGENT])
        again.ask(dict.fromkeys(left, self._claim), _ANSWER_S)
        again.close()

    def _ask(
        self, names: Iterable[str], request: Mapping[str, Any], timeout_s: float
    ) -> dict[str, Answer]:
        """Ask hosts at the same time, this one among them."""
        wanted = list(names)
        self._links.answer_here(filter(self.is_own, wanted))
        return self._links.ask(dict.fromkeys(wanted, request), timeout_s)

    def _others(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not self.is_own(name)]

    def is_own(self, name: str) -> bool:
        """Whether this process answers for the host."""
        return not self._access.is_linked(name)

    def _refuse_other_versions(self, answers: dict[str, Answer]) -> None:
        for host in self._others(answers):
            version = self._links.version(host)
            if version not in (None, VERSION):
                answers[host] = Answer(
                    problem=f"has pytest-kvcache {version} in {self._python}, the controller has"
                    f" {VERSION}; install the same version there"
                )

    def _take_facts(self, found: _PartialSurvey, host: str, value: Mapping[str, Any]) -> None:
        try:
            facts = HostFacts.from_json(value)
        except KVCacheError as error:
            found.problems.setdefault(host, []).append(str(error))
            return
        found.facts[host] = facts
        if facts.problems:
            found.problems.setdefault(host, []).extend(facts.problems)

    def _find_doubles(self, found: _PartialSurvey) -> None:
        """Two names of one host have one disk and one set of cores, and rob each other."""
        _find_namesakes(found)
        known = {machine_identity(): "this machine"}
        for host, facts in found.facts.items():
            first = known.setdefault(facts.machine, host)
            if first != host and not (first == "this machine" and is_local(host)):
                found.problems.setdefault(host, []).append(
                    f"is the same machine as {first}; name it once, with its ranks as {host}:2"
                )

    def _sharing(self, found: _PartialSurvey, directory: str) -> tuple[frozenset[str], ...]:
        """Which hosts see the files of which: not asked but tried."""
        token = secrets.token_hex(8)
        mark = {"do": "mark", "directory": directory, "token": token}
        marks: dict[str, str] = found.sort(self._ask(found.sound(), mark, _ANSWER_S))
        see = {"do": "see", "directory": directory, "names": list(marks.values())}
        seen = found.sort(self._ask(marks, see, _ANSWER_S))
        found.sort(self._ask(marks, {"do": "unmark"}, _ANSWER_S))
        groups: dict[tuple[str, ...], set[str]] = {}
        for host in found.sound():
            groups.setdefault(tuple(seen[host]), set()).add(host)
        return tuple(frozenset(group) for group in groups.values())


def _find_namesakes(found: _PartialSurvey) -> None:
    """Files, ranks and locks of hosts are told apart by what they call themselves."""
    names: dict[str, tuple[str, str]] = {}
    for host, facts in found.facts.items():
        first, machine = names.setdefault(facts.hostname, (host, facts.machine))
        if machine != facts.machine:
            found.problems.setdefault(host, []).append(
                f"calls itself {facts.hostname}, as {first} does; give each host a name of its own"
            )
