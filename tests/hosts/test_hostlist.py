from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.hosts.hostlist import (
    HostRanks,
    HostSpec,
    RankLayout,
    bracketed,
    explain_swallowed_path,
    layout_ranks,
    parse_hosts,
    read_hostfile,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LAYOUT = RankLayout(hosts=(HostRanks(name="n1", ranks=2), HostRanks(name="n2", ranks=1)))


def no_file(path: str) -> str:
    raise AssertionError(f"no file was to be read, but {path} was")


def files(**contents: str) -> Callable[[str], str]:
    def read(path: str) -> str:
        if path not in contents:
            raise FileNotFoundError(2, "No such file or directory", path)
        return contents[path]

    return read


def parsed(*words: str, read: Callable[[str], str] = no_file) -> list[str]:
    return [str(host) for host in parse_hosts(words, read_hostfile=read)]


def refusal(*words: str, read: Callable[[str], str] = no_file) -> str:
    with pytest.raises(OptionError) as caught:
        parse_hosts(words, read_hostfile=read)
    return str(caught.value)


def specs(*texts: str) -> tuple[HostSpec, ...]:
    return parse_hosts(texts, read_hostfile=no_file)


def counts(layout: RankLayout) -> list[int]:
    return [host.ranks for host in layout.hosts]


# Parsing


@pytest.mark.parametrize(
    "words",
    [
        ["n1", "n2", "n3"],
        ["n1,n2,n3"],
        ["n1 n2 n3"],
        ["n1, n2", "n3"],
        ["n1\nn2,", " ", "", ",n3\t"],
    ],
)
def test_spaces_commas_and_newlines_separate_hosts_in_any_mix(words: list[str]) -> None:
    assert parsed(*words) == ["n1", "n2", "n3"]


def test_host_is_a_name_and_its_slots() -> None:
    assert specs("n1:4", "10.0.0.2:2") == (
        HostSpec(name="n1", slots=4),
        HostSpec(name="10.0.0.2", slots=2),
    )


def test_host_without_slots_has_none() -> None:
    assert specs("n1.example.com") == (HostSpec(name="n1.example.com", slots=None),)


def test_ipv6_is_kept_without_brackets_in_its_shortest_form() -> None:
    assert specs("[FE80:0:0::1%eth0]:4", "[::1]:2") == (
        HostSpec(name="fe80::1%eth0", slots=4),
        HostSpec(name="::1", slots=2),
    )


def test_bracketed_writes_ipv6_as_launchers_want_it() -> None:
    assert bracketed("::1") == "[::1]"
    assert bracketed("n1") == "n1"


HOST_NAMES = st.one_of(
    st.from_regex(r"[a-z_]([a-z0-9_-]{0,8}[a-z0-9_])?(\.[a-z]{1,3})?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)


@given(
    st.lists(HOST_NAMES, min_size=1, max_size=5, unique=True),
    st.one_of(st.none(), st.integers(1, 999)),
    st.sampled_from([" ", ",", "\n", " , "]),
)
def test_written_hosts_read_back_the_same(
    names: list[str], slots: int | None, separator: str
) -> None:
    hosts = tuple(HostSpec(name=name, slots=slots) for name in names)

    text = separator.join(str(host) for host in hosts)
    assert parse_hosts([text], read_hostfile=no_file) == hosts


@given(st.lists(st.text(alphabet="n1:[]@#=-. ,\n;$s/\\'é%", max_size=12), max_size=3))
def test_any_words_are_hosts_or_a_refusal(words: list[str]) -> None:
    try:
        hosts = parse_hosts(words, read_hostfile=files())
    except OptionError as error:
        assert str(error).startswith("--kv-hosts ")  # noqa: PT017  # most words are refused
    else:
        assert hosts
        assert not any(set(host.name) & set(" ,;$/\\'@#=[]") for host in hosts)


@pytest.mark.parametrize(
    "name",
    [
        "-n1",
        "n1-",
        "n1;id",
        "$(id)",
        "n1|n2",
        "n1&",
        "n`1",
        "a/b",
        "n1..n2",
        ".n1",
        "é",
    ],
)
def test_host_name_that_a_shell_could_misread_is_refused(name: str) -> None:
    assert refusal("n0", name) == (
        f"--kv-hosts has {name!r}; a host name must be letters, digits, '-', '_' and '.', "
        "and begin and end with a letter or digit"
    )
    with pytest.raises(OptionError, match="a host is named"):
        HostSpec(name=name)


@pytest.mark.parametrize("name", ["", "a b", "n" * 254, "fe80::zz", "::1%a;b"])
def test_host_that_no_text_could_give_is_refused_too(name: str) -> None:
    with pytest.raises(OptionError, match="a host is named"):
        HostSpec(name=name)
    with pytest.raises(OptionError, match="a host is named"):
        HostRanks(name=name, ranks=1)


def test_longest_host_name_of_the_domain_name_system_is_a_host() -> None:
    longest = ".".join(["n" * 63, "n" * 63, "n" * 63, "n" * 61])
    assert len(longest) == 253
    assert HostSpec(name=longest).name == longest
    with pytest.raises(OptionError, match="at most 63 characters"):
        HostSpec(name="n" * 64)


@pytest.mark.parametrize("name", ["n" * 63, "n" * 63 + ".site", "site." + "n" * 63])
def test_each_part_of_a_name_may_have_63_characters(name: str) -> None:
    assert parsed(name) == [name]
    longer = name.replace("n" * 63, "n" * 64)
    assert refusal(longer) == (
        f"--kv-hosts has {longer!r}; each part of a host name must have at most 63 characters"
    )
    with pytest.raises(OptionError, match="at most 63 characters"):
        HostRanks(name=longer, ranks=1)


def test_host_may_be_called_slots() -> None:
    assert parsed("n1", "slots") == ["n1", "slots"]


def test_hosts_and_layouts_can_not_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        HostSpec(name="n1").slots = 2  # type: ignore[misc]  # that it can't is the claim
    with pytest.raises(FrozenInstanceError):
        LAYOUT.hosts[0].ranks = 3  # type: ignore[misc]  # likewise
    with pytest.raises(FrozenInstanceError):
        LAYOUT.hosts = ()  # type: ignore[misc]  # likewise


@pytest.mark.parametrize("text", ["4", "10.0.0.256", "10.0.0", "010.0.0.1"])
def test_name_that_ends_in_a_number_must_be_an_ipv4_address(text: str) -> None:
    assert f"has {text!r}; it ends in a number, so it must be a complete IPv4" in refusal(
        text, "n1"
    )


@pytest.mark.parametrize("text", ["fe80::1", "::1", "n1:4:5", "[::1", "[::1]x"])
def test_host_of_another_form_is_refused_with_the_forms(text: str) -> None:
    assert refusal(text) == (
        f"--kv-hosts has {text!r}; a host must be written as HOST, HOST:SLOTS, [IPv6] or "
        "[IPv6]:SLOTS"
    )


@pytest.mark.parametrize("text", [":4", "[]", "[]:4", "[n1]", "[10.0.0.1]", "[::1%a;b]"])
def test_host_without_a_name_or_address_is_refused(text: str) -> None:
    assert f"has {text!r}; a host must have a name or a valid address" in refusal(text)


@pytest.mark.parametrize("slots", ["0", "00", "-1", "x", "", "1.5", "٣", "9" * 10])
def test_slots_that_are_no_positive_number_are_refused(slots: str) -> None:
    assert refusal(f"n1:{slots}") == (
        f"--kv-hosts gives 'n1:{slots}' the slots {slots!r}; they must be a whole number of "
        "at least 1, as in n1:4"
    )


def test_host_with_no_slots_at_all_is_refused() -> None:
    with pytest.raises(OptionError, match="host n1 has 0 slots; it must have at least 1"):
        HostSpec(name="n1", slots=0)


@pytest.mark.parametrize(
    "words", [["n1", "n2", "n1"], ["n1:2,n1:2"], ["N1", "n1"], ["n1", "N1"], ["[::1]", "[0::1]"]]
)
def test_host_named_twice_is_refused(words: list[str]) -> None:
    assert " again; name each host once, with its ranks as " in refusal(*words)


def test_slots_for_some_hosts_only_are_refused() -> None:
    assert refusal("n1", "n2:4", "n3") == (
        "--kv-hosts gives slots to n2:4 but not to n1, n3; give them to all hosts or to none"
    )


@pytest.mark.parametrize("words", [[], [""], [" , "], ["# n1"]])
def test_no_host_at_all_is_refused(words: list[str]) -> None:
    assert refusal(*words) == (
        "--kv-hosts names no host; it must name at least one, for example --kv-hosts n1 n2"
    )


def test_refusal_names_the_option_that_gave_the_hosts() -> None:
    with pytest.raises(OptionError, match=r"^kv_hosts has '-n1'"):
        parse_hosts(["-n1"], option="kv_hosts", read_hostfile=no_file)


# Hostfiles


@pytest.mark.parametrize(
    "content",
    [
        "n1:4\nn2:2\n",
        "n1 slots=4\nn2\tslots=2",
        "# rack 1\r\n\r\nn1 slots=4  # first\r\n  n2:2,\r\n#n3:9",
        "n1:4, n2:2",
    ],
)
def test_hostfile_lines_take_comments_blanks_and_both_forms_of_slots(content: str) -> None:
    assert parsed("@hosts", read=files(hosts=content)) == ["n1:4", "n2:2"]


@pytest.mark.parametrize("words", [["n0", "@a", "@b"], ["n0 @a,@b"], ["n0,@a\n@b"]])
def test_hostfiles_and_hosts_mix_in_order(words: list[str]) -> None:
    assert parsed(*words, read=files(a="n1\nn2", b="n3")) == ["n0", "n1", "n2", "n3"]


def test_raw_lines_of_a_hostfile_that_pytest_expanded_are_read() -> None:
    assert parsed("# rack 1", "n1 slots=4", "", "n2:2 # last") == ["n1:4", "n2:2"]


def test_hash_inside_a_word_is_no_comment() -> None:
    assert "has 'n1#4'; a host name must be" in refusal("n1#4")


def test_error_in_a_hostfile_names_file_and_line() -> None:
    read = files(hosts="# rack 1\nn1\nn2;id\n")

    assert refusal("@hosts", read=read).startswith("--kv-hosts @hosts, line 3 has 'n2;id'; ")


def test_host_that_a_hostfile_repeats_names_the_second_line() -> None:
    read = files(hosts="n1\nn2\nn1\n")

    assert refusal("@hosts", read=read).startswith("--kv-hosts @hosts, line 3 names n1 again")


@pytest.mark.parametrize("content", ["slots=4", "n1\nslots=4", "n1 slots=2 slots=4"])
def test_slots_without_a_host_on_their_line_are_refused(content: str) -> None:
    assert "has 'slots=4' without a host before it" in refusal("@hosts", read=files(hosts=content))


def test_slots_given_in_both_forms_are_refused() -> None:
    assert "has 'n1:2'; a host must be written as" in refusal(
        "@hosts", read=files(hosts="n1:2 slots=4")
    )


@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("n1 slots=4 max_slots=8", "n1:4"),
        ("n1 max_slots=8 slots=4", "n1:4"),
        ("n1 slots=4 max-slots=4", "n1:4"),
        ("n1 slots_max=8", "n1:8"),
        ("n1 cpus=4", "n1:4"),
        ("n1 count=4", "n1:4"),
        ("n1 slots = 4 max_slots= 8", "n1:4"),
        ("n1:4 max_slots=8", "n1:4"),
        ("[::1] slots=4 max_slots=8", "[::1]:4"),
    ],
)
def test_what_open_mpi_writes_into_hostfiles_is_read(line: str, host: str) -> None:
    assert parsed("@hosts", read=files(hosts=f"{line}\n")) == [host]


def test_max_slots_is_a_limit() -> None:
    read = files(hosts="n1 slots=4 max_slots=2")
    assert refusal("@hosts", read=read) == (
        "--kv-hosts @hosts, line 1 gives 'n1' 4 slots and max_slots=2; the slots must not be more"
    )
    hosts = parse_hosts(["n1 max_slots=2"], read_hostfile=no_file)
    with pytest.raises(OptionError, match="the hosts have 2 slots; give fewer ranks"):
        layout_ranks(hosts, np=3, npernode=None)


@pytest.mark.parametrize("value", ["0", "x", "-1"])
def test_max_slots_is_a_number(value: str) -> None:
    assert f"the slots '{value}'; they must be" in refusal(f"n1 max_slots={value}")


def test_other_attributes_of_a_hostfile_are_named_as_what_they_are() -> None:
    read = files(hosts="n0\nn1 sockets=2")
    assert refusal("@hosts", read=read) == (
        "--kv-hosts @hosts, line 2 has 'sockets=2' for n1; of a host only slots=N and max_slots=N"
        " are known here, leave it out"
    )


@pytest.mark.parametrize(
    ("text", "fix"), [("username=eva", "'ssh -l eva'"), ("port=2222", "'ssh -p 2222'")]
)
def test_what_is_ssh_s_is_sent_there(text: str, fix: str) -> None:
    assert f"say it to ssh: --kv-ssh={fix}" in refusal(f"n1 {text}")
    assert "--kv-hosts n1 --kv-ssh='ssh -l eva'" in refusal("eva@n1")


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["n[1-4]"], "n[1-4]"),
        (["rack1n[1-2]:8"], "rack1n[1-2]"),
        (["n[01", "03]"], "node[01-04]"),
        (["n[01,03]"], "node[01-04]"),
    ],
)
def test_slurms_lists_are_sent_to_scontrol(words: list[str], written: str) -> None:
    assert f"$(scontrol show hostnames '{written}')" in refusal(*words)


