"""What the storage sees of each scenario is what its documentation states."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.workloads.scenarios import SYNTHETIC
from tests.leftovers import leaving_nothing
from tests.site import output

if TYPE_CHECKING:
    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.lengthy]

DOCS = Path(__file__).parents[1] / "docs"
# A 64th of everything: as many blocks as with 256 tokens each, of a page.
BLOCK_BYTES = 4_096
MODEL = """
[tiny]
layers = 1
kv_heads = 1
head_dim = 512
dtype = "int8"
"""
STATED = (
    "--kv-block-tokens=4", "--kv-context-scale=0.015625", "--kv-num-users=60",
    "--kv-duration=6", "--kv-ramp=5", "--kv-storage-capacity-gb=512MiB",
    "--kv-backend=file", "--kv-allow-invalid",
    "--kv-metrics=requests.per_s", f"--kv-scenario={','.join(SYNTHETIC)}", "--kv-np=1",
)  # fmt: skip


def seen(case: dict[str, Any]) -> dict[str, float]:
    """Of one request on average, as counted on the storage and at the cache."""
    (trial,) = case["trials"]
    requests, cache = trial["requests"]["completed_in_window"], trial["cache"]
    return {
        "prompt_tokens": trial["tokens"]["prompt"] / requests * 64,
        "reuse_ratio": cache["hit_ratio"],
        "read_blocks": trial["read"]["bytes"] / BLOCK_BYTES / requests,
        "beside_blocks": cache["beside_hit_blocks"] / trial["request"]["count"],
        "written_blocks": trial["write"]["bytes"] / BLOCK_BYTES / requests,
    }


# Of what is stated. Some 20 of a window's requests begin a dialogue: these decide on what is
# written, and on what is not found.
TOLERANCE = {
    "prompt_tokens": 0.15, "reuse_ratio": 0.03, "read_blocks": 0.15, "beside_blocks": 0.1,
    "written_blocks": 0.4,
}  # fmt: skip


def test_the_storage_sees_what_the_scenarios_state(real_site: Site, tmp_path: Path) -> None:
    model = tmp_path / "tiny.toml"
    model.write_text(MODEL)
    with leaving_nothing(real_site):
        result = real_site.real(*STATED, f"--kv-model={model}")
    assert result.ret == pytest.ExitCode.OK, output(result)
    page = runpy.run_path(str(DOCS / "scenarios.py"))
    cases = {case["scenario"]: case for case in real_site.run()["cases"]}
    assert set(cases) == set(SYNTHETIC)
    wrong = []
    for scenario, case in cases.items():
        stated = page["statistics"](page["context_of"](scenario), page["TURNS"])
        for name, value in seen(case).items():
            expected = pytest.approx(getattr(stated, name), rel=TOLERANCE[name])
            if value != expected:
                wrong.append(f"{scenario}: {name} is {value}, stated are {expected}")
        assert case["trials"][0]["cache"]["evictions"] == 0
    assert wrong == []
