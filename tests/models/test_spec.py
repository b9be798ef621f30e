from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import (
    OptionError,
    ResultError,
    UnknownNameError,
)
from pytest_kvcache.models import DTYPE_BYTES, MODELS, LayerGroup, ModelSpec

GQA = ModelSpec(name="gqa", layers=2, kv_heads=6, head_dim=16, dtype="float16")
MLA = ModelSpec(name="mla", layers=3, kv_lora_rank=12, rope_dim=4, dtype="float32")
SIZES = st.integers(1, 200)


FULL = LayerGroup(kind="full", layers=2, kv_heads=6, head_dim=16)


def groups() -> st.SearchStrategy[LayerGroup]:
    """Of every kind and family."""
    windows = st.integers(1, 5000)
    heads = {"kv_heads": SIZES, "head_dim": SIZES, "v_head_dim": st.none() | SIZES}
    latent = {"kv_lora_rank": SIZES, "rope_dim": SIZES, "index_bytes": st.none() | SIZES}
    every = [
        st.builds(LayerGroup, kind=st.just("full"), layers=SIZES, **shape)
        for shape in (heads, latent)
    ]
    every += [
        st.builds(LayerGroup, kind=st.just(kind), layers=SIZES, window_tokens=windows, **heads)
        for kind in ("sliding", "chunked")
    ]
    every.append(
        st.builds(
            lambda layers, each, count, many, copied: LayerGroup(
                kind="state", layers=layers, state_bytes=each * count, state_heads=count,
                state_groups=many, group_state_bytes=copied,
            ), SIZES, SIZES, st.integers(1, 64), st.integers(1, 9), st.none() | SIZES,
        )
    )  # fmt: skip
    return st.one_of(every)


def specs() -> st.SearchStrategy[ModelSpec]:
    common: dict[str, st.SearchStrategy[Any]] = {
        "name": st.from_regex(r"[a-z][a-z0-9._+-]{0,9}", fullmatch=True),
        "layers": SIZES,
        "dtype": st.sampled_from(sorted(DTYPE_BYTES)),
        "hidden": st.none() | SIZES,
        "note": st.text(max_size=9),
    }
    grouped = st.builds(
        ModelSpec, groups=st.tuples(groups(), groups()), **common | {"layers": st.just(200)}
    )
    heads = st.builds(ModelSpec, kv_heads=SIZES, head_dim=SIZES, **common)
    latent = st.builds(ModelSpec, kv_lora_rank=SIZES, rope_dim=SIZES, **common)
    return heads | latent | grouped


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


def test_shipped_models_can_not_be_changed() -> None:
    with pytest.raises(TypeError):
        MODELS["tiny-1b"] = GQA  # type: ignore[index]  # that it can't is the claim
    with pytest.raises(FrozenInstanceError):
        MODELS["tiny-1b"].layers = 1  # type: ignore[misc]  # likewise