def test_a_shells_braces_are_sent_to_the_shell() -> None:
    assert "outside of quotes" in refusal("node{1..4}")


def test_a_count_behind_a_host_is_told_how_to_be_written() -> None:
    read = files(hosts="n1 8 all.q@n1 UNDEFINED\n")
    assert refusal("@hosts", read=read) == (
        "--kv-hosts @hosts, line 1 has the number 8 after n1; if it is how many ranks that host"
        " may hold, write n1:8"
    )


def test_hostfile_does_not_include_another() -> None:
    assert "line 1 has '@b'" in refusal("@a", read=files(a="@b", b="n1"))


def test_hostfile_without_hosts_is_refused_even_beside_others() -> None:
    assert refusal("n1", "@hosts", read=files(hosts="# none\n")) == (
        "--kv-hosts @hosts names no host; write at least one, each on its line"
    )


def test_at_sign_without_a_file_is_refused() -> None:
    assert "has '@' without a file" in refusal("@")


def test_absent_hostfile_is_refused_with_the_systems_reason(tmp_path: Path) -> None:
    path = tmp_path / "absent"

    assert refusal(f"@{path}", read=read_hostfile) == (
        f"--kv-hosts is @{path}, which can't be read: No such file or directory; "
        "it must name a readable text file with a host on each line"
    )


