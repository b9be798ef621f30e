from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import (
    OptionError,
    ResultError,
    UnavailableError,
    UnknownNameError,
)
from pytest_kvcache.models import DTYPE_BYTES, MODELS, ModelSpec, load_models

if TYPE_CHECKING:
    from pathlib import Path

GQA = ModelSpec(name="gqa", layers=2, kv_heads=6, head_dim=16, dtype="float16")
MLA = ModelSpec(name="mla", layers=3, kv_lora_rank=12, rope_dim=4, dtype="float32")
SIZES = st.integers(1, 200)


def specs() -> st.SearchStrategy[ModelSpec]:
    common: dict[str, st.SearchStrategy[Any]] = {
        "name": st.from_regex(r"[a-z][a-z0-9._+-]{0,9}", fullmatch=True),
        "layers": SIZES,
        "dtype": st.sampled_from(sorted(DTYPE_BYTES)),
        "hidden": st.none() | SIZES,
        "note": st.text(max_size=9),
    }
    heads = st.builds(ModelSpec, kv_heads=SIZES, head_dim=SIZES, **common)
    latent = st.builds(ModelSpec, kv_lora_rank=SIZES, rope_dim=SIZES, **common)
    return heads | latent


# Sizes


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("tiny-1b", 24_576),
        ("mistral-7b", 131_072),
        ("llama2-7b", 524_288),
        ("llama3.1-8b", 131_072),
        ("llama3.1-70b-instruct", 327_680),
        ("deepseek-v3", 70_272),
        ("qwen3-32b", 262_144),
        ("gpt-oss-120b", 73_728),
        ("gpt-oss-20b", 49_152),
    ],
)
def test_token_of_each_shipped_model_has_its_size(name: str, bytes_per_token: int) -> None:
    assert MODELS[name].bytes_per_token == bytes_per_token


def test_nine_models_are_shipped_under_their_own_names() -> None:
    assert len(MODELS) == 9
    assert all(model.name == name for name, model in MODELS.items())


def test_shipped_models_can_not_be_changed() -> None:
    with pytest.raises(TypeError):
        MODELS["tiny-1b"] = GQA  # type: ignore[index]  # that it can't is the claim
    with pytest.raises(FrozenInstanceError):
        MODELS["tiny-1b"].layers = 1  # type: ignore[misc]  # likewise


@pytest.mark.parametrize("name", ["mistral-7b", "gpt-oss-20b", "gpt-oss-120b"])
def test_model_with_sliding_windows_says_that_it_is_an_upper_bound(name: str) -> None:
    assert MODELS[name].note.startswith("upper bound")


@pytest.mark.parametrize(
    ("dtype", "element_bytes"),
    [
        ("float32", 4),
        ("float16", 2),
        ("bfloat16", 2),
        ("float8", 1),
        ("fp8", 1),
        ("int8", 1),
    ],
)
def test_size_follows_the_dtype(dtype: str, element_bytes: int) -> None:
    assert replace(GQA, dtype=dtype).bytes_per_token == 2 * 6 * 16 * 2 * element_bytes


def test_latent_is_stored_once_and_not_as_key_and_value() -> None:
    assert MLA.bytes_per_token == 3 * (12 + 4) * 4


@pytest.mark.parametrize(("tensor_parallel", "shards"), [(1, 1), (2, 2), (3, 3), (6, 6), (8, 6)])
def test_heads_are_sharded_until_each_shard_has_one(tensor_parallel: int, shards: int) -> None:
    assert GQA.shard_bytes_per_token(tensor_parallel) == GQA.bytes_per_token // shards


@pytest.mark.parametrize("tensor_parallel", [1, 2, 7, 64])
def test_latent_is_replicated_not_sharded(tensor_parallel: int) -> None:
    assert MLA.shard_bytes_per_token(tensor_parallel) == MLA.bytes_per_token


def test_shards_that_would_cut_a_head_are_refused() -> None:
    with pytest.raises(OptionError) as caught:
        GQA.shard_bytes_per_token(4)

    assert str(caught.value) == (
        "--kv-tensor-parallel is 4; it must divide the 6 KV heads of gqa (or exceed them): "
        "1, 2, 3, 6"
    )


@pytest.mark.parametrize("model", [GQA, MLA])
def test_less_than_one_shard_is_refused(model: ModelSpec) -> None:
    with pytest.raises(OptionError, match="--kv-tensor-parallel is 0; it must be at least 1"):
        model.shard_bytes_per_token(0)


def test_block_holds_its_tokens_of_one_shard() -> None:
    assert MODELS["llama3.1-8b"].block_bytes(256, 1) == 32 << 20
    assert MODELS["llama3.1-8b"].block_bytes(256, 8) == 4 << 20
    assert MODELS["deepseek-v3"].block_bytes(256, 8) == 256 * 70_272


def test_block_without_tokens_is_refused() -> None:
    with pytest.raises(OptionError, match="--kv-block-tokens is 0; it must be at least 1"):
        GQA.block_bytes(0, 1)


@given(specs(), st.integers(1, 300), st.integers(1, 512))
def test_shards_make_up_the_whole_and_layers_make_up_a_block(
    model: ModelSpec, tensor_parallel: int, block_tokens: int
) -> None:
    shards = min(tensor_parallel, model.kv_heads or 1)
    if model.kv_heads is not None and model.kv_heads % shards:
        return

    shard_bytes = model.shard_bytes_per_token(tensor_parallel)

    assert shard_bytes * shards == model.bytes_per_token
    assert model.block_bytes(block_tokens, tensor_parallel) == block_tokens * shard_bytes
    assert model.block_bytes(block_tokens, tensor_parallel) % model.layers == 0


