"""The picture of a run: what is drawn is what was measured, and nothing lies over another."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_kvcache.__main__ import main
from pytest_kvcache.measure.stalls import Stall
from pytest_kvcache.report.picture import LETTER_PX, WIDTH_PX, picture_of
from pytest_kvcache.report.scales import scale_from_zero, scale_of_span, scale_of_times, tick_label
from pytest_kvcache.report.svg import element, words
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.units import GIB
from tests.canned import ReadSeries, case_of, measuring, run_of, trial_of
from tests.factories import make_plan

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.results.case import CaseResult
    from tests.site import Site

SVG = "{http://www.w3.org/2000/svg}"
HEIGHTS = {"title": 16, "small": 12}


def series_of(reads: list[int], p99_ms: list[float | None] | None = None) -> ReadSeries:
    """A series that read so many operations of 1 GiB in each second, and wrote nothing."""
    return ReadSeries(reads, [count * GIB for count in reads], p99_ms or [None] * len(reads))


canned_trial = cache(lambda index: trial_of(make_plan(), index))


def trial_with(series: ReadSeries, index: int = 0, **changes: Any) -> TrialResult:
    window_s = float(series.interval_s * series.points) or 0.5
    return measuring(canned_trial(index), **{"series": series, "window_s": window_s, **changes})


def drawn(*cases: CaseResult) -> ET.Element:
    return ET.fromstring(picture_of([run_of(*cases)]))


def case_with(*series: ReadSeries) -> CaseResult:
    return case_of(make_plan(), *(trial_with(one, index) for index, one in enumerate(series)))


def texts(picture: ET.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text")]


def curves(picture: ET.Element) -> list[list[tuple[float, float]]]:
    """The points of every line of a trial in a panel, in order; the legend's are left out."""
    found = []
    for path in picture.iter(f"{SVG}path"):
        if path.get("class", "").startswith("line") and "L" in path.get("d", ""):
            pairs = re.findall(r"([\d.]+) ([\d.]+)", path.get("d", ""))
            found.append([(float(x), float(y)) for x, y in pairs])
    return found


@dataclass(frozen=True)
class Box:
    text: str
    left: float
    right: float
    top: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right
            and self.top < other.bottom and other.top < self.bottom
        )  # fmt: skip


def boxes(picture: ET.Element) -> list[Box]:
    """Where texts are, if every letter is a wide one."""
    found = []
    for text in picture.iter(f"{SVG}text"):
        size = (text.get("class") or "").split()[0]
        x, y = float(text.get("x", 0)), float(text.get("y", 0))
        width = LETTER_PX[size] * len(text.text or "")
        left = x - {"end": width, "middle": width / 2}.get(text.get("text-anchor", ""), 0)
        top = y - 0.75 * HEIGHTS[size]
        found.append(Box(text.text or "", left, left + width, top, y + 0.2 * HEIGHTS[size]))
    return found


# --- what is drawn ---------------------------------------------------------------------------


def test_a_line_goes_through_the_rates_of_its_trial() -> None:
    (line,) = curves(drawn(case_with(series_of([1, 2, 4]))))
    (x1, y1), (x2, y2), (x3, y3) = line
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx((y2 - y3) / 2, abs=0.2)
    assert y3 < y2 < y1  # upwards is more


def test_every_trial_has_a_line_of_its_own_in_each_panel() -> None:
    picture = drawn(case_of(make_plan(duration_s=3.0)))
    headings = [text for text in texts(picture) if ", GiB/s" in text or "ms" in text.split()]
    assert headings == ["read, GiB/s", "written, GiB/s", "p99 of the reads' service times, ms"]
    assert len(curves(picture)) == 2 * len(headings)
    kinds = {path.get("class") for path in picture.iter(f"{SVG}path")} - {"grid"}
    assert kinds == {"line t0 d0", "line t1 d0"}
    assert {"trial 1", "trial 2", "ramp, not measured"} <= set(texts(picture))


def test_the_title_is_the_case_and_below_it_stands_what_ran() -> None:
    case = case_of(make_plan(np=2))
    first, second, *_rest = texts(drawn(case))
    assert first == case.name
    assert second.startswith("2 ranks on ")