def test_hostfile_that_is_a_directory_is_refused_with_the_systems_reason(
    tmp_path: Path,
) -> None:
    assert "which can't be read: Is a directory" in refusal(f"@{tmp_path}", read=read_hostfile)


def test_hostfile_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"n1\xff\n")

    assert "which can't be read: 'utf-8' codec" in refusal(f"@{path}", read=read_hostfile)


def test_hostfile_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"\xef\xbb\xbfn1:4\r\nn2:2\r\n")

    assert parsed(f"@{path}", read=read_hostfile) == ["n1:4", "n2:2"]


# Test paths that --kv-hosts swallowed


def explained(*words: str, existing: Sequence[str] = ()) -> str | None:
    return explain_swallowed_path(words, lambda word: word in existing)


@pytest.mark.parametrize(
    "path", ["tests/", "./tests", "test_a.py", "test.a.py", "test_a.py::test_b", "TestA::test_b"]
)
@pytest.mark.parametrize("words", [["n1", "n2"], ["n1,n2"], ["n1 n2"]])
def test_swallowed_path_is_explained_with_the_real_hosts(words: list[str], path: str) -> None:
    expected = (
        f"'{path}' is a path, not a host; give test paths before --kv-hosts, "
        "or write --kv-hosts=n1,n2"
    )
    assert explained(*words, path) == expected
    assert explained(path, *words) == expected


