"""The benchmark's rules for closed submissions: what ``--kv-closed`` leaves to the user. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.table import OPTIONS

if TYPE_CHECKING:
    from pytest_kvcache.options.options import Options

CLOSED_PAUSE_S = 90.0
"""Between two of the workloads (Rules.md 6.3.2.1, v3.0)."""
CLOSED_SCENARIOS = ("mlperf-1", "mlperf-2", "mlperf-3")

# Where results and blocks go, and where and how ranks are started (Rules.md 6.6.1, v3.0); beside
# them what starts nothing, and which of the three workloads run.
_LEFT_TO_THE_USER = frozenset(
    {spec.name for spec in OPTIONS if spec.distributed}
    | {"cache_dir", "results_dir", "container_engine", "image", "python", "ssh"}
    | {"closed", "scenario", "datasize", "dry_run"}
)


def check_closed(options: Options) -> None:
    """Raise OptionError that names every option which closed rules fix, ini values included."""
    forbidden = [
        spec.ini if options.origins[spec.name] == "ini" else spec.flag
        for spec in OPTIONS
        if options.given(spec.name) and spec.name not in _LEFT_TO_THE_USER
    ]
    if forbidden:
        these = f"{', '.join(forbidden)} {'is' if len(forbidden) == 1 else 'are'} given"
        empty = [name for name in forbidden if not name.startswith("--")]
        how = f" (of an ini file with -o {empty[0]}= on the command line)" if empty else ""
        raise OptionError(
            f"{these} together with --kv-closed, which leaves nothing to choose but the cache and"
            f" results directories and where ranks run, so leave it out{how}"
        )
    if not options.given("scenario"):
        return
    for name in options.scenario:
        if name not in CLOSED_SCENARIOS:
            raise OptionError(
                f"--kv-scenario names {name} together with --kv-closed, which runs the closed"
                f" options of the MLPerf Storage benchmark; name some of"
                f" {', '.join(CLOSED_SCENARIOS)}, or leave one of the two out"
            )
