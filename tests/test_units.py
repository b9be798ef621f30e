from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError
from pytest_kvcache.units import (
    GIB,
    KIB,
    MIB,
    format_bytes,
    format_count,
    format_short,
    parse_duration_s,
    parse_flag,
    parse_float,
    parse_gib,
    parse_int,
)

OPTION = "--kv-x"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4", 4 * GIB),
        ("2.6875", 2_885_681_152),
        (".5", GIB // 2),
        ("5.", 5 * GIB),
        ("1e-3", 1_073_741),
        (" 1.5 ", 3 * GIB // 2),
        ("1.5GiB", 3 * GIB // 2),
        ("512 MiB", 512 * MIB),
        ("4KiB", 4 * KIB),
        ("2TiB", 2 << 40),
        ("3PiB", 3 << 50),
        ("3EiB", 3 << 60),
        ("1B", 1),
        ("1KB", 1000),
        ("1MB", 10**6),
        ("1GB", 10**9),
        ("1.5TB", 15 * 10**11),
        ("1PB", 10**15),
        ("1EB", 10**18),
        ("1gib", GIB),
    ],
)
def test_size_is_gib_unless_it_says_otherwise(text: str, size_bytes: int) -> None:
    assert parse_gib(text, option=OPTION) == size_bytes


@given(st.integers(0, 10**8), st.integers(0, 9999))
def test_decimal_fraction_of_a_gib_is_exact(whole: int, ten_thousandths: int) -> None:
    text = f"{whole}.{ten_thousandths:04d}"

    expected = (whole * 10**4 + ten_thousandths) * GIB // 10**4
    assert parse_gib(text, option=OPTION) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+1", "nan", "inf", "4 XB", "4G", "1_0", "1/2", "٣", "0x10", "1 2", "GiB"],
)
def test_text_that_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_gib(text, option=OPTION)

    assert f"--kv-x is {text!r}; it must be a size of at least 0, such as 4 (GiB)" in str(
        caught.value
    )


def test_size_that_would_round_to_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="--kv-x is '1e-12'; it must be 0 or at least one"):
        parse_gib("1e-12", option=OPTION)


@pytest.mark.parametrize("text", ["8EiB", "1e30", "9" * 30])
def test_size_that_no_file_system_holds_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="it must be below 8 EiB"):
        parse_gib(text, option=OPTION)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (1029, "1 KiB"),
        (1030, "1.01 KiB"),
        (MIB - 1, "1 MiB"),
        (10 * MIB, "10 MiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (2_885_681_152, "2.69 GiB"),
        (5 << 60, "5 EiB"),
        (5000 << 60, "5000 EiB"),
        (-3 * GIB // 2, "-1.5 GiB"),
    ],
)
def test_bytes_are_written_in_the_largest_binary_unit(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@given(st.integers(0, (1 << 63) - (1 << 56)))
def test_written_size_reads_back_within_half_a_percent(size_bytes: int) -> None:
    read_back = parse_gib(format_bytes(size_bytes), option=OPTION)

    assert abs(read_back - size_bytes) <= 0.005 * size_bytes + 1


@given(st.integers(0, 1 << 62))
def test_written_size_never_shows_1024_of_a_unit(size_bytes: int) -> None:
    assert not format_bytes(size_bytes).startswith("1024 ")


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("0", 0.0),
        ("60", 60.0),
        ("1.5", 1.5),
        ("90s", 90.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("1.20 ms", 0.0012),
        ("350us", 0.00035),
        ("5 ns", 5e-9),
        ("1m 05s", 65.0),
        ("1h30m", 5400.0),
        (" 1h 00m 07s ", 3607.0),
    ],
)
def test_duration_is_seconds_unless_it_says_otherwise(text: str, duration_s: float) -> None:
    assert parse_duration_s(text, option=OPTION) == duration_s


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "nan",
        "inf",
        "-inf",
        "soon",
        "1d",
        "5s 1m",
        "1m 1m",
        "1m 30",
        "1 2",
        "1_0",
        "s",
    ],
)
def test_text_that_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_duration_s(text, option=OPTION)

    assert f"--kv-x is {text!r}; it must be a duration of at least 0, such as 60" in str(
        caught.value
    )


def test_whole_number_is_read() -> None:
    assert parse_int(" 8 ", option=OPTION, minimum=1) == 8
    assert parse_int("-3", option=OPTION, minimum=-3) == -3


def test_whole_number_below_the_minimum_is_refused_by_rule() -> None:
    with pytest.raises(OptionError) as caught:
        parse_int("0", option="--kv-np", minimum=1)

    assert str(caught.value) == "--kv-np is 0; it must be at least 1"


def test_separators_that_only_strip_knows_are_stripped() -> None:
    assert parse_int("8\x1f", option=OPTION, minimum=1) == 8
    assert parse_float("8\x1f", option=OPTION, minimum=1) == 8


@pytest.mark.parametrize("text", ["", "x", "8.0", "1e3", "1_000", "٣", "9" * 5000])
def test_text_that_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(
        OptionError, match=r"it must be a whole number of at least 1, of 18 digits at most$"
    ):
        parse_int(text, option=OPTION, minimum=1)


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("3", 3.0), ("1e2", 100.0)])
def test_number_is_read(text: str, value: float) -> None:
    assert parse_float(text, option=OPTION, minimum=0) == value


def test_minus_zero_is_zero() -> None:
    assert str(parse_float("-0", option=OPTION, minimum=0)) == "0.0"


def test_number_below_the_minimum_is_refused_by_rule() -> None:
    with pytest.raises(OptionError) as caught:
        parse_float("-0.1", option=OPTION, minimum=0)

    assert str(caught.value) == "--kv-x is -0.1; it must be at least 0"


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "-inf", "1e999", "1_0.5"])
def test_text_that_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"it must be a number of at least 0$"):
        parse_float(text, option=OPTION, minimum=0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("YES", True),
        (" on ", True),
        ("1", True),
        ("False", False),
        ("no", False),
        ("off", False),
        ("0", False),
    ],
)
def test_flag_is_read(text: str, value: bool) -> None:  # noqa: FBT001  # the subject
    assert parse_flag(text, option="kv_keep") is value


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 blocks"), (1, "1 block"), (2, "2 blocks"), (16_900, "16,900 blocks")]
)
def test_a_count_agrees_with_its_noun(count: int, text: str) -> None:
    assert format_count(count, "block") == text


@pytest.mark.parametrize("text", ["", "2", "maybe", "truee"])
def test_text_that_is_no_flag_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"kv_keep is .*; it must be one of true, false, yes"):
        parse_flag(text, option="kv_keep")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    for parse in (
        lambda: parse_gib(text, option=OPTION),
        lambda: parse_duration_s(text, option=OPTION),
        lambda: parse_int(text, option=OPTION, minimum=0),
        lambda: parse_float(text, option=OPTION, minimum=0),
        lambda: parse_flag(text, option=OPTION),
    ):
        try:
            value = parse()
        except OptionError as error:
            assert str(error).startswith("--kv-x is ")  # noqa: PT017  # most texts are refused
        else:
            assert value >= 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.4, "1,234"), (99.96, "100"), (100.4, "100"), (12.34, "12.3"), (0.01234, "0.0123"),
     (-1234.4, "-1,234"), (0.0, "0")],
)  # fmt: skip
def test_a_figure_in_a_sentence_has_three_digits(value: float, text: str) -> None:
    assert format_short(value) == text