def test_first_of_several_swallowed_paths_is_named_and_none_kept() -> None:
    text = explained("n1", "tests/a", "tests/b", "results", existing=["results"])

    assert text is not None
    assert text.startswith("'tests/a' is a path")
    assert text.endswith("--kv-hosts=n1")


def test_directory_in_last_position_is_a_path() -> None:
    text = explained("n1", "n2:4", "tests", existing=["tests"])

    assert text is not None
    assert text.startswith("'tests' is a path")
    assert text.endswith("--kv-hosts=n1,n2:4")


def test_directory_after_a_single_host_is_a_path() -> None:
    assert explained("n1", "tests", existing=["tests"]) is not None


def test_host_called_like_a_directory_is_a_host_unless_it_is_last() -> None:
    assert explained("results", "n1", existing=["results"]) is None


def test_lone_word_is_a_host_even_if_a_directory_is_called_so() -> None:
    assert explained("results", existing=["results"]) is None


def test_empty_last_word_is_no_path() -> None:
    assert explained("n1", "", existing=[""]) is None


def test_path_without_any_host_is_explained_with_a_placeholder() -> None:
    assert explained("tests/") == (
        "'tests/' is a path, not a host; give test paths before --kv-hosts, "
        "or write --kv-hosts=HOST[,HOST]"
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["n1", "n2"],
        ["[::1]", "[fe80::1]:4"],
        ["::1"],
        ["@/etc/hosts.mpi", "n1"],
        ["n1,@conf/hosts"],
        ["# see docs/hosts.md", "n1 slots=4"],
    ],
)
def test_hosts_are_not_taken_for_paths(words: list[str]) -> None:
    assert explained(*words) is None


