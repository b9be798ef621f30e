"""What does each engine's way cost on one disk? Prints a row per profile.

    python -m benchmarks.engines [--rounds N] [--cache-dir DIR] [--engines NAMES] [--json FILE]

The same fixed amount of work (users, requests and hits are the same) is done in our own way and
with the calls of every engine that can be direct, all with blocks of 64 tokens, so that only the
calls and their order differ. All take turns in every round, and ratios are taken within a round:
a machine that drifts slows down both. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.options.engines import header_bytes

OWN = "our own"
BLOCK_TOKENS = 64
_WORK = (
    "--kv-np=1", "--kv-allow-run-as-root", "--kv-trials=1", "--kv-num-users=16",
    "--kv-requests=96", "--kv-context-scale=0.1", f"--kv-block-tokens={BLOCK_TOKENS}",
    "--kv-io=direct", "--kv-metrics=run.s", "--kv-allow-invalid", "--kv-verify=off",
)  # fmt: skip
_FIGURES = ("run.s", "load.p50_ms", "load.p95_ms", "read.p50_ms", "write.p50_ms", "lookup.p50_ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache-dir", default="/var/tmp")
    direct = [name for name in PROFILES if not header_bytes(name)]
    parser.add_argument("--engines", default=",".join(direct), help="profiles, by commas")
    parser.add_argument("--json", type=Path, help="write every run's figures there")
    given = parser.parse_args()
    names = [OWN, *given.engines.split(",")]
    rounds: list[dict[str, dict[str, float | None]]] = []
    for number in range(given.rounds):
        order = names[number % len(names) :] + names[: number % len(names)]
        rounds.append({name: measured(name, given.cache_dir) for name in order})
        print(f"round {number + 1} of {given.rounds} done", file=sys.stderr, flush=True)
    if given.json:
        given.json.write_text(json.dumps(rounds, indent=1))
    print(f"| | {' | '.join(f'`{figure}`' for figure in _FIGURES)} | time beside our own |")
    print("|---|" + "---|" * (len(_FIGURES) + 1))
    for name in names:
        cells = [shown([each[name][figure] for each in rounds]) for figure in _FIGURES]
        factors = [(each[name]["run.s"] or 0) / (each[OWN]["run.s"] or 1) for each in rounds]
        low, high = min(factors), max(factors)
        factor = f"{median(factors):.2f} ({low:.2f} to {high:.2f})"
        print(f"| {name} | {' | '.join(cells)} | {factor} |")


def shown(values: list[float | None]) -> str:
    """The median of what every round has."""
    known = [value for value in values if value is not None]
    return f"{median(known):.3g}" if len(known) == len(values) else "–"


def measured(name: str, cache_dir: str) -> dict[str, float | None]:
    """The figures of one run, by their names."""
    engine = [] if name == OWN else [f"--kv-engine={name}"]
    with tempfile.TemporaryDirectory(prefix="kvcache-engines-") as directory:
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs",
            "pytest_kvcache.suite", *_WORK, *engine, f"--kv-cache-dir={cache_dir}",
            f"--kv-results-dir={directory}/results",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stdout[-3000:]}")
        (file,) = Path(directory).glob("results/*/run.json")
        trial = json.loads(file.read_text(encoding="utf-8"))["cases"][0]["trials"][0]
    return {figure: value_of(trial, figure) for figure in _FIGURES}


def value_of(trial: dict[str, Any], figure: str) -> float | None:
    """A metric of the run file's trial; None: it has none."""
    section, _, what = figure.partition(".")
    part = trial[section]
    if part is None:
        return None
    value: float | None = (
        part["ms"][what.removesuffix("_ms")] if what.endswith("_ms") else part[what]
    )
    return value


if __name__ == "__main__":
    main()
