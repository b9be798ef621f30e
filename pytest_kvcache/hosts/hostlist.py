"""The hosts a user names, and which ranks run on which of them.

Pure: opens no socket, resolves no name, imports nothing of the package but
``errors``. The only file access is ``read_hostfile``, which callers pass in.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.units import format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LABEL_MAX_CHARS = 63
_NAME_MAX_CHARS = 253  # RFC 1035, section 2.3.4
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?")
_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<slots>[^:]*))?")
_SLOTS = re.compile(r"0*[1-9][0-9]{0,8}")
# How hostfiles spell a host's slots and their limit, with "-" as "_" (Open MPI's hostfile_lex.l).
_SLOT_KEYS = frozenset({"slots", "slot", "count", "cpus", "cpu"})
_LIMIT_KEYS = frozenset({"max_slots", "slots_max", "max_cpus", "cpus_max", "max_count"})
_SSH_KEYS = {"username": "-l", "user_name": "-l", "user": "-l", "port": "-p"}
_AROUND_EQUALS = re.compile(r"\s*=\s*")
_COMMENT = re.compile(r"(?:^|(?<=[\s,]))#.*")
_SHOWN_HOSTS = 5  # in a message; a cluster's list would hide the sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """One host as the user named it.

    ``name`` is a host name, an IPv4 address, or an IPv6 address *without* brackets;
    ``slots`` is how many ranks it may hold, None where none were given.
    Raises ``OptionError``.
    """

    name: str
    slots: int | None = None

    def __post_init__(self) -> None:
        if problem := _name_problem(self.name):
            raise OptionError(f"a host is named {self.name!r}; {problem}")
        if self.slots is not None and self.slots < 1:
            raise OptionError(f"host {self.name} has {self.slots} slots; it must have at least 1")

    def __str__(self) -> str:
        """Return what ``parse_hosts`` reads back: "n1", "n1:4", "[fe80::1]:4"."""
        slots = "" if self.slots is None else f":{self.slots}"
        return f"{bracketed(self.name)}{slots}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRanks:
    """How many ranks (at least 1) one host runs."""

    name: str
    ranks: int

    def __post_init__(self) -> None:
        if problem := _name_problem(self.name):
            raise OptionError(f"a host is named {self.name!r}; {problem}")
        if self.ranks < 1:
            raise OptionError(f"host {self.name} has {self.ranks} ranks; it must have at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLayout:
    """Where each rank runs: contiguous per host, in host order, from rank 0.

    The coordinator is not in it. A rank or host outside it raises ``ValueError``.
    """

    hosts: tuple[HostRanks, ...]

    def __post_init__(self) -> None:
        if not self.hosts:
            raise OptionError("a rank layout has no host; it must have at least one")
        if twice := _duplicate(host.name for host in self.hosts):
            raise OptionError(f"a rank layout names {twice} twice; each host stands once")

    @property
    def np(self) -> int:
        """Total ranks that do I/O."""
        return sum(host.ranks for host in self.hosts)

    def host_of(self, rank: int) -> str:
        """Return the name of the host that runs ``rank``."""
        return self._place(rank)[0]

    def local_index(self, rank: int) -> int:
        """Return the place of ``rank`` among its host's ranks; the first is 0."""
        return self._place(rank)[1]

    def first_on_host(self, rank: int) -> int:
        """Return the first rank of the host that runs ``rank``."""
        return rank - self.local_index(rank)

    def share_of(self, rank: int, cores: Sequence[int]) -> Sequence[int]:
        """Return the part of its host's ``cores`` that is the rank's own.

        Contiguous, equal to within one; more ranks than cores share single ones.
        """
        ranks = len(self.ranks_on(self.host_of(rank)))
        place = self.local_index(rank)
        first = place * len(cores) // ranks
        return cores[first : max(first + 1, (place + 1) * len(cores) // ranks)]

    def ranks_on(self, name: str) -> range:
        """Return the ranks that host ``name`` runs."""
        first = 0
        for host in self.hosts:
            if host.name == name:
                return range(first, first + host.ranks)
            first += host.ranks
        raise ValueError(f"no host of this layout is named {name!r}")

    def to_json(self) -> dict[str, Any]:
        """Return ``{"hosts": [{"name": "n1", "ranks": 4}, …]}``."""
        return {"hosts": [{"name": host.name, "ranks": host.ranks} for host in self.hosts]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RankLayout:
        """Read back ``to_json``; ``ResultError`` if a key is absent or of a wrong type."""
        try:
            pairs = [(entry["name"], entry["ranks"]) for entry in data["hosts"]]
        except (KeyError, TypeError) as error:
            raise ResultError(f"rank layout {data!r} is damaged: {error!r}") from error
        if not all(isinstance(name, str) and type(ranks) is int for name, ranks in pairs):
            raise ResultError(f"rank layout {data!r} must give a name and ranks per host")
        return cls(hosts=tuple(HostRanks(name=name, ranks=ranks) for name, ranks in pairs))

    def _place(self, rank: int) -> tuple[str, int]:
        local_index = rank
        for host in self.hosts if rank >= 0 else ():
            if local_index < host.ranks:
                return host.name, local_index
            local_index -= host.ranks
        raise ValueError(f"rank {rank} is not in this layout of {self.np} ranks")


def bracketed(name: str) -> str:
    """Return ``name`` as launchers and URLs want it: an IPv6 address in brackets."""
    return f"[{name}]" if ":" in name else name


def read_hostfile(path: str) -> str:
    """Return the text of a hostfile (UTF-8, with or without BOM); raises ``OSError``."""
    return Path(path).read_text(encoding="utf-8-sig")


def parse_hosts(
    words: Sequence[str],
    *,
    option: str = "--kv-hosts",
    read_hostfile: Callable[[str], str],
) -> tuple[HostSpec, ...]:
    """Return the hosts that ``words`` name, in order.

    Hosts are separated by spaces, commas or newlines, within a word or between words:
    ``n1``, ``n1:4``, ``n1 slots=4 max_slots=8``, ``[fe80::1]:4``, ``@FILE`` (whose lines have the
    same form; a path with a space or comma can't be written). ``#`` at the start of a
    word begins a comment up to the end of the line: pytest itself may have replaced
    ``@FILE`` by the file's raw lines. Raises ``OptionError``.
    """
    specs: dict[str, HostSpec] = {}
    for entry in _entries(_tokens(words, option, read_hostfile)):
        spec = _host_spec(entry)
        if spec.name.casefold() in specs:
            raise OptionError(
                f"{entry.where} names {spec.name} again; name each host once, with its ranks "
                f"as {bracketed(spec.name)}:2 if it is to hold several"
            )
        specs[spec.name.casefold()] = spec
    if not specs:
        raise OptionError(
            f"{option} names no host; it must name at least one, for example {option} n1 n2"
        )
    hosts = tuple(specs.values())
    _check_slots_everywhere(hosts, option)
    return hosts


def explain_swallowed_path(words: Sequence[str], is_directory: Callable[[str], bool]) -> str | None:
    """Return why ``--kv-hosts`` swallowed a test path, or None where it did not.

    A path has "/" or "::", ends in ".py", or is an existing directory in last position
    after another word (``is_directory``); a host may be called like a directory, so a lone
    word is a host.
    """
    last = len(words) - 1
    paths = [
        word
        for position, word in enumerate(words)
        if _looks_like_path(word)
        or (0 < position == last and _split_line(word) and is_directory(word))
    ]
    if not paths:
        return None
    hosts = ",".join(text for w in words if w not in paths for text in _split_line(w))
    return (
        f"{paths[0]!r} is a path, not a host; give test paths before --kv-hosts, "
        f"or write --kv-hosts={hosts or 'HOST[,HOST]'}"
    )


def layout_ranks(hosts: Sequence[HostSpec], *, np: int | None, npernode: int | None) -> RankLayout:
    """Place ranks on hosts; every host gets at least one.

    Neither number: one rank per host. ``np``: spread evenly, the remainder to the first
    hosts, never above a host's slots. ``npernode``: that many on each host. Both must
    agree. A host without ranks is an error: a result of two hosts that ran on one
    would look like a result of two. Raises ``OptionError``.
    """
    if not hosts:
        raise OptionError("--kv-hosts names no host; it must name at least one")
    for option, value in (("--kv-np", np), ("--kv-npernode", npernode)):
        if value is not None and value < 1:
            raise OptionError(f"{option} is {value}; it must be at least 1")
    if npernode is not None:
        counts = _counts_per_host(hosts, np, npernode)
    else:
        counts = _counts_of_total(hosts, len(hosts) if np is None else np)
    return RankLayout(
        hosts=tuple(
            HostRanks(name=host.name, ranks=count)
            for host, count in zip(hosts, counts, strict=True)
        )
    )


class _Token(NamedTuple):
    text: str
    where: str


class _HostEntry(NamedTuple):
    host: str
    slots: str | None
    where: str
    limit: str | None = None


def _split_line(line: str) -> list[str]:
    return _AROUND_EQUALS.sub("=", _COMMENT.sub("", line).replace(",", " ")).split()


def _tokens(words: Iterable[str], option: str, read: Callable[[str], str]) -> Iterator[_Token]:
    for word in words:
        for line in word.splitlines():
            for text in _split_line(line):
                if text.startswith("@"):
                    yield from _file_tokens(text[1:], option, read)
                else:
                    yield _Token(text, option)


def _file_tokens(path: str, option: str, read: Callable[[str], str]) -> list[_Token]:
    if not path:
        raise OptionError(f"{option} has '@' without a file; write {option}=@FILE")
    try:
        lines = read(path).splitlines()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or NUL in the path
        reason = error.strerror if isinstance(error, OSError) else None
        raise OptionError(
            f"{option} is @{path}, which can't be read: {reason or error}; "
            "it must name a readable text file with a host on each line"
        ) from error
    where = f"{option} @{path}"
    tokens = [
        _Token(text, f"{where}, line {number}")
        for number, line in enumerate(lines, start=1)
        for text in _split_line(line)
    ]
    if not tokens:
        raise OptionError(f"{where} names no host; write at least one, each on its line")
    return tokens


def _entries(tokens: Iterable[_Token]) -> list[_HostEntry]:
    """Join each ``slots=N`` and ``max_slots=N`` to the host before it."""
    entries: list[_HostEntry] = []
    for text, where in tokens:
        key, equals, value = text.partition("=")
        name = key.casefold().replace("-", "_") if equals else ""
        last = entries[-1] if entries and entries[-1].where == where else None
        if not equals:
            _check_number(text, where, last)
            entries.append(_HostEntry(text, None, where))
        elif name not in _SLOT_KEYS | _LIMIT_KEYS:
            raise OptionError(_unknown_key(text, name, where, last))
        elif last is not None and name in _SLOT_KEYS and last.slots is None:
            entries[-1] = last._replace(slots=value)
        elif last is not None and name in _LIMIT_KEYS and last.limit is None:
            entries[-1] = last._replace(limit=value)
        else:
            raise OptionError(f"{where} has {text!r} without a host before it; write n1 {text}")
    return entries


def _check_number(text: str, where: str, last: _HostEntry | None) -> None:
    """Refuse a bare number as the one behind a host, which is how batch systems write slots."""
    if text.isdigit() and last is not None:
        raise OptionError(
            f"{where} has the number {text} after {last.host}; if it is how many ranks that host"
            f" may hold, write {last.host}:{text}"
        )


def _unknown_key(text: str, name: str, where: str, last: _HostEntry | None) -> str:
    of = "" if last is None else f" for {last.host}"
    if name in _SSH_KEYS:
        value = text.partition("=")[2]
        fix = f"say it to ssh: --kv-ssh='ssh {_SSH_KEYS[name]} {value}', or in ~/.ssh/config"
    else:
        fix = "leave it out"
    return f"{where} has {text!r}{of}; of a host only slots=N and max_slots=N are known here, {fix}"


def _host_spec(entry: _HostEntry) -> HostSpec:
    match = _HOST.fullmatch(entry.host)
    if match is None or (match["slots"] is not None and entry.slots is not None):
        raise OptionError(f"{entry.where} has {entry.host!r}; {_how_written(entry.host)}")
    bare_ipv6 = match["ipv6"]
    name = match["name"] if bare_ipv6 is None else _canonical_ipv6(bare_ipv6)
    problem = _name_problem(name) if name else "a host must have a name or a valid address"
    if problem:
        raise OptionError(f"{entry.where} has {entry.host!r}; {_torn(entry.host) or problem}")
    slots = _slots(entry, match["slots"] if entry.slots is None else entry.slots)
    limit = _slots(entry, entry.limit)
    if slots is not None and limit is not None and slots > limit:
        raise OptionError(
            f"{entry.where} gives {entry.host!r} {slots} slots and max_slots={limit}; the slots"
            " must not be more"
        )
    return HostSpec(name=name, slots=limit if slots is None else slots)


def _slots(entry: _HostEntry, text: str | None) -> int | None:
    if text is None:
        return None
    if not _SLOTS.fullmatch(text):
        raise OptionError(
            f"{entry.where} gives {entry.host!r} the slots {text!r}; "
            "they must be a whole number of at least 1, as in n1:4"
        )
    return int(text)


def _how_written(host: str) -> str:
    return _torn(host) or "a host must be written as HOST, HOST:SLOTS, [IPv6] or [IPv6]:SLOTS"


def _torn(host: str) -> str | None:
    """The way to write what another tool would take for hosts; None: it is no such thing."""
    if "[" in host[1:]:
        whole = host.partition(":")[0] if "]" in host else "node[01-04]"
        return (
            "a list in brackets must be written out, which Slurm does:"
            f" --kv-hosts $(scontrol show hostnames '{whole}')"
        )
    if "{" in host:
        return "braces are the shell's, so give them outside of quotes: --kv-hosts node{1..4}"
    user, at, name = host.partition("@")
    if at and user and name:
        return f"a host takes no user, say it to ssh: --kv-hosts {name} --kv-ssh='ssh -l {user}'"
    return None


def _canonical_ipv6(text: str) -> str:
    """Return the shortest form, so that two spellings are one host; "" if invalid."""
    if not _IPV6.fullmatch(text):
        return ""
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        return ""


def _name_problem(name: str) -> str | None:
    """Return the rule that ``name`` breaks; names reach remote shells as they stand."""
    if ":" in name:
        return None if _canonical_ipv6(name) else "it must be a valid IPv6 address"
    if len(name) > _NAME_MAX_CHARS or not _NAME.fullmatch(name):
        return (
            "a host name must be letters, digits, '-', '_' and '.', "
            "and begin and end with a letter or digit"
        )
    if len(max(name.split("."), key=len)) > _LABEL_MAX_CHARS:
        return f"each part of a host name must have at most {_LABEL_MAX_CHARS} characters"
    if name.rpartition(".")[2].isdigit() and not _is_ipv4(name):
        return "it ends in a number, so it must be a complete IPv4 address such as 10.0.0.4"
    return None


def _is_ipv4(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _check_slots_everywhere(hosts: Sequence[HostSpec], option: str) -> None:
    bare = [host.name for host in hosts if host.slots is None]
    if bare and len(bare) < len(hosts):
        given = next(host for host in hosts if host.slots is not None)
        raise OptionError(
            f"{option} gives slots to {given} but not to {_some(bare)}; "
            "give them to all hosts or to none"
        )


def _looks_like_path(word: str) -> bool:
    return any(
        "/" in text or "::" in text or text.endswith(".py")
        for text in _split_line(word)
        if not text.startswith(("@", "[")) and not _canonical_ipv6(text)
    )


def _counts_per_host(hosts: Sequence[HostSpec], np: int | None, npernode: int) -> list[int]:
    if np is not None and np != npernode * len(hosts):
        raise OptionError(
            f"--kv-np is {np}, but --kv-npernode {npernode} on"
            f" {format_count(len(hosts), 'host')} makes {npernode * len(hosts)};"
            " give one of them, or numbers that agree"
        )
    short = [str(host) for host in hosts if host.slots is not None and host.slots < npernode]
    if short:
        raise OptionError(
            f"--kv-npernode is {npernode}, more than the slots of {_some(short)}; "
            "give fewer ranks per host or more slots"
        )
    return [npernode] * len(hosts)


def _counts_of_total(hosts: Sequence[HostSpec], np: int) -> list[int]:
    if np < len(hosts):
        raise OptionError(
            f"--kv-np is {np} for {len(hosts)} hosts, so {_some([h.name for h in hosts[np:]])} "
            f"would idle; give at least {len(hosts)} ranks or name fewer hosts"
        )
    limits = [np if host.slots is None else host.slots for host in hosts]
    if sum(limits) < np:
        raise OptionError(
            f"--kv-np is {np}, but the hosts have {sum(limits)} slots; "
            "give fewer ranks or more slots"
        )
    return _fill_evenly(limits, np)


def _fill_evenly(limits: Sequence[int], total: int) -> list[int]:
    """Pour ``total`` (at most the sum of ``limits``) evenly, the remainder to the first."""
    counts = [0] * len(limits)
    left = total
    while left:
        with_room = [i for i, limit in enumerate(limits) if counts[i] < limit]
        share = max(1, left // len(with_room))
        for i in with_room[:left]:
            taken = min(share, limits[i] - counts[i])
            counts[i] += taken
            left -= taken
    return counts


def _duplicate(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            return name
        seen.add(name.casefold())
    return None


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_HOSTS])
    more = len(names) - _SHOWN_HOSTS
    return f"{shown} and {more} more" if more > 0 else shown