# Layout


def test_one_rank_per_host_is_the_default() -> None:
    assert counts(layout_ranks(specs("n1", "n2"), np=None, npernode=None)) == [1, 1]
    assert counts(layout_ranks(specs("n1:4", "n2:4"), np=None, npernode=None)) == [1, 1]


def test_ranks_spread_evenly_with_the_remainder_to_the_first_hosts() -> None:
    assert counts(layout_ranks(specs("n1", "n2", "n3"), np=8, npernode=None)) == [3, 3, 2]


def test_host_that_is_full_passes_its_share_on() -> None:
    assert counts(layout_ranks(specs("n1:1", "n2:5", "n3:5"), np=8, npernode=None)) == [1, 4, 3]


def test_host_that_fills_up_late_passes_its_share_on() -> None:
    hosts = specs("a:1", "b:1", "c:1", "d:1", "e:3", "f:9")

    assert counts(layout_ranks(hosts, np=15, npernode=None)) == [1, 1, 1, 1, 3, 8]


def test_ranks_per_host_fill_every_host() -> None:
    assert counts(layout_ranks(specs("n1", "n2"), np=None, npernode=3)) == [3, 3]
    assert counts(layout_ranks(specs("n1:3", "n2:4"), np=6, npernode=3)) == [3, 3]


def layout_refusal(*hosts: str, np: int | None = None, npernode: int | None = None) -> str:
    with pytest.raises(OptionError) as caught:
        layout_ranks(specs(*hosts), np=np, npernode=npernode)
    return str(caught.value)


def test_total_and_ranks_per_host_that_disagree_are_refused() -> None:
    assert layout_refusal("n1", "n2", "n3", np=7, npernode=2) == (
        "--kv-np is 7, but --kv-npernode 2 on 3 hosts makes 6; give one of them, "
        "or numbers that agree"
    )


def test_more_ranks_than_slots_are_refused() -> None:
    assert layout_refusal("n1:4", "n2:4", np=9) == (
        "--kv-np is 9, but the hosts have 8 slots; give fewer ranks or more slots"
    )


def test_more_ranks_per_host_than_its_slots_are_refused() -> None:
    assert layout_refusal("n1:4", "n2:2", "n3:1", npernode=3) == (
        "--kv-npernode is 3, more than the slots of n2:2, n3:1; "
        "give fewer ranks per host or more slots"
    )


def test_host_that_would_idle_is_refused() -> None:
    assert layout_refusal("n1", "n2", "n3", np=1) == (
        "--kv-np is 1 for 3 hosts, so n2, n3 would idle; give at least 3 ranks or name fewer hosts"
    )


def test_long_list_of_idle_hosts_is_cut() -> None:
    text = layout_refusal(*(f"n{number}x" for number in range(7)), np=1)

    assert "so n1x, n2x, n3x, n4x, n5x and 1 more would idle" in text


def test_list_of_five_idle_hosts_is_not_cut() -> None:
    text = layout_refusal(*(f"n{number}x" for number in range(6)), np=1)

    assert "so n1x, n2x, n3x, n4x, n5x would idle" in text


def test_number_of_ranks_below_one_is_refused() -> None:
    assert layout_refusal("n1", np=0) == "--kv-np is 0; it must be at least 1"
    assert layout_refusal("n1", npernode=0) == "--kv-npernode is 0; it must be at least 1"


def test_layout_without_hosts_is_refused() -> None:
    with pytest.raises(OptionError, match="--kv-hosts names no host"):
        layout_ranks((), np=1, npernode=None)


