"""A short command has an answer, or one sentence on why it has none."""

from __future__ import annotations

import os
import sys

import pytest

from pytest_kvcache.commands import CommandError, last_line, run_command


def test_whatever_a_command_ends_with_is_an_answer() -> None:
    program = "import sys; print('told'); sys.exit(3)"
    done = run_command([sys.executable, "-c", program], timeout_s=60)
    assert (done.returncode, done.stdout) == (3, "told\n")


def test_our_standard_input_is_not_the_commands() -> None:
    ours, other = os.pipe()
    os.write(other, b"ours")
    os.close(other)
    kept = os.dup(0)
    try:
        os.dup2(ours, 0)
        assert run_command(["cat"], timeout_s=60).stdout == ""
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(ours)


def test_output_that_is_no_text_is_an_answer_too() -> None:
    program = r"import sys; sys.stdout.buffer.write(b'\xff')"
    assert run_command([sys.executable, "-c", program], timeout_s=60).stdout == "�"


def test_a_command_that_hangs_is_ended_and_named() -> None:
    with pytest.raises(CommandError, match=r"^sleep 60 gave no answer in 0\.1 s$"):
        run_command(["sleep", "60"], timeout_s=0.1)
    with pytest.raises(CommandError, match=r"^sleep 60 … gave no answer in 0\.1 s$"):
        run_command(["sleep", "60", "60"], timeout_s=0.1)


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match=r"^/no/program can't be started: .*No such file"):
        run_command(["/no/program"], timeout_s=60)


@pytest.mark.parametrize(
    ("text", "line"),
    [("one\n two \n\n", "two"), ("", "no message"), (" \n", "no message")],
)
def test_the_last_line_that_says_anything_is_for_people(text: str, line: str) -> None:
    assert last_line(text) == line