# Validity


def test_absent_head_dim_is_hidden_over_query_heads() -> None:
    model = ModelSpec(name="m", layers=1, kv_heads=8, hidden=4096, q_heads=32, dtype="float16")

    assert model.head_dim == 128


def test_explicit_head_dim_stands() -> None:
    assert MODELS["qwen3-32b"].head_dim == 128  # hidden / q_heads is 80
    assert MODELS["gpt-oss-20b"].head_dim == 64  # hidden / q_heads is 45


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "model gqa: layers is 0; it must be at least 1"),
        ({"kv_heads": -1}, "model gqa: kv_heads is -1; it must be at least 1"),
        ({"head_dim": 0}, "model gqa: head_dim is 0; it must be at least 1"),
        ({"q_heads": 0}, "model gqa: q_heads is 0; it must be at least 1"),
        ({"hidden": 0}, "model gqa: hidden is 0; it must be at least 1"),
        ({"layers": True}, "model gqa: layers is True; it must be a whole number"),
        ({"layers": None}, "model gqa: layers is None; it must be a whole number"),
        ({"head_dim": 64.0}, "model gqa: head_dim is 64.0; it must be a whole number"),
        ({"note": 3}, "model gqa: note is 3; it must be a string"),
        ({"rope_dim": 4}, "model gqa: has kv_heads and rope_dim; it must have kv_heads and"),
        ({"kv_lora_rank": 4}, "model gqa: has kv_heads and kv_lora_rank; it must have"),
        (
            {"kv_heads": None},
            "model gqa: lacks kv_heads; it must have kv_heads and head_dim, or",
        ),
        ({"head_dim": None}, "model gqa: lacks head_dim, and hidden None over q_heads None"),
        ({"head_dim": None, "hidden": 100, "q_heads": 12}, "model gqa: lacks head_dim, and"),
        ({"head_dim": None, "hidden": 96}, "model gqa: lacks head_dim, and hidden 96 over"),
        ({"head_dim": None, "q_heads": 6}, "model gqa: lacks head_dim, and hidden None over"),
        (
            {"q_heads": 8},
            "model gqa: q_heads is 8; it must be a multiple of kv_heads, which is 6",
        ),
        ({"name": ""}, "a model is named ''; a name must be letters"),
        ({"name": "a/b"}, "a model is named 'a/b'; a name must be letters"),
        ({"name": "a,b"}, "a model is named 'a,b'; a name must be letters"),
        ({"name": 3}, "a model is named 3; a name must be letters"),
    ],
)
def test_model_that_breaks_a_rule_does_not_exist(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        replace(GQA, **changes)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("lacking", ["kv_lora_rank", "rope_dim"])
def test_half_a_latent_is_refused(lacking: str) -> None:
    changes: dict[str, Any] = {lacking: None}

    with pytest.raises(OptionError, match=f"model mla: lacks {lacking}; it must have"):
        replace(MLA, **changes)


@pytest.mark.parametrize("dtype", ["fp16", "", "Float16", 2, None, []])
def test_unknown_dtype_is_refused_with_the_known_ones(dtype: Any) -> None:
    with pytest.raises(UnknownNameError) as caught:
        replace(GQA, dtype=dtype)

    meant = " (did you mean 'float16' or 'bfloat16'?)" if dtype == "Float16" else ""
    assert str(caught.value) == (
        f"model gqa: dtype is {dtype!r}{meant}; it must name a known dtype: "
        "bfloat16, float16, float32, float8, fp8, int8"
    )


# JSON


@given(specs())
def test_model_survives_json(model: ModelSpec) -> None:
    assert ModelSpec.from_json(json.loads(json.dumps(model.to_json()))) == model


@pytest.mark.parametrize("name", sorted(MODELS))
def test_shipped_model_survives_json(name: str) -> None:
    assert ModelSpec.from_json(json.loads(json.dumps(MODELS[name].to_json()))) == MODELS[name]


def test_derived_sizes_are_not_stored() -> None:
    assert not any("bytes" in key for key in GQA.to_json())


def test_model_record_with_absent_or_unknown_keys_is_refused() -> None:
    record = GQA.to_json()
    del record["layers"]
    record["color"] = "red"

    with pytest.raises(ResultError, match=r"model record 'gqa' .*absent or unknown: color, layers"):
        ModelSpec.from_json(record)


# TOML


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
        "known are layers, dtype, kv_heads, head_dim, kv_lora_rank, rope_dim, q_heads, hidden, note"
    )


def test_sliding_window_is_not_available(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        loaded(tmp_path, f"[gqa]\n{TABLE}sliding_window = 128\n")

    assert str(caught.value).startswith(
        f"{tmp_path}/m.toml [gqa] sliding_window is 128; this is not available yet: sizes are "
        "the upper bound"
    )


def test_absent_file_is_refused_with_the_systems_reason(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="absent can't be read: No such file or directory"):
        load_models(str(tmp_path / "absent"))


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_bytes(b"[gqa]\xff")

    with pytest.raises(OptionError, match="is not valid TOML: 'utf-8' codec"):
        load_models(str(path))