@pytest.mark.parametrize(
    ("dtype", "element_bytes"),
    [
        ("float32", 4),
        ("float16", 2),
        ("bfloat16", 2),
        ("float8", 1),
        ("fp8", 1),
        ("fp8_e4m3", 1),
        ("fp8_e5m2", 1),
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
    whole = model.group_bytes(block_tokens, 1)
    try:
        parts = model.group_bytes(block_tokens, tensor_parallel)
    except OptionError:  # heads would have to be cut
        return
    assert model.block_bytes(block_tokens, tensor_parallel) == sum(parts)
    for group, part, of in zip(model.layer_groups, parts, whole, strict=True):
        shards = group.shards(tensor_parallel, model.name)
        many = group.state_groups or 0
        copies = max(shards, -(-many // shards) * shards) - many if many else 0
        copied = (group.group_state_bytes or 0) * group.layers * copies
        assert part * shards == of + copied
        assert part % group.layers == 0
    if model.keeps_all:
        shard_bytes = model.shard_bytes_per_token(tensor_parallel)
        assert model.block_bytes(block_tokens, tensor_parallel) == block_tokens * shard_bytes


@given(specs(), st.integers(0, 20_000), st.integers(0, 5_000))
def test_a_context_grows_with_its_tokens_and_beyond_the_windows_by_the_late_ones_alone(
    model: ModelSpec, tokens: int, more: int
) -> None:
    short, long = model.context_bytes(tokens), model.context_bytes(tokens + more)
    assert short <= long
    assert long - short <= more * model.bytes_per_token + (model.state_bytes if not tokens else 0)
    windows = [group.window_tokens or 0 for group in model.layer_groups]
    if tokens >= max(windows) and tokens:
        assert long - short == more * model.bytes_per_late_token


# Validity


def test_absent_head_dim_is_hidden_over_query_heads() -> None:
    model = ModelSpec(name="m", layers=1, kv_heads=8, hidden=4096, q_heads=32, dtype="float16")

    assert model.head_dim == 128


def test_explicit_head_dim_stands() -> None:
    assert MODELS["qwen3-32b"].head_dim == 128  # hidden / q_heads is 80
    assert MODELS["gpt-oss-20b"].layer_groups[0].head_dim == 64  # hidden / q_heads is 45


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
        ({"source": 3}, "model gqa: source is 3; it must be a string"),
        ({"groups": (FULL,)}, "model gqa: has kv_heads and groups; it must have one of them"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "ring"}, "groups: kind is 'ring'; it must name a known kind of layers: chunked"),
        ({"layers": None}, "groups: full: lacks layers; it must be a whole number"),
        ({"layers": 0}, "groups: full: layers is 0; it must be at least 1"),
        ({"head_dim": 1.5}, "groups: full: head_dim is 1.5; it must be a whole number"),
        ({"head_dim": None}, "groups: full: lacks head_dim; it must have kv_heads and head_dim"),
        ({"kv_lora_rank": 4}, "groups: full: has kv_heads; it must have kv_lora_rank, rope_dim"),
        ({"window_tokens": 4}, "groups: full: has window_tokens; it must have kv_heads, head_dim"),
        ({"kind": "sliding"}, "groups: sliding: lacks window_tokens; it must have kv_heads and"),
        ({"kind": "state"}, "groups: state: has kv_heads; it must have state_bytes, state_heads"),
    ],
)
def test_a_group_that_breaks_a_rule_does_not_exist(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        replace(FULL, **changes)
    assert str(caught.value).startswith(message)


def test_a_state_that_its_heads_do_not_divide_does_not_exist() -> None:
    with pytest.raises(OptionError, match="state_bytes is 10; it must be a multiple of"):
        LayerGroup(kind="state", layers=1, state_bytes=10, state_heads=3)


def test_a_group_has_no_more_layers_than_the_model() -> None:
    with pytest.raises(OptionError, match="model m: layers is 1; a group must not have more"):
        ModelSpec(name="m", layers=1, dtype="int8", groups=(FULL,))


def test_the_stored_type_changes_kv_and_leaves_states_and_indexers_alone() -> None:
    assert MODELS["llama3.1-8b"].with_kv_dtype("fp8").bytes_per_token == 65_536
    assert MODELS["llama3.1-8b"].with_kv_dtype("auto") is MODELS["llama3.1-8b"]
    assert MODELS["llama3.1-8b"].with_kv_dtype(None) is MODELS["llama3.1-8b"]
    assert MODELS["deepseek-v3.2"].with_kv_dtype("fp8").bytes_per_token == 61 * (576 + 132)
    hybrid = MODELS["qwen3-next-80b-a3b"]
    assert hybrid.with_kv_dtype("fp8").state_bytes == hybrid.state_bytes
    assert hybrid.with_kv_dtype("fp8").bytes_per_token * 2 == hybrid.bytes_per_token


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
        "bfloat16, float16, float32, float8, fp8, fp8_e4m3, fp8_e5m2, int8"
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


@pytest.mark.parametrize("groups", [None, 3, [3], [{"kind": "full"}]])
def test_a_record_whose_groups_are_none_is_refused(groups: object) -> None:
    with pytest.raises(ResultError, match=r"group"):
        ModelSpec.from_json({**MODELS["gpt-oss-20b"].to_json(), "groups": groups})


# Without windows


def test_without_windows_every_layer_keeps_every_token_in_one_object() -> None:
    model = MODELS["gpt-oss-120b"].without_windows()
    assert model.keeps_all
    assert model.name == "gpt-oss-120b"
    assert model.bytes_per_token == model.bytes_per_late_token == 73_728
    assert GQA.without_windows() is GQA


@pytest.mark.parametrize("name", ["qwen3-next-80b-a3b", "mimo-v2-flash"])
def test_layers_without_a_common_shape_have_no_common_size(name: str) -> None:
    with pytest.raises(OptionError, match=f"model {name}: its layers .* keep what has no common"):
        MODELS[name].without_windows()
