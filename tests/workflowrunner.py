"""Runs the workflow of docs/github-actions.md here, step by step. Not a test module.

The steps' scripts are executed as GitHub does (``bash -e`` in one directory for all). Of the
actions that the page uses it knows what each does to that directory.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[1]
# What a wheel is built of, and what a checkout has beside it.
CHECKOUT = ("pytest_kvcache", "pyproject.toml", "conftest.py", "README.md", "LICENSE")
RECORDED = "steps.measure.outputs.recorded == 'true'"


def workflow_of_the_page() -> dict[str, Any]:
    """The workflow as YAML reads it."""
    text = runpy.run_path(str(ROOT / "docs" / "workflow.py"))["workflow"]()
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed


@dataclass
class Job:
    """One run of the only job: ``log`` and ``exits`` of its scripts, and its ``artifact``."""

    log: str = ""
    exits: dict[str, int] = field(default_factory=dict)
    artifact: list[str] = field(default_factory=list)
    summary: str = ""

    @property
    def ok(self) -> bool:
        """Whether the job is green."""
        return not any(self.exits.values())


class Runner:
    """A self-hosted runner: its workspace and the cache of its repository live on."""

    def __init__(self, directory: Path, environment: Mapping[str, str], **env: str) -> None:
        """``environment`` is the runner's own; ``env`` replaces values of the job's."""
        self.workspace = directory / "workspace"
        self.workspace.mkdir()
        self._cache = directory / "cache"
        self._cache.mkdir()
        self._outputs = directory / "outputs"
        self._summary = directory / "summary"
        self._environment = environment
        (self._job,) = workflow_of_the_page()["jobs"].values()
        self._env = env

    def run(self, *, without: tuple[str, ...] = (), **changes: str) -> Job:
        """The job, with more changes of its ``env``; steps may be left out."""
        job = Job()
        reported = {name: str(value) for name, value in self._job["env"].items()}
        reported["RECORD"] = ""  # as the expression is in a nightly run
        environment = {**os.environ, **self._environment, **reported, **self._env, **changes}
        environment |= {
            "GITHUB_OUTPUT": str(self._outputs),
            "GITHUB_STEP_SUMMARY": str(self._summary),
        }
        for path in (self._outputs, self._summary):
            path.write_text("")
        for step in self._job["steps"]:
            if step["name"] not in without and self._is_due(step, job):
                if "run" in step:
                    self._script(step, environment, job)
                else:
                    self._action(step, job)
        job.summary = self._summary.read_text()
        return job

    def _is_due(self, step: Mapping[str, Any], job: Job) -> bool:
        condition = step.get("if", "success()")
        recorded = "recorded=true" in self._outputs.read_text()
        known = {"success()": job.ok, "always()": True, RECORDED: job.ok and recorded}
        return known[condition]

    def _script(self, step: Mapping[str, Any], environment: Mapping[str, str], job: Job) -> None:
        assert "${{" not in step["run"], "expressions belong into env"
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=self.workspace,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        job.log += f"--- {step['name']}\n{done.stdout}"
        job.exits[step["name"]] = done.returncode

    def _action(self, step: Mapping[str, Any], job: Job) -> None:
        name, given = step["uses"].partition("@")[0], step["with"]
        kept = self._cache / given["path"] if "key" in given else None
        if name == "actions/checkout":
            _copy_checkout(self.workspace / given["path"])
        elif name == "actions/cache/restore":
            assert kept is not None
            if kept.exists():
                shutil.copy(kept, self.workspace / given["path"])
        elif name == "actions/cache/save":
            assert kept is not None
            shutil.copy(self.workspace / given["path"], kept)
        elif name == "actions/upload-artifact":
            job.artifact = [*self._present(given["path"].split())]
        else:
            raise AssertionError(f"no test knows what {name} does")

    def _present(self, paths: list[str]) -> Iterator[str]:
        for path in paths:
            if (self.workspace / path).exists():
                yield path


def _copy_checkout(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, path / name)
