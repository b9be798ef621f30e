"""Agent sessions JSONL: one session a line, its requests and those of its sub-agents nested.

Source: github.com/callanjfox/kv-cache-tester ``traces/`` (Apache-2.0), on Hugging Face as
semianalysisai/cc-traces-weka-*. Per session ``block_size`` (64) and ``hash_id_scope``
(``local``: ids mean something in one session only); ``requests`` with ``t`` (s from the
session's start), ``in``, ``out`` (tokens) and ``hash_ids`` of full, prefix-chained blocks. An
entry that has ``requests`` itself is a sub-agent: its requests' ``t`` count from its own, and
its ids are of the session's name space.

No session has a time of day: all start together. Requests are decided in the order of their
time, then of their session's line, then of their position in it.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.blocksize import MisfitError, block_tokens
from pytest_kvcache.traces.branches import Branches
from pytest_kvcache.traces.fields import integer, json_lines, number, present, shown
from pytest_kvcache.traces.ids import Batch, NotChainedError, PrefixNumbers, take
from pytest_kvcache.traces.recorded import Asked, Reading, Recorded
from pytest_kvcache.traces.times import MAX_SECONDS, TimeUnit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.traces.source import Source

BLOCK_TOKENS = 64
FIELDS = ("t", "in", "out", "hash_ids")

_NEEDS = f"a line of agent sessions is an object whose requests have {', '.join(FIELDS)}"
_SCOPES = ("local", "global")


class _Session:
    """One line's requests as columns."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.times_s = array("d")
        self.tokens = array("q")  # of prompt and answer, by turns
        self.counts = array("q")
        self.ids = array("Q")
        size = fields.get("block_size")
        self.block_size = size if size is None else integer(size, "block_size", 1)
        self.scope = fields.get("hash_id_scope", "local")
        if self.scope not in _SCOPES:
            raise ValueError(f"hash_id_scope is {shown(self.scope)}; it must be local or global")
        for place, start_s, request in _flat(fields["requests"], "requests", 0.0):
            self._add(place, start_s, request)

    def _add(self, place: str, start_s: float, request: dict[str, Any]) -> None:
        time_s, tokens, output, ids = (present(request, name, _NEEDS) for name in FIELDS)
        self.times_s.append(start_s + number(time_s, f"{place}.t", MAX_SECONDS))
        self.tokens.extend((integer(tokens, f"{place}.in"), integer(output, f"{place}.out")))
        before = len(self.ids)
        try:
            take(self.ids, ids)
        except ValueError as error:
            raise ValueError(f"{place}.{error}") from error
        self.counts.append(len(self.ids) - before)


def read(source: Source, asked: Asked) -> Recorded:
    """Read the file; all other fields are ignored."""
    found = _Sessions(source.path, asked)
    for line, session in json_lines(source, _Session, _NEEDS):
        found.add(session, line)
    return found.finish()


