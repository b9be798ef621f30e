from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.models import LayerGroup, ModelSpec, load_models

if TYPE_CHECKING:
    from pathlib import Path

GQA = ModelSpec(name="gqa", layers=2, kv_heads=6, head_dim=16, dtype="float16")
MLA = ModelSpec(name="mla", layers=3, kv_lora_rank=12, rope_dim=4, dtype="float32")
TABLE = 'layers = 2\nkv_heads = 6\nhead_dim = 16\ndtype = "float16"\n'


def loaded(tmp_path: Path, content: str) -> dict[str, ModelSpec]:
    path = tmp_path / "m.toml"
    path.write_text(content, encoding="utf-8")
    return load_models(str(path))


def test_models_of_a_file_are_read_by_name(tmp_path: Path) -> None:
    content = (
        f'[gqa]\n{TABLE}\n["mla"]\nlayers = 3\nkv_lora_rank = 12\nrope_dim = 4\ndtype = "float32"\n'
    )
    assert loaded(tmp_path, content) == {"gqa": GQA, "mla": MLA}


def test_model_of_a_file_may_say_everything_a_spec_can(tmp_path: Path) -> None:
    content = f'["my-1.5b"]\n{TABLE}q_heads = 12\nhidden = 192\nnote = "mine"\n'

    expected = replace(GQA, name="my-1.5b", q_heads=12, hidden=192, note="mine")
    assert loaded(tmp_path, content) == {"my-1.5b": expected}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "m.toml holds no model; it must have a table per model: [my-model]"),
        ("# none\n", "m.toml holds no model; it must have a table per model: [my-model]"),
        ("[gqa\n", "m.toml is not valid TOML: "),
        (f"[a]\n{TABLE}[a]\n{TABLE}", "m.toml is not valid TOML: "),
        (f"[tiny-1b]\n{TABLE}", "m.toml [tiny-1b] is the name of a shipped model; give yours"),
        (TABLE, "m.toml: layers is outside a table; put it below a [my-model] line"),
        (f"[[gqa]]\n{TABLE}", "m.toml: gqa is outside a table; put it below a"),
        (f"[gqa]\n{TABLE}Layers = 1\n", "m.toml [gqa] has an unknown key 'Layers'; known are "),
        (f'[gqa]\n{TABLE}name = "x"\n', "m.toml [gqa] has an unknown key 'name'; known are "),
        (f"[my-1.5b]\n{TABLE}", "m.toml [my-1] holds a table '5b'; quote a name that has"),
        (f"[gqa]\n{TABLE.replace('layers = 2', '')}", "m.toml [gqa] lacks layers; every model"),
        (f"[gqa]\n{TABLE.replace('dtype', '#')}", "m.toml [gqa] lacks dtype; every model must"),
        (f"[gqa]\n{TABLE.replace('kv_heads', '#')}", "m.toml: model gqa: lacks kv_heads; it"),
        (f"[gqa]\n{TABLE.replace('= 2', '= 2.0')}", "m.toml: model gqa: layers is 2.0; it"),
        ("[gqa]\n" + TABLE.replace("= 2", '= "2"'), "m.toml: model gqa: layers is '2'; it"),
        (f"[gqa]\n{TABLE.replace('= 2', '= 0')}", "m.toml: model gqa: layers is 0; it must be"),
        (
            f"[gqa]\n{TABLE.replace('float', 'fp')}",
            "m.toml: model gqa: dtype is 'fp16'; it must",
        ),
        (f'["a b"]\n{TABLE}', "m.toml: a model is named 'a b'; a name must be"),
    ],
)
def test_file_that_breaks_a_rule_is_refused_with_table_key_and_rule(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        loaded(tmp_path, content)

    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_unknown_key_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        loaded(tmp_path, f"[gqa]\n{TABLE}num_layers = 1\n")

    assert str(caught.value).endswith(
        "known are layers, dtype, kv_heads, head_dim, kv_lora_rank, rope_dim, q_heads, hidden,"
        " groups, note, source"
    )


GROUPS = """["hyb-1"]
layers = 3
dtype = "bfloat16"
[["hyb-1".groups]]
kind = "full"
layers = 1
kv_heads = 2
head_dim = 64
[["hyb-1".groups]]
kind = "sliding"
layers = 2
kv_heads = 1
head_dim = 32
window_tokens = 600
"""


def test_layers_that_keep_different_things_are_groups(tmp_path: Path) -> None:
    (model,) = loaded(tmp_path, GROUPS).values()
    assert model.layer_groups == (
        LayerGroup(kind="full", layers=1, kv_heads=2, head_dim=64),
        LayerGroup(kind="sliding", layers=2, kv_heads=1, head_dim=32, window_tokens=600),
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("window_tokens = 600", "", "[hyb-1] groups: sliding: lacks window_tokens; it must"),
        ('kind = "full"', 'kind = "all"', "[hyb-1] groups: kind is 'all'; it must name"),
        ('kind = "full"', "", "[hyb-1] groups lacks kind; every group must give kind and layers"),
        ("head_dim = 64", "width = 64", "[hyb-1] groups has an unknown key 'width'; known are"),
        ('[["hyb-1".groups]]', '["hyb-1".other]', "[hyb-1] holds a table 'other'; quote a name"),
        (
            'dtype = "bfloat16"',
            'dtype = "bfloat16"\nkv_heads = 1',
            ": model hyb-1: has kv_heads and",
        ),
    ],
)
def test_a_group_that_breaks_a_rule_is_refused_with_table_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        loaded(tmp_path, GROUPS.replace(old, new, 1))
    assert str(caught.value).startswith(f"{tmp_path}/m.toml")
    assert message in str(caught.value)


@pytest.mark.parametrize("groups", ["3", "[3]"])
def test_groups_that_are_no_tables_are_refused(tmp_path: Path, groups: str) -> None:
    with pytest.raises(OptionError, match=r"\[m\] groups .* must (be|hold)"):
        loaded(tmp_path, f'[m]\nlayers = 1\ndtype = "int8"\ngroups = {groups}\n')


def test_a_window_of_the_whole_model_is_told_to_be_a_group(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"\[gqa\] has sliding_window; layers that slide must"):
        loaded(tmp_path, f"[gqa]\n{TABLE}sliding_window = 128\n")


def test_absent_file_is_refused_with_the_systems_reason(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"--kv-model is .*absent, which can't be read: No such file or directory"
    ):
        load_models(str(tmp_path / "absent"))


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_bytes(b"[gqa]\xff")

    with pytest.raises(OptionError, match="is not valid TOML: 'utf-8' codec"):
        load_models(str(path))