@st.composite
def hosts_and_np(draw: st.DrawFn) -> tuple[tuple[HostSpec, ...], int]:
    slots = draw(
        st.one_of(
            st.lists(st.none(), min_size=1, max_size=9),
            st.lists(st.integers(1, 12), min_size=1, max_size=9),
        )
    )
    hosts = tuple(HostSpec(name=f"h{i}x", slots=slots[i]) for i in range(len(slots)))
    most = sum(99 if host.slots is None else host.slots for host in hosts)
    return hosts, draw(st.integers(len(hosts), most))


@given(hosts_and_np())
def test_layout_is_complete_even_and_within_slots(
    case: tuple[tuple[HostSpec, ...], int],
) -> None:
    hosts, np = case

    ranks = counts(layout_ranks(hosts, np=np, npernode=None))

    assert sum(ranks) == np
    assert min(ranks) >= 1
    limits = [np if host.slots is None else host.slots for host in hosts]
    assert all(count <= limit for count, limit in zip(ranks, limits, strict=True))
    not_full = [count for count, limit in zip(ranks, limits, strict=True) if count < limit]
    assert all(max(ranks) - count <= 1 for count in not_full)
    if hosts[0].slots is None:
        assert ranks == sorted(ranks, reverse=True)


@given(hosts_and_np())
def test_ranks_are_contiguous_in_host_order(case: tuple[tuple[HostSpec, ...], int]) -> None:
    hosts, np = case
    layout = layout_ranks(hosts, np=np, npernode=None)

    assert layout.np == np
    in_order = [rank for host in hosts for rank in layout.ranks_on(host.name)]
    assert in_order == list(range(np))
    for host in hosts:
        ranks = layout.ranks_on(host.name)
        assert [layout.local_index(rank) for rank in ranks] == list(range(len(ranks)))
        assert {layout.host_of(rank) for rank in ranks} == {host.name}


@given(hosts_and_np())
def test_layout_survives_json(case: tuple[tuple[HostSpec, ...], int]) -> None:
    hosts, np = case
    layout = layout_ranks(hosts, np=np, npernode=None)

    assert RankLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


@pytest.mark.parametrize("rank", [-1, 3])
def test_rank_outside_the_layout_has_no_host(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} is not in this layout of 3 ranks"):
        LAYOUT.host_of(rank)
    with pytest.raises(ValueError, match=f"rank {rank} is not in this layout of 3 ranks"):
        LAYOUT.local_index(rank)


def test_host_outside_the_layout_has_no_ranks() -> None:
    with pytest.raises(ValueError, match="no host of this layout is named 'n3'"):
        LAYOUT.ranks_on("n3")


def test_layout_without_hosts_or_ranks_does_not_exist() -> None:
    with pytest.raises(OptionError, match="has no host"):
        RankLayout(hosts=())
    with pytest.raises(OptionError, match="host n1 has 0 ranks; it must have at least 1"):
        HostRanks(name="n1", ranks=0)


@pytest.mark.parametrize("names", [("n1", "N1"), ("N1", "n1")])
def test_layout_that_names_a_host_twice_does_not_exist(names: tuple[str, str]) -> None:
    with pytest.raises(OptionError, match=f"names {names[1]} twice"):
        RankLayout(hosts=tuple(HostRanks(name=name, ranks=1) for name in names))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"hosts": None},
        {"hosts": [{"name": "n1"}]},
        {"hosts": ["n1"]},
        {"hosts": [{"name": "n1", "ranks": "2"}]},
        {"hosts": [{"name": "n1", "ranks": True}]},
        {"hosts": [{"name": 1, "ranks": 2}]},
    ],
)
def test_damaged_layout_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ResultError, match="rank layout"):
        RankLayout.from_json(data)


@given(ranks=st.integers(1, 40), cores=st.integers(1, 40))
def test_ranks_divide_the_cores_of_their_host(ranks: int, cores: int) -> None:
    layout = RankLayout(hosts=(HostRanks(name="n1", ranks=3), HostRanks(name="n2", ranks=ranks)))
    shares = [layout.share_of(3 + place, range(cores)) for place in range(ranks)]
    sizes = {len(share) for share in shares}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    used = [core for share in shares for core in share]
    assert used == sorted(used)
    assert set(used) <= set(range(cores))
    if ranks <= cores:
        assert used == list(range(cores))  # every core once
    else:
        assert set(used) == set(range(cores))
        assert sizes == {1}
