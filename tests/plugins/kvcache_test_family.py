"""A launcher family of which the package knows nothing: ``--kv-plugin kvcache_test_family``.

Everything that is known of it is in this file. Its program, which a test writes, is Open MPI's
mpirun under another name and with a version of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest_kvcache
from pytest_kvcache.launchers.family import (
    FoundLauncher,
    LauncherFamily,
    Leftover,
    Leftovers,
    Ranks,
    rank_name,
)
from pytest_kvcache.launchers.libraries import OPEN_MPI

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.launchers.protocol import LaunchJob

SCRIPT = """#!/bin/sh
if [ "$1" = --version ]; then echo "toyrun {version}"; exit 0; fi
touch "${{TMPDIR:-/tmp}}/toyrun.left"
{mpirun} "$@"
code=$?
[ $code -eq 0 ] || echo "toyrun: process 2 on $(hostname) went away"
exit $code
"""


class ToyLauncher:
    def __init__(self, path: str) -> None:
        self._path = path

    def argv(self, job: LaunchJob) -> list[str]:
        words = [self._path, "--allow-run-as-root", "--host", job.host_list, "--bind-to", "none"]
        words += ["--mca", "pml", "ob1", "--mca", "btl", "self,sm,tcp"]
        for name, value in job.env.items():
            words += ["-x", f"{name}={value}"]
        return [*words, "-n", str(job.world_size), *job.program]


def _make(found: FoundLauncher) -> ToyLauncher:
    return ToyLauncher(found.path)


def _recognise(output: str) -> tuple[str, str] | None:
    match = re.match(r"toyrun (\S+)", output)
    return None if match is None else ("toyrun", match[1])


def _last_words(text: str, ranks: Ranks) -> str | None:
    match = re.search(r"toyrun: process (\d+) on (\S+) went away", text)
    return match and f"{rank_name(int(match[1]) - 1, ranks, match[2])} went away"


@pytest_kvcache.hookimpl
def kvcache_launchers() -> Mapping[str, LauncherFamily]:
    family = LauncherFamily(
        title="the tests' toyrun",
        make=_make,
        recognise=_recognise,
        minimum=(2,),
        libraries=(OPEN_MPI,),
        leaves=Leftovers(files=(Leftover(glob="toyrun.left", is_file=True,
                                         unless_running=("toyrun",)),)),
        last_words=_last_words,
    )  # fmt: skip
    return {"toyrun": family}
