"""Names of ours that nobody knows are refused with what was meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import UnknownNameError, did_you_mean
from tests.site import output, refusal

if TYPE_CHECKING:
    from tests.site import Site


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--kv-num-user", "4"), "--kv-num-user is no option (did you mean --kv-num-users"),
        (("--kv-num-user=4",), "--kv-num-user is no option (did you mean --kv-num-users"),
        (("--kv-scenarios=chat",), "(did you mean --kv-scenario"),
        (("--kv_np=2",), "--kv_np is no option (did you mean --kv-np"),
        (("--kv-zzzzzz",), "--kv-zzzzzz is no option; pytest --help lists all --kv-*"),
    ],
)
def test_an_unknown_option_is_refused_with_the_one_that_was_meant(
    site: Site, words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refusal(site.call(*words))


def test_an_unknown_option_of_addopts_is_refused_as_well(site: Site) -> None:
    site.pytester.makeini("[pytest]\naddopts = --kv-user=4\n")
    assert "--kv-user is no option" in refusal(site.call())


def test_an_option_that_a_conftest_brings_is_none_of_ours(site: Site) -> None:
    site.pytester.makeconftest("def pytest_addoption(parser): parser.addoption('--kv-mine')")
    site.pytester.makepyfile("def test_one(request): assert request.config.option.kv_mine == '1'")
    site.call("--kv-mine=1").assert_outcomes(passed=1)


def test_other_unknown_options_are_pytests_business(site: Site) -> None:
    assert "unrecognized arguments: --no-such-thing" in output(site.call("--no-such-thing"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pytest.ini", "[pytest]\nkv_numusers = 4\n"),
        ("tox.ini", "[tox]\nkv_nothing = 1\n[pytest]\nkv_numusers = 4\n"),
        ("setup.cfg", "[tool:pytest]\nkv_numusers = 4\n"),
        ("pyproject.toml", '[tool.pytest.ini_options]\nkv_numusers = "4"\n'),
        ("pyproject.toml", '[tool.pytest.ini_options]\n"kv-numusers" = "4"\n'),
    ],
)
def test_an_unknown_key_of_a_file_is_refused_with_the_one_that_was_meant(
    site: Site, name: str, text: str
) -> None:
    (site.path / name).write_text(text)
    sentence = refusal(site.call())
    assert f"{name} is no option (did you mean kv_num_users" in sentence


@pytest.mark.parametrize("word", ["--kv-dry-run", "--kv-datasize", "--strict-config"])
def test_an_unknown_key_is_refused_whatever_is_asked_for(site: Site, word: str) -> None:
    site.pytester.makeini("[pytest]\nkv_numusers = 4\n")
    assert "is no option (did you mean kv_num_users" in refusal(site.call(word))


def test_an_unknown_key_given_with_o_is_refused(site: Site) -> None:
    assert "kv_numusers in -o is no option" in refusal(site.call("-o", "kv_numusers=4"))


def test_keys_of_other_sections_and_other_people_are_left_alone(site: Site) -> None:
    text = '[tool.mine]\nkv_a = 1\n[tool.pytest.ini_options]\nkv_np = "2"\naddopts = []\n'
    (site.path / "pyproject.toml").write_text(text)
    site.pytester.makepyfile("def test_one(): pass")
    site.call().assert_outcomes(passed=1)


def test_a_key_of_a_later_version_is_refused_by_its_ini_name_and_a_harmless_value_is_not(
    site: Site,
) -> None:
    site.pytester.makepyfile("def test_one(): pass")
    site.pytester.makeini("[pytest]\nkv_html = a.html\n")
    assert refusal(site.call()).startswith("kv_html is a.html; this is not available yet")
    site.pytester.makeini("[pytest]\nkv_gpu_mem_gb = 0\n")
    site.call("-W", "error", "--strict-config").assert_outcomes(passed=1)


def test_many_names_are_not_all_listed() -> None:
    names = [f"name-{number}" for number in range(50)]
    text = str(UnknownNameError("thing", "nmae-7", names, option="--kv-thing"))
    assert "(did you mean 'name-7'" in text
    assert text.endswith("or one of 44 others")


def test_nothing_is_suggested_where_nothing_is_close() -> None:
    assert did_you_mean("zebra", ["np", "scenario"]) == ""
    assert did_you_mean("", ["np", "scenario"]) == ""
