"""A short command of another program: run to its end, or one sentence on why it has no answer.

Imports nothing of the package. Whoever runs one takes ``run`` as a parameter, so that a
test can answer for the program.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from typing import TypeAlias

Run: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]

NOT_FOUND_EXITS = (126, 127)
"""How shells, and what behaves like one, say that a program can't be run or is not there."""


class CommandError(Exception):
    """A command had no answer; the message is a sentence that begins with its name."""


def run_command(
    argv: Sequence[str], *, timeout_s: float, run: Run = subprocess.run
) -> subprocess.CompletedProcess[str]:
    """Run ``argv`` without input until it ends; CommandError if it can't start or hangs.

    Any exit code is an answer: what it means is the caller's to say.
    """
    try:
        return run(
            [*argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        shown = shlex.join(argv[:2]) + " …" * (len(argv) > 2)  # noqa: PLR2004 - what is shown
        raise CommandError(f"{shown} gave no answer in {timeout_s:g} s") from error
    except OSError as error:
        raise CommandError(f"{argv[0]} can't be started: {error}") from error


def last_line(text: str) -> str:
    """The last line of what a command printed that says anything, for people."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
