"""The documents are true: their examples run, their links lead somewhere, their lists are whole."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.measure.metrics import METRICS, PERCENTILES
from pytest_kvcache.measure.steps import StepCounts
from pytest_kvcache.options.engines import brought_by
from pytest_kvcache.options.options import Options, build_options
from pytest_kvcache.options.table import OPTIONS
from pytest_kvcache.plan.forecast import forecast
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.plan.planner import Planner, name_cases
from pytest_kvcache.registry import ENTRY_POINTS, build_registry
from pytest_kvcache.results.record import RankResult
from pytest_kvcache.results.summary import MetricSeries
from pytest_kvcache.results.trial import StepFigures
from pytest_kvcache.results.verdictcodes import SEVERITIES
from pytest_kvcache.traces import ioformat
from pytest_kvcache.units import GIB, KIB
from pytest_kvcache.version import VERSION
from tests.objectserver import object_server
from tests.site import PYTEST, SMALL, SUITE, output, refusal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.options.options import Origin
    from tests.site import Site

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
README, RESULTS, BACKENDS, OBJECTS, CI = (
    ROOT / "README.md", DOCS / "results.md", DOCS / "backends.md", DOCS / "object-store.md",
    DOCS / "ci.md",
)  # fmt: skip
WIDTH = 80
TWO_GB = 2 * 10**9
TRACE_LINE = {"timestamp": 0, "input_length": 900, "output_length": 3, "hash_ids": [7, 8]}
BASELINE_ENTRY = {
    "fullname": "any-read.p95_ms",
    "stats": dict.fromkeys(("min", "max", "mean", "median"), 0.001) | {"rounds": 1},
    "extra_info": {
        "case": "any", "metric": "read.p95_ms", "plan_digest": "any",
        **MetricSeries(name="read.p95_ms", unit="ms", better="lower", values=(1.0,)).to_json(),
    }
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """One fenced block of a page."""

    page: str
    language: str
    text: str


def examples(page: Path, language: str) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Example(page.name, kind, block) for kind, block in found if kind == language]


def commands(page: Path) -> Iterator[str]:
    """What a page tells its reader to type, one command each."""
    for example in examples(page, "console"):
        for line in example.text.splitlines():
            assert line.startswith("$ "), f"{page.name}: {line!r} is no command"
            yield from re.split(r" && | \|\| ", line.removeprefix("$ "))


def pytest_arguments(command: str) -> list[str] | None:
    """What a command gives to pytest; None if it calls something else."""
    words = shlex.split(re.sub(r"^([A-Z_]+=\S+ )+", "", command))
    return words[1:] if words[0] == "pytest" else None


PYTEST_COMMANDS = sorted(
    {command for page in PAGES for command in commands(page) if pytest_arguments(command)}
)


def cells(page: Path, heading: str) -> Iterator[list[str]]:
    """The rows of all tables between a heading and the next one of its rank."""
    rank = heading.partition(" ")[0]
    rest = page.read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    assert rest, f"{page.name} has no {heading!r}"
    part = re.split(rf"\n#{{1,{len(rank)}}} ", rest)[0]
    for line in part.splitlines():
        if line.startswith("| ") and not line.startswith("|--"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def words_of(text: str) -> set[str]:
    """What stands in backticks, blocks of code apart."""
    return set(re.findall(r"`([^`]+)`", prose(text)))


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


# --- every page ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """Of all headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_is_named_exists(page: Path) -> None:
    known = {spec.flag for spec in OPTIONS}
    named = set(re.findall(r"--kv-[a-z]+(?:-[a-z]+)*", page.read_text(encoding="utf-8")))
    assert named <= known


@pytest.mark.parametrize("command", PYTEST_COMMANDS)
def test_every_command_is_accepted(command: str, site: Site) -> None:
    (site.path / "conversation.jsonl").write_text(json.dumps(TRACE_LINE))
    (site.path / "baseline.json").write_text(json.dumps({"benchmarks": [BASELINE_ENTRY]}))
    write_modules(site, BACKENDS, OBJECTS)
    site.pytester.syspathinsert()
    site.pytester.makeini("[pytest]\nmarkers =\n  mpi\n  cluster\n")
    arguments = [word for word in pytest_arguments(command) or () if "--benchmark-" not in word]
    result = site.call(*arguments, "--collect-only", "-q")
    assert result.ret in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED), output(result)