def test_where_there_is_no_p99_the_line_has_a_gap() -> None:
    series = series_of([1, 1, 1, 1, 1], [2.0, 3.0, None, 4.0, 4.0])
    picture = drawn(case_with(series))
    (path,) = (p.get("d", "") for p in picture.iter(f"{SVG}path") if p.get("d", "").count("M") > 1)
    assert path.count("L") == 2
    without = texts(drawn(case_with(series_of([1, 1]))))
    assert any(text.endswith("none, since no interval has 100 operations") for text in without)


def stalled(trial: TrialResult, *spans: tuple[float, float]) -> TrialResult:
    """The trial with these stalls on its first rank."""
    assert trial.measured is not None
    first, *others = trial.measured.ranks
    stalls = tuple(Stall(kind="every", begin_s=begin, end_s=end) for begin, end in spans)
    return measuring(trial, ranks=(replace(first, stalls=stalls), *others))


def marks(*trials: TrialResult) -> list[tuple[float, float]]:
    """Left end and width of every band that marks a stall in the first panel."""
    picture = drawn(case_of(make_plan(), *trials))
    bands = [band for band in picture.iter(f"{SVG}rect") if band.get("class") == "stall"]
    assert ("stall of some rank" in texts(picture)) == bool(bands)
    bands = bands[1:]  # the first is the legend's
    return [(float(b.get("x", 0)), float(b.get("width", 0))) for b in bands[: len(bands) // 2]]


def test_a_stall_is_marked_when_it_was() -> None:
    trial = trial_with(series_of([3, 3, 3, 3]))
    assert marks(trial) == []
    (line,) = curves(drawn(case_of(make_plan(), trial)))
    second = line[1][0] - line[0][0]
    ((left, width),) = marks(stalled(trial, (0.5, 2.5)))
    assert left == pytest.approx(line[0][0], abs=0.2)
    assert width == pytest.approx(2 * second, abs=0.2)


def test_a_stall_that_outlasts_the_window_is_cut_and_a_short_one_is_still_seen() -> None:
    trial = trial_with(series_of([3] * 1000))
    ((left, width),) = marks(stalled(trial, (900.0, 1100.0)))
    assert left + width <= WIDTH_PX
    ((_left, width),) = marks(stalled(trial, (500.0, 500.6)))
    assert width >= 2


def test_stalls_of_several_trials_at_one_time_are_marked_once() -> None:
    one = stalled(trial_with(series_of([3, 3, 3, 3])), (0.5, 1.5))
    other = stalled(trial_with(series_of([3, 3, 3, 3]), 1), (1.0, 2.0), (3.0, 3.5))
    assert len(marks(one, other)) == 2


def test_times_that_differ_much_are_drawn_by_their_logarithm_and_the_heading_says_so() -> None:
    def heading(*p99_ms: float) -> str:
        picture = drawn(case_with(series_of([1] * len(p99_ms), [*p99_ms])))
        return next(text for text in texts(picture) if text.startswith("p99"))

    assert heading(10.0, 30.0) == "p99 of the reads' service times, ms"
    assert heading(10.0, 3000.0) == "p99 of the reads' service times, ms, logarithmic"


def test_without_reads_the_times_are_those_of_writes() -> None:
    reading = series_of([1, 1], [2.0, 3.0])
    reported = texts(drawn(case_with(replace(reading, kind="write"))))
    assert "p99 of the writes' service times, ms" in reported
    assert "read, GiB/s" not in reported


def test_verdicts_stand_below_with_the_trials_that_have_them() -> None:
    trial = replace(trial_with(series_of([1, 1])), verdicts=())
    odd = Verdict.of("CACHED_READS", "out of memory")
    both = Verdict.of("SHORT_WINDOW", "short")
    case = case_of(
        make_plan(),
        replace(trial, verdicts=(both,)),
        replace(trial, index=1, verdicts=(both, odd), error="cached"),
    )
    reported = texts(drawn(case))
    assert reported[-1] == "verdicts: SHORT_WINDOW; CACHED_READS (invalid) of trial 2"
    assert "trial 2 (failed)" in reported


def test_a_trial_that_was_interrupted_has_not_failed() -> None:
    trial = trial_with(series_of([1, 1]))
    ended = TrialResult(index=1, error="interrupted after 1 of 2 trials", interrupted=True)
    reported = texts(drawn(case_of(make_plan(), trial, ended)))
    assert "trial 2 (interrupted), nothing to draw" in reported


def test_a_verdict_that_a_trial_has_twice_names_it_once_and_those_of_the_case_are_reported() -> (
    None
):
    busy = Verdict.of("BUSY_DEVICE", "others")
    trial = replace(trial_with(series_of([1, 1])), verdicts=())
    case = case_of(make_plan(), trial, replace(trial, index=1, verdicts=(busy, busy)))
    reported = "; ".join(["BUSY_DEVICE of trial 2", *(verdict.code for verdict in case.verdicts)])
    assert texts(drawn(case))[-1] == f"verdicts: {reported}"


@pytest.mark.parametrize("reads", [[], [0, 0]])
def test_a_trial_without_anything_to_draw_is_a_picture_all_the_same(reads: list[int]) -> None:
    picture = drawn(case_with(series_of(reads)))
    assert curves(picture) == ([] if not reads else curves(picture))
    nothing = "no whole second was measured: nothing to draw"
    assert (nothing in texts(picture)) == (not reads)


def test_a_trial_that_left_no_data_is_named() -> None:
    failed = replace(trial_of(make_plan()), measured=None, error="no ranks", verdicts=())
    assert "trial 1 (failed), nothing to draw" in texts(drawn(case_of(make_plan(), failed)))


def test_a_single_point_is_a_dot() -> None:
    picture = drawn(case_with(series_of([3], [2.0])))
    assert curves(picture) == []
    assert len(list(picture.iter(f"{SVG}circle"))) == 2


def test_cases_of_several_runs_stand_below_each_other() -> None:
    runs = [run_of(case_of(make_plan(np=np)), run_id=f"run-{np}") for np in (1, 2)]
    picture = ET.fromstring(picture_of(runs))
    reported = texts(picture)
    assert (
        reported.index("run run-1") < reported.index("chat-small-np2") < reported.index("run run-2")
    )


# --- nothing lies over another ---------------------------------------------------------------


@pytest.mark.thorough
@settings(deadline=None, max_examples=12)
@given(
    points=st.sampled_from([0, 1, 2, 59, 60, 61, 1000]),
    trials=st.sampled_from([1, 3, 20]),
    size=st.sampled_from([1, 7, 300, 10**5]),
    worst_ms=st.sampled_from([0.004, 1.0, 30.0, 9_000.0, 900_000.0]),
    ramp_s=st.sampled_from([0.0, 1.0, 500.0]),
)
def test_texts_never_overlap_and_all_of_it_is_inside(
    points: int, trials: int, size: int, worst_ms: float, ramp_s: float
) -> None:
    p99_ms = [0.003, *[worst_ms] * points][:points]
    series = series_of([size * (number % 3) for number in range(points)], [*p99_ms])
    case = case_of(make_plan(), *(trial_with(series, n, ramp_s=ramp_s) for n in range(trials)))
    picture = drawn(case, case)
    height = float(picture.get("height", 0))
    found = boxes(picture)
    for box in found:
        assert box.left >= 0, box
        assert box.right <= WIDTH_PX, box
        assert box.top >= 0, box
        assert box.bottom <= height, box
    overlapping = [(a, b) for a, b in itertools.combinations(found, 2) if a.overlaps(b)]
    assert overlapping == []
    for line in curves(picture):
        assert all(0 <= x <= WIDTH_PX and 0 <= y <= height for x, y in line)


# --- well-formed, whatever the names ---------------------------------------------------------


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_makes_well_formed_xml(text: str) -> None:
    made = element("svg", words("text", text, x=1.25), data_name=text)
    made.encode("utf-8")
    parsed = ET.fromstring(made)
    allowed = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
    assert (parsed[0].text or "") == re.sub("\r\n?", "\n", allowed)


def test_what_xml_has_no_room_for_is_replaced() -> None:
    assert words("text", "a\x00b\ud800<&") == "<text>a\ufffdb\ufffd&lt;&amp;</text>"


def test_a_name_with_signs_of_xml_is_drawn_as_it_is() -> None:
    case = case_of(make_plan(scenario="a<b>&\"c'"))
    assert texts(drawn(case))[0] == case.name


def test_the_picture_needs_nothing_from_elsewhere_and_knows_both_schemes() -> None:
    text = picture_of([run_of(case_of(make_plan(duration_s=3.0)))])
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"(?:href|src|url\(|@import)", text) == []
    assert re.findall(r"https?://[^\"' ]+", text) == ["http://www.w3.org/2000/svg"]


# --- scales ----------------------------------------------------------------------------------


@given(st.floats(1e-9, 1e12), st.integers(2, 12))
@example(highest=1.000000001, most=3)
@example(highest=1.000000000001, most=3)
@example(highest=1.0000000000001, most=3)
def test_a_scale_from_zero_ends_at_a_round_tick_above_the_highest(
    highest: float, most: int
) -> None:
    scale = scale_from_zero(highest, 100.0, 0.0, most)
    assert scale.ticks[0] == 0
    assert scale.ticks[-1] >= highest * (1 - 1e-9)
    assert 2 <= len(scale.ticks) <= most
    assert scale(0.0) == 100
    assert scale(highest) >= -1e-6
    step = float(tick_label(scale.ticks[1]).replace(",", ""))
    assert re.fullmatch(r"[125]0*", f"{step:.0e}".partition("e")[0])


def test_a_scale_of_nothing_has_a_height() -> None:
    assert scale_from_zero(0.0, 100.0, 0.0, 5).ticks[-1] >= 1


@given(st.floats(1e-4, 1e6), st.floats(1, 1e9))
def test_a_scale_of_times_holds_all_of_them(lowest: float, factor: float) -> None:
    highest = lowest * factor
    scale = scale_of_times(lowest, highest, 100.0, 0.0, 5)
    assert scale.logarithmic == (highest > 20 * lowest)
    for value in (lowest, highest):
        assert -1e-6 <= scale(value) <= 100 + 1e-6
    places = [scale(tick) for tick in scale.ticks]
    assert min(b - a for a, b in itertools.pairwise(sorted(places))) > 12


@given(st.floats(0.5, 1e5), st.floats(0, 60))
def test_a_scale_of_seconds_begins_with_the_ramp_and_ends_with_the_window(
    window_s: float, ramp_s: float
) -> None:
    scale = scale_of_span(ramp_s, window_s, 60.0, 800.0, 11)
    assert scale(-ramp_s) == pytest.approx(60)
    assert scale(window_s) == pytest.approx(800)
    assert scale.ticks[0] == 0
    assert scale.ticks[-1] <= window_s * (1 + 1e-6)
    assert len(scale.ticks) <= 11


# --- the command -----------------------------------------------------------------------------


def test_show_draws_a_picture_of_the_runs(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.canned()
    path = site.path / "run.svg"
    capsys.readouterr()
    assert main(["show", f"--picture={path}", str(site.run_file())]) == 0
    assert "GiB/s" in capsys.readouterr().out
    assert texts(ET.parse(path).getroot())[0] == "mixed-tiny-1b-np2"


def test_a_picture_that_can_t_be_written_is_an_error(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.canned()
    path = site.path / "taken.svg"
    path.mkdir()
    assert main(["show", f"--picture={path}", str(site.run_file())]) == 1
    assert capsys.readouterr().err == f"{path}: it can't be written: Is a directory\n"


def test_a_picture_in_no_directory_is_refused_before_anything_is_shown(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.canned()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["show", "--picture=absent/run.svg", str(site.run_file())])
    reported = capsys.readouterr()
    assert (end.value.code, reported.out) == (2, "")
    assert "'absent/run.svg' is in no directory that exists" in reported.err


def test_a_run_file_that_is_not_there_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "gone/run.json"]) == 1
    assert capsys.readouterr().err == (
        "gone/run.json: it can't be read as a run file: No such file or directory\n"
    )


def test_a_file_nested_too_deep_is_no_run_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text("[" * 100_000)
    assert main(["verify", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"{path}: it can't be read as a run file: ")


def test_without_a_sound_run_no_picture_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    path = tmp_path / "run.svg"
    assert main(["show", f"--picture={path}", str(tmp_path / "run.json")]) == 1
    assert f"{path}: it is not written" in capsys.readouterr().err
    assert not path.exists()


def test_only_svg_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["show", "--picture=run.png", "run.json"])
    assert end.value.code == 2
    assert "'run.png' must be the name of an .svg file" in capsys.readouterr().err
