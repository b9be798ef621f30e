from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.showable import can_show, encoding_of, showable

if TYPE_CHECKING:
    from tests.site import Site

TYPOGRAPHIC = "2 × 3 — p95 … µs ≥ 1"


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "utf-16"])
def test_what_can_be_shown_stays_as_it_is(encoding: str) -> None:
    assert can_show(encoding)
    assert showable(TYPOGRAPHIC, encoding) == TYPOGRAPHIC


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "no-such-encoding", None])
def test_signs_have_plain_twins_where_they_can_not(encoding: str | None) -> None:
    assert showable(TYPOGRAPHIC, encoding) == "2 x 3 - p95 .. us >= 1"


@given(text=st.text(), encoding=st.sampled_from(["ascii", "iso-8859-15", "utf-8"]))
def test_whatever_comes_out_can_be_written(text: str, encoding: str) -> None:
    shown = showable(text, encoding)
    if encoding != "utf-8":
        shown.encode(encoding)
    assert shown.count("\n") == text.count("\n")


def test_a_stream_that_is_not_there_has_no_encoding() -> None:
    assert encoding_of(None) is None


def in_ascii(*args: str, site: Site) -> str:
    """What pytest prints where the terminal knows no other signs."""
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args]
    done = subprocess.run(command, capture_output=True, cwd=site.path, env=environ, check=False)
    assert b"Traceback" not in done.stderr + done.stdout
    return done.stdout.decode("ascii")


def test_sizes_can_be_read_in_plain_ascii(site: Site) -> None:
    lines = in_ascii("--kv-datasize", "--kv-model=tiny-1b", site=site).splitlines()
    assert len(lines) > 10
    assert not any("\\u" in line or "\\x" in line for line in lines)


def test_the_report_of_a_run_has_its_lines_in_plain_ascii(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = site.canned_apart("--kv-scenario=chat", "--kv-model=tiny-1b", "--kv-trials=2")
    shown = result.stdout.str()
    assert "\\n" not in shown
    assert "\\u" not in shown
    assert any(line.split()[:1] == ["metric"] for line in result.outlines)