# --- README ----------------------------------------------------------------------------------


def test_the_readme_shows_a_report_as_it_is_printed(site: Site) -> None:
    (shown,) = (block.text for block in examples(README, "text"))
    printed = output(site.canned())
    for pattern in (r"^  metric .*$", r"^-+ kvcache -+$"):
        (line,) = re.findall(pattern, printed, re.MULTILINE)
        assert line in shown
    assert ("benchmark '" in shown) == ("benchmark '" in printed)
    assert max(map(len, shown.splitlines())) <= WIDTH
    for metric in (*Options().metrics, "requests.per_s", "cache.hit_ratio"):
        assert re.search(rf"^  {re.escape(metric)} .* 3$", shown, re.MULTILINE), metric


def test_the_readme_explains_every_verdict_it_shows() -> None:
    (shown,) = (block.text for block in examples(README, "text"))
    explained = words_of(README.read_text(encoding="utf-8"))
    assert set(re.findall(r"^  ([A-Z_]{5,}) ", shown, re.MULTILINE)) <= explained


def test_the_readme_s_own_test_passes(site: Site) -> None:
    (source,) = (block.text for block in examples(README, "python"))
    site.canned_tests(source).assert_outcomes(passed=1)


def test_run_files_are_shown_and_verified_as_documented(site: Site) -> None:
    site.canned()
    lines = [line for line in commands(README) if line.startswith("python -m pytest_kvcache")]
    assert len(lines) == 2
    for line in lines:
        command = line.replace("python", shlex.quote(sys.executable), 1)
        drawn = re.search(r"--picture=(\S+)", line)
        done = subprocess.run(
            command, shell=True, cwd=site.path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "mixed-tiny-1b-np2" in done.stdout or "sound" in done.stdout
        assert drawn is None or (site.path / drawn[1]).read_text().startswith("<svg")


def test_the_wheel_that_the_pages_name_is_the_one_that_is_built() -> None:
    named = {
        name
        for page in PAGES
        for name in re.findall(r"pytest_kvcache-[\w.-]+\.whl", page.read_text(encoding="utf-8"))
    }
    assert named == {f"pytest_kvcache-{VERSION}-py3-none-any.whl"}


def test_the_picture_of_the_readme_is_of_the_run_that_it_shows() -> None:
    (shown,) = (block.text for block in examples(README, "text"))
    picture = ET.parse(DOCS / "run.svg").getroot()
    texts = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    (run_id,) = re.findall(r"^run file: results/(\S+)/run.json$", shown, re.MULTILINE)
    assert f"run {run_id}" in texts
    assert (DOCS / "run.svg").stat().st_size < 64 * KIB


def options_of_the_checkout() -> Options:
    """What the README's first command runs with."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ini = config["tool"]["pytest"]["ini_options"]
    given: dict[str, tuple[str, Origin]] = {"np": ("2", "command line")}
    given |= {name[3:]: (text, "ini") for name, text in ini.items() if name.startswith("kv_")}
    return build_options(given)


def test_the_load_of_the_checkout_fits_in_two_gb() -> None:
    _largest, in_all = need_bytes(options_of_the_checkout())
    assert 0 < in_all < TWO_GB


def test_the_readme_says_what_its_first_command_costs() -> None:
    options, registry = options_of_the_checkout(), build_registry()
    (name,) = name_cases(options, registry)
    case = Planner(registry, "test").plan(options, name)
    found = forecast(case.plan, case.trace, registry.workload(case.plan.scenario))
    assert found.written_bytes is not None
    least, most = (
        options.trials.high * written_bytes / GIB
        for written_bytes in (
            found.least_written_bytes(), found.population_bytes + found.written_bytes,
        )
    )  # fmt: skip
    said = re.search(
        r"writes (\d+) to (\d+) GiB to `/var/tmp`, where at most ([\d.]+) GiB lie at a time",
        README.read_text(encoding="utf-8"),
    )
    assert said is not None
    assert [float(number) for number in said.groups()] == [
        round(least), round(most), round(found.need_bytes / GIB, 1),
    ]  # fmt: skip


def test_the_readme_says_how_much_the_users_of_an_installed_package_hold() -> None:
    (said_gib,) = re.findall(r"such users hold (\d+) GiB", README.read_text(encoding="utf-8"))
    largest, _in_all = need_bytes(Options())
    assert int(said_gib) == round(largest / GIB)


def need_bytes(options: Options) -> tuple[int, int]:
    """What the only case stores without eviction: per rank, in all."""
    registry = build_registry()
    (name,) = name_cases(options, registry)
    planner = Planner(registry, "test")
    per_rank, in_all = planner.size(options, name)
    stored_bytes = planner.plan(options, name).plan.stored_bytes
    return per_rank * stored_bytes, in_all * stored_bytes


# --- docs/options.md, docs/results.md, docs/why.md -------------------------------------------


def test_the_page_of_options_is_what_its_generator_writes() -> None:
    page = runpy.run_path(str(DOCS / "options.py"))["page"]
    text = (DOCS / "options.md").read_text(encoding="utf-8")
    assert page(text) == text, "run python docs/options.py"


def test_the_page_of_counters_is_what_its_generator_writes() -> None:
    page = runpy.run_path(str(DOCS / "counters.py"))["page"]
    text = (DOCS / "counters.md").read_text(encoding="utf-8")
    assert page(text) == text, "run python docs/counters.py"


def test_the_page_of_engines_is_what_its_generator_writes() -> None:
    page = runpy.run_path(str(DOCS / "engines.py"))["page"]
    text = (DOCS / "engines.md").read_text(encoding="utf-8")
    assert page(text) == text, "run python docs/engines.py"


def test_the_page_of_engines_says_of_each_what_a_restart_of_it_is() -> None:
    text = (DOCS / "engines.md").read_text(encoding="utf-8")
    section = text.partition("\n## After a restart\n")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")]
    told = {name.strip(): row[3] for row in rows for name in row[1].split(",")}
    assert [name for name in PROFILES if name not in told] == []
    for name in PROFILES:
        by_lookups = brought_by(name).get("restart_by") == "lookups"
        assert ("`--kv-restart-by=lookups`, by the profile" in told[name]) == by_lookups


def test_the_ini_file_of_the_page_of_options_is_accepted(site: Site) -> None:
    (ini,) = (block.text for block in examples(DOCS / "options.md", "ini"))
    (site.path / "pytest.ini").write_text(ini)
    result = site.call(*SUITE, "--collect-only", "-q")
    assert result.ret == pytest.ExitCode.OK, output(result)


def keys_of(value: Any, stop: frozenset[str]) -> Iterator[str]:
    """Every key of a JSON value; below those in ``stop`` keys are names of other things."""
    if isinstance(value, list):
        for part in value:
            yield from keys_of(part, stop)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            if key not in stop:
                yield from keys_of(part, stop)


def test_every_field_of_a_run_file_is_documented(site: Site) -> None:
    site.canned()
    documented = words_of(RESULTS.read_text(encoding="utf-8"))
    for name in ("histogram.md", "counters.md"):
        documented |= words_of((DOCS / name).read_text(encoding="utf-8"))
    names = {"weights", "class_shares", "profiles", "classes"}
    free = frozenset({"summary", "origins", "filesystem", "sources", *names})
    assert set(keys_of(site.run(), free)) - documented == set()


def test_every_documented_field_is_in_a_run_file(site: Site) -> None:
    site.canned()
    known = set(keys_of(site.run(), frozenset())) | set(Plan.__dataclass_fields__)
    for heading in ("### The run", "### A case", "### A trial", "### A rank", "### The plan"):
        for first, *_rest in cells(RESULTS, heading):
            assert words_of(first) <= known, f"{heading}: {first}"


def test_every_field_of_a_rank_is_documented() -> None:
    rows = " ".join(" ".join(row) for row in cells(RESULTS, "### A rank"))
    counted = words_of((DOCS / "counters.md").read_text(encoding="utf-8"))
    assert set(RankResult.__dataclass_fields__) - words_of(rows) - counted == set()


def test_every_field_of_a_load_step_is_documented_and_no_other() -> None:
    documented: set[str] = set()
    for first, *_rest in [*cells(RESULTS, "### The load steps of a trial")]:
        documented |= words_of(first)
    assert documented == set(StepFigures.__dataclass_fields__)
    (row,) = [row for row in cells(RESULTS, "### A rank") if row[0] == "`load_steps`"]
    assert words_of(row[1]) >= set(StepCounts.__dataclass_fields__)


def test_every_verdict_is_documented_with_its_severity() -> None:
    reported = {(row[0].strip("`"), row[1]) for row in [*cells(RESULTS, "## Verdicts")][1:]}
    assert reported == set(SEVERITIES.items())


def test_every_verdict_of_the_table_is_given_somewhere_and_no_other() -> None:
    package = Path(build_options.__code__.co_filename).parents[1] / "results" / "verdicts"
    source = "".join(path.read_text(encoding="utf-8") for path in package.glob("*.py"))
    assert set(re.findall(r'Verdict\.of\(\s*"(\w+)"', source)) == set(SEVERITIES)


def test_every_metric_is_documented() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    named = words_of(text)
    rows = [row for row in cells(RESULTS, "## Metrics") if "→" in row[1]]
    sections = {section for row in rows for section in words_of(row[0])}
    latencies = {f"{s}.{p}_ms" for s in sections for p in ("mean", *PERCENTILES, "max")}
    assert set(METRICS) == latencies | {name for name in named if name in METRICS}
    assert {f"{statistic}_ms" for statistic in ("mean", *PERCENTILES, "max")} <= named


def test_every_dependency_has_its_reason() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = config["project"]["optional-dependencies"].values()
    wanted = [*config["project"]["dependencies"], *(item for extra in extras for item in extra)]
    text = (DOCS / "why.md").read_text(encoding="utf-8")
    for requirement in wanted:
        name = re.split(r"[><=;\[ ]", requirement)[0]
        assert name in text, f"docs/why.md has no reason for {name}"


# --- docs/backends.md ------------------------------------------------------------------------


@pytest.fixture
def plain_files(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A directory with the two modules of docs/backends.md, importable from everywhere."""
    write_modules(site, BACKENDS)
    monkeypatch.setenv("PYTHONPATH", str(site.path), prepend=":")
    return site


def write_modules(site: Site, *pages: Path) -> None:
    """The modules of these pages, as files of the names in their first lines."""
    for page in pages:
        for example in examples(page, "python"):
            name = example.text.splitlines()[0].removeprefix("# ")
            (site.path / name).write_text(example.text)


def test_the_documented_backend_keeps_the_contract(plain_files: Site) -> None:
    first, _second = (line for line in commands(BACKENDS) if "pytest" in line)
    arguments = pytest_arguments(first)
    assert arguments is not None
    result = plain_files.pytester.runpytest_subprocess(*arguments, *PYTEST)
    counts = result.parseoutcomes()
    assert counts.keys() == {"passed"}, output(result)
    assert counts["passed"] > 10


@pytest.mark.mpi
def test_the_documented_backend_runs_under_mpi(plain_files: Site, real_site: Site) -> None:
    _first, second = (line for line in commands(BACKENDS) if "pytest" in line)
    arguments = pytest_arguments(second)
    assert arguments is not None
    small = [option for option in SMALL if not option.startswith(("--kv-plugin", "--kv-backend"))]
    result = real_site.pytester.runpytest_subprocess(
        *arguments, *small, f"--kv-cache-dir={plain_files.cache_dir}", "--kv-allow-invalid"
    )
    assert result.ret == pytest.ExitCode.OK, output(result)
    assert real_site.case()["plan"]["backend"] == "plain"


# --- docs/object-store.md --------------------------------------------------------------------


@pytest.fixture
def object_store(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What a server holds that the modules of docs/object-store.md reach; they are importable."""
    write_modules(site, OBJECTS)
    monkeypatch.setenv("PYTHONPATH", str(site.path), prepend=":")
    with object_server() as (address, objects):
        monkeypatch.setenv("OBJECT_STORE", address)
        yield objects


def test_the_documented_object_store_keeps_the_contract(
    site: Site, object_store: dict[str, bytes]
) -> None:
    first, _second = (line for line in commands(OBJECTS) if "pytest" in line)
    arguments = pytest_arguments(first)
    assert arguments is not None
    result = site.pytester.runpytest_subprocess(*arguments, *PYTEST)
    counts = result.parseoutcomes()
    assert counts.keys() == {"passed", "skipped"}, output(result)  # what moves parts of objects
    assert counts["passed"] > 10
    assert object_store


@pytest.mark.mpi
def test_the_documented_object_store_runs_under_mpi(
    object_store: dict[str, bytes], real_site: Site
) -> None:
    _first, second = (line for line in commands(OBJECTS) if "pytest" in line)
    arguments = pytest_arguments(second.replace("127.0.0.1:9000", os.environ["OBJECT_STORE"]))
    assert arguments is not None
    small = [option for option in SMALL if not option.startswith(("--kv-plugin", "--kv-backend"))]
    result = real_site.pytester.runpytest_subprocess(
        *arguments, *small, "--kv-cache-dir=/nowhere", "--kv-allow-invalid", "--kv-keep"
    )
    assert result.ret == pytest.ExitCode.OK, output(result)
    (trial,) = real_site.case()["trials"]
    assert trial["integrity"]["checked"] > 0
    assert trial["integrity"]["failed"] == 0
    assert "UNPROVEN" in {verdict["code"] for verdict in trial["verdicts"]}
    ranks = {key.rpartition("/")[0] for key in object_store}
    run_id = real_site.case()["plan"]["run_id"]
    assert ranks == {f"/kvcache-{run_id}/trial-1/rank-{rank}" for rank in range(2)}


# --- docs/backends.md, its entry point -------------------------------------------------------


def test_the_documented_entry_point_is_the_one_that_is_read() -> None:
    (block,) = (block.text for block in examples(BACKENDS, "toml"))
    points = tomllib.loads(block)["project"]["entry-points"]
    assert points == {ENTRY_POINTS: {"plain": "plain_files"}}


# --- docs/ci.md ------------------------------------------------------------------------------


def canned(site: Site, command: str, *args: str) -> list[str]:
    """The arguments of a command of the page, with canned ranks."""
    arguments = pytest_arguments(command)
    assert arguments is not None
    return [*arguments, *site.canned_args(), *args]


def test_the_recipe_catches_a_slowdown(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    record, compare, *_rest = commands(CI)
    two, one = "--kv-trials=2", "--kv-trials=1"
    assert site.call(*canned(site, record, two)).ret == pytest.ExitCode.OK
    unchanged = site.call(*canned(site, compare, two))
    assert unchanged.ret == pytest.ExitCode.OK, output(unchanged)
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")
    slower = site.call(*canned(site, compare, two))
    assert slower.ret == pytest.ExitCode.TESTS_FAILED, output(slower)
    slower.stdout.fnmatch_lines(["load.p95_ms *WORSE", "read.gib_per_s *WORSE"])
    unsure = site.call(*canned(site, compare, one))
    assert "could never be decided" in refusal(unsure)
    allowed = site.call(*canned(site, compare, one, "--kv-allow-inconclusive"))
    assert allowed.ret == pytest.ExitCode.OK, output(allowed)
    verdicts = words_of(CI.read_text(encoding="utf-8"))
    assert {"ok", "WORSE", "INCONCLUSIVE", "INCOMPARABLE", "MISSING"} <= verdicts


def test_pytest_benchmarks_own_comparison_catches_it_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, compare = [command for command in commands(CI) if "--benchmark-" in command][1:]
    assert site.call(*canned(site, save)).ret == pytest.ExitCode.OK
    assert site.call(*canned(site, compare)).ret == pytest.ExitCode.OK
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")
    slower = site.call(*canned(site, compare))
    assert slower.ret == pytest.ExitCode.TESTS_FAILED
    slower.stdout.fnmatch_lines(
        ["*Field 'mean'*", "FAILED kvcache::gate[[]--benchmark-compare-fail] *"]
    )


# --- docs/iotrace.md ---------------------------------------------------------------------------


def test_every_column_and_release_of_an_io_trace_is_documented() -> None:
    page = DOCS / "iotrace.md"
    (columns, releases) = (
        [word for first, *_rest in cells(page, heading) for word in re.findall(r"`(\w+)`", first)]
        for heading in ("## What is written", "## What waits for what")
    )
    assert columns == list(ioformat.COLUMNS)
    assert releases[1:] == list(ioformat.RELEASES)  # below the name of the column
    phases, operations = (
        next(row[1] for row in cells(page, "## What is written") if row[0] == f"`{name}`")
        for name in ("phase", "operation")
    )
    assert set(ioformat.PHASES) <= words_of(phases)
    assert set(ioformat.OPERATIONS) == words_of(operations)
    assert f"`{ioformat.FIRST_LINE}{ioformat.VERSION}: `" in page.read_text(encoding="utf-8")
    assert f"`{ioformat.LAST_LINE}1234 operations`" in page.read_text(encoding="utf-8")