class _Sessions:
    """Collects sessions; ids are numbered session by session, and nothing else is kept of them."""

    def __init__(self, path: str, asked: Asked) -> None:
        self._path, self._asked = path, asked
        self._ids = asked.ids or "prefix"
        self._times_s, self._tokens = array("d"), array("q")
        self._counts = array("q")
        self._lines = array("q")
        self._branches = Branches()
        self._numbers = PrefixNumbers(self._ids)
        self._owners = array("i")  # of each number, the request that it is new in
        self._first = 0  # the number that the name space of ids begins with
        self._scope: str | None = None
        self._size: int | None = None

    def add(self, session: _Session, line: int) -> None:
        """Take a session."""
        self._check_alike(session, line)
        if session.scope == "local":
            self._first += self._numbers.count
            self._numbers = PrefixNumbers(self._ids)
        counts = np.array(session.counts, dtype=np.int64)
        batch = Batch.of(session.ids, counts)
        try:
            numbers, is_new = self._numbers.of(batch)
        except NotChainedError as error:
            request = batch.request_of(error.at)
            place = error.at - int(batch.starts[request])
            told = error.told(place, "an earlier one")
            problem = f"request {request} of the session, sub-agents' counted: {told}"
            raise TraceError(self._path, line, problem) from error
        self._branch(batch, numbers, is_new)
        self._times_s.extend(session.times_s)
        self._tokens.extend(session.tokens)
        self._counts.extend(session.counts)
        self._lines.extend([line] * len(counts))

    def _branch(self, batch: Batch, numbers: Any, is_new: Any) -> None:
        """Keep of each prompt what it shares with an earlier one, and what it adds."""
        base = len(self._branches)
        new_before = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(is_new)))
        own = new_before[batch.starts + batch.counts] - new_before[batch.starts]
        owners = np.repeat(np.arange(base, base + len(own), dtype=np.int32), own)
        self._owners.frombytes(owners.tobytes())
        shared = batch.counts - own
        parents = np.zeros(len(own), dtype=np.int64)
        has_parent = shared > 0
        last = numbers[(batch.starts + shared - 1)[has_parent]] + self._first
        parents[has_parent] = np.frombuffer(self._owners, dtype=np.int32)[last]
        self._branches.extend(parents, shared, own)

    def _check_alike(self, session: _Session, line: int) -> None:
        if self._scope is None:
            self._scope, self._size = session.scope, session.block_size
        for name, here, there in (
            ("hash_id_scope", session.scope, self._scope),
            ("block_size", session.block_size, self._size),
        ):
            if here != there:
                problem = f"{name} is {here}, and in line 1 {there}; split the file by it"
                raise TraceError(self._path, line, problem)

    def finish(self) -> Recorded:
        """All requests in the order in which they are decided."""
        times_s = np.array(self._times_s, dtype=np.float64)
        tokens, output = np.array(self._tokens, dtype=np.int64).reshape(-1, 2).T
        lines = np.array(self._lines, dtype=np.int64)
        size, why = self._block_size(tokens, lines)
        # Requests were read by session and position, which a stable order keeps.
        order = np.argsort(times_s, kind="stable")
        offsets, block_ids = self._branches.laid_out(order)
        return Recorded(
            block_tokens=size,
            arrival_ns=np.rint(times_s[order] * 1e9).astype(np.int64),
            input_tokens=tokens[order],
            output_tokens=output[order],
            offsets=offsets,
            block_ids=block_ids,
            reading=Reading(unit=TimeUnit(name="s"), ids=self._ids, block_why=why),
            conversations=lines[order],
        )

    def _block_size(self, tokens: Any, lines: Any) -> tuple[int, str]:
        own, asked = self._size, self._asked.block_tokens
        if own is not None and asked not in (None, own):
            problem = f"block_size is {own}, and --kv-block-tokens {asked}; leave it out"
            raise TraceError(self._path, 1, problem)
        if not len(lines):
            raise TraceError(self._path, 0, "its sessions have no requests; name another file")
        counts = np.array(self._counts, dtype=np.int64)
        try:
            return block_tokens(tokens, counts, asked=own or asked, usual=BLOCK_TOKENS, field="in")
        except MisfitError as error:
            line = int(lines[error.request])
            place = error.request - int(np.searchsorted(lines, line))
            problem = f"request {place} of the session, sub-agents' counted: {error}"
            raise TraceError(self._path, line, problem) from error


def _flat(requests: Any, place: str, start_s: float) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Yield where each request stands, what its time counts from, and the request."""
    if not isinstance(requests, list):
        raise ValueError(f"{place} is {shown(requests)}; it must be a list")  # noqa: TRY004 - data
    for number_, request in enumerate(requests):
        here = f"{place}[{number_}]"
        if not isinstance(request, dict):
            raise ValueError(f"{here} is {shown(request)}; it must be an object")  # noqa: TRY004
        if "requests" in request:
            began_s = number(present(request, "t", _NEEDS), f"{here}.t", MAX_SECONDS)
            yield from _flat(request["requests"], f"{here}.requests", start_s + began_s)
        else:
            yield here, start_s, request
