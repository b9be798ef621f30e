from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.masking import MASK, Secrets
from pytest_kvcache.plan.secretfile import take_secrets, write_secrets

if TYPE_CHECKING:
    from pathlib import Path

VALUES = st.dictionaries(
    st.sampled_from(["one", "two", "three"]),
    st.text(st.characters(exclude_characters="*"), min_size=1),
)


@given(values=VALUES, before=st.text(), after=st.text())
def test_no_secret_is_left_in_a_text(values: dict[str, str], before: str, after: str) -> None:
    text = Secrets(values).mask(before + "".join(values.values()) + after)
    assert not any(value in text.replace(MASK, "*") for value in values.values())


def test_a_text_without_secrets_stays_as_it_is() -> None:
    assert Secrets({"key": "hunter2"}).mask("endpoint=http://a") == "endpoint=http://a"
    assert Secrets({"key": ""}).mask("abc") == "abc"
    assert Secrets().mask("abc") == "abc"


def test_secrets_are_shown_by_name_only() -> None:
    assert repr(Secrets({"secret_key": "hunter2", "a": "b"})) == "Secrets(a, secret_key)"


def test_other_secrets_are_another_question() -> None:
    assert Secrets({"a": "1"}) == Secrets({"a": "1"})
    assert hash(Secrets({"a": "1"})) == hash(Secrets({"a": "1"}))
    assert Secrets({"a": "1"}) != Secrets({"a": "2"})


def test_secrets_reach_the_ranks_once_by_a_file_of_this_user_alone(tmp_path: Path) -> None:
    secrets = Secrets({"secret_key": "hunter2 ü"})
    write_secrets(tmp_path, secrets)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text(encoding="utf-8")) == {"secret_key": "hunter2 ü"}
    assert take_secrets(tmp_path) == secrets
    assert list(tmp_path.iterdir()) == []
    assert not take_secrets(tmp_path)


def test_what_lies_there_already_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").touch()
    with pytest.raises(FileExistsError):
        write_secrets(tmp_path, Secrets({"a": "b"}))
