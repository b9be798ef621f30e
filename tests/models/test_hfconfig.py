"""Configurations as they are published, cut down to what a cache depends on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError
from pytest_kvcache.models import MODELS, LayerGroup, ModelSpec, is_config, load_config
from pytest_kvcache.models.hftypes import READERS

if TYPE_CHECKING:
    from pathlib import Path

BF16 = {"torch_dtype": "bfloat16"}
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, **BF16,
}  # fmt: skip
QWEN2 = {**LLAMA, "model_type": "qwen2", "sliding_window": 4096, "max_window_layers": 28}
DEEPSEEK = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168,
    "num_attention_heads": 128, "num_key_value_heads": 128, "kv_lora_rank": 512,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "num_nextn_predict_layers": 1, **BF16,
}  # fmt: skip
GEMMA3_4B = {  # as google/gemma-3-4b-it has it: no heads at all
    "model_type": "gemma3", **BF16,
    "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 34, "hidden_size": 2560,
                    "sliding_window": 1024},
    "vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 27},
}  # fmt: skip
QWEN3_NEXT = {
    "model_type": "qwen3_next", "num_hidden_layers": 48, "hidden_size": 2048,
    "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
    "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128,
    "use_sliding_window": False, **BF16,
}  # fmt: skip
LLAMA4: dict[str, Any] = {
    "model_type": "llama4",
    "text_config": {**LLAMA, "model_type": "llama4_text", "num_hidden_layers": 48, "head_dim": 128,
                    "attention_chunk_size": 8192, "no_rope_layers": []},
}  # fmt: skip
MISTRAL = {
    **LLAMA, "model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768,
}  # fmt: skip
NEMOTRON = {
    "model_type": "nemotron_h", "hybrid_override_pattern": "MEM*", "num_key_value_heads": 2,
    "head_dim": 128, "mamba_num_heads": 64, "mamba_head_dim": 64, "n_groups": 8,
    "ssm_state_size": 128, "conv_kernel": 4, "mamba_ssm_cache_dtype": "float32", **BF16,
}  # fmt: skip
JAMBA = {
    **LLAMA, "model_type": "jamba", "attn_layer_period": 8, "attn_layer_offset": 4,
    "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2,
}  # fmt: skip
GRANITE = {
    **LLAMA, "model_type": "granitemoehybrid", "num_hidden_layers": 4, "mamba_n_heads": 128,
    "mamba_n_groups": 1, "mamba_d_state": 128, "mamba_d_conv": 4, "mamba_expand": 2,
    "layer_types": ["mamba", "mamba", "mamba", "attention"],
}  # fmt: skip
KIMI_LINEAR = {
    **DEEPSEEK, "model_type": "kimi_linear", "num_hidden_layers": 4,
    "linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1, 2, 3], "num_heads": 32,
                           "head_dim": 128, "short_conv_kernel_size": 4},
}  # fmt: skip
KINDS = {"full": 0, "sliding": 1, "chunked": 2, "state": 3}


def read(tmp_path: Path, config: object, kv_dtype: str | None = None) -> ModelSpec:
    directory = tmp_path / "my-model"
    directory.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (directory / "config.json").write_text(text, encoding="utf-8")
    return load_config(str(directory), kv_dtype)


def layers_of(model: ModelSpec) -> dict[str, int]:
    return {group.kind: group.layers for group in model.layer_groups}


def window_of(model: ModelSpec) -> int | None:
    return max((group.window_tokens or 0 for group in model.layer_groups), default=0) or None


@pytest.mark.parametrize(
    ("config", "bytes_per_token", "layers", "window"),
    [
        (LLAMA, 131_072, {"full": 32}, None),
        ({**LLAMA, "num_key_value_heads": None}, 524_288, {"full": 32}, None),
        ({k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}, 524_288, {"full": 32},
         None),
        ({**LLAMA, "head_dim": 64}, 65_536, {"full": 32}, None),
        ({**LLAMA, "head_dim": None}, 131_072, {"full": 32}, None),
        (DEEPSEEK, 70_272, {"full": 61}, None),
        ({**DEEPSEEK, "model_type": "kimi_k2"}, 70_272, {"full": 61}, None),
        ({**DEEPSEEK, "model_type": "deepseek_v32", "index_head_dim": 128}, 78_324, {"full": 61},
         None),
        ({"model_type": "kimi_k25", "dtype": "bfloat16", "text_config": DEEPSEEK}, 70_272,
         {"full": 61}, None),
        (QWEN2, 131_072, {"full": 32}, None),
        ({**QWEN2, "use_sliding_window": False}, 131_072, {"full": 32}, None),
        ({**QWEN2, "use_sliding_window": True}, 131_072, {"full": 28, "sliding": 4}, 4096),
        ({**QWEN2, "model_type": "qwen3_moe", "use_sliding_window": True}, 131_072,
         {"sliding": 32}, 4096),
        (MISTRAL, 131_072, {"sliding": 32}, 4096),
        ({**MISTRAL, "sliding_window": None}, 131_072, {"full": 32}, None),
        ({k: v for k, v in MISTRAL.items() if k != "sliding_window"}, 131_072, {"sliding": 32},
         4096),
        ({**LLAMA, "model_type": "phi3", "sliding_window": 262_144,
          "max_position_embeddings": 131_072}, 131_072, {"full": 32}, None),
        ({**LLAMA, "model_type": "phi3", "sliding_window": 2047,
          "max_position_embeddings": 4096}, 131_072, {"sliding": 32}, 2047),
        (GEMMA3_4B, 139_264, {"full": 5, "sliding": 29}, 1024),
        ({**LLAMA, "model_type": "gemma2", "head_dim": 256, "sliding_window": 4096}, 262_144,
         {"full": 16, "sliding": 16}, 4096),
        ({**LLAMA, "model_type": "cohere2", "sliding_window": 4096, "sliding_window_pattern": 4},
         131_072, {"full": 8, "sliding": 24}, 4096),
        ({**LLAMA, "model_type": "exaone4", "sliding_window": 4096,
          "sliding_window_pattern": "LLLG"}, 131_072, {"full": 8, "sliding": 24}, 4096),
        ({**LLAMA, "model_type": "gpt_oss", "head_dim": 64, "sliding_window": 128,
          "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
         8_192, {"full": 2, "sliding": 2}, 128),
        (LLAMA4, 196_608, {"full": 12, "chunked": 36}, 8192),
        ({**LLAMA4, "text_config": {**LLAMA4["text_config"], "no_rope_layers": [1, 0] * 24}},
         196_608, {"full": 24, "chunked": 24}, 8192),
        ({**LLAMA4, "text_config": {**LLAMA4["text_config"], "attention_chunk_size": None}},
         196_608, {"full": 48}, None),
        ({"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, **BF16}, 36_864,
         {"full": 12}, None),
        ({"model_type": "falcon", "num_hidden_layers": 32, "num_attention_heads": 71,
          "hidden_size": 4544, "multi_query": True, **BF16}, 8_192, {"full": 32}, None),
        ({"model_type": "falcon", "num_hidden_layers": 60, "num_attention_heads": 128,
          "hidden_size": 8192, "new_decoder_architecture": True, "num_kv_heads": 8, **BF16},
         122_880, {"full": 60}, None),
        ({"model_type": "chatglm", "num_layers": 28, "num_attention_heads": 32,
          "hidden_size": 4096, "multi_query_attention": True, "multi_query_group_num": 2,
          "kv_channels": 128, "torch_dtype": "float16"}, 28_672, {"full": 28}, None),
        ({"model_type": "dbrx", "n_layers": 40, "n_heads": 48, "d_model": 6144,
          "attn_config": {"kv_n_heads": 8}, **BF16}, 163_840, {"full": 40}, None),
        ({"model_type": "longcat_flash", "num_layers": 28, "kv_lora_rank": 512,
          "qk_rope_head_dim": 64, **BF16}, 64_512, {"full": 56}, None),
    ],
)  # fmt: skip
def test_attention_is_read_as_transformers_and_engines_have_it(
    tmp_path: Path, config: dict[str, Any], bytes_per_token: int, layers: dict[str, int],
    window: int | None,
) -> None:  # fmt: skip
    model = read(tmp_path, config)
    assert model.bytes_per_token == bytes_per_token
    assert layers_of(model) == layers
    assert window_of(model) == window
    assert model.state_bytes == 0


@pytest.mark.parametrize(
    ("config", "layers", "state_bytes"),
    [
        # Of a layer: 32·128·128 elements, and 3 of (2·16·128 + 32·128) inputs.
        (QWEN3_NEXT, {"full": 12, "state": 36}, 36 * 2 * (524_288 + 3 * 8192)),
        ({**QWEN3_NEXT, "mamba_ssm_dtype": "float32"}, {"full": 12, "state": 36},
         36 * (4 * 524_288 + 2 * 3 * 8192)),
        ({**QWEN3_NEXT, "layer_types": ["linear_attention"] * 47 + ["full_attention"]},
         {"full": 1, "state": 47}, 47 * 2 * (524_288 + 3 * 8192)),
        # 64·64·128 elements in float32, 3 of (64·64 + 2·8·128) inputs.
        (NEMOTRON, {"full": 1, "state": 2}, 2 * (4 * 524_288 + 2 * 3 * 6144)),
        ({**{k: v for k, v in NEMOTRON.items() if k != "hybrid_override_pattern"},
          "layers_block_type": ["mamba", "moe", "mamba", "attention"]},
         {"full": 1, "state": 2}, 2 * (4 * 524_288 + 2 * 3 * 6144)),
        # 8192·16 elements, 3 of 8192 inputs.
        (JAMBA, {"full": 4, "state": 28}, 28 * 2 * (131_072 + 3 * 8192)),
        # 8192·128 elements, 3 of (8192 + 2·128) inputs.
        (GRANITE, {"full": 1, "state": 3}, 3 * 2 * (1_048_576 + 3 * 8448)),
        ({**GRANITE, "model_type": "falcon_h1", "layer_types": None, "mamba_d_ssm": 8192},
         {"full": 4, "state": 4}, 4 * 2 * (1_048_576 + 3 * 8448)),
        ({**GRANITE, "model_type": "bamba", "attn_layer_indices": [1]},
         {"full": 1, "state": 3}, 3 * 2 * (1_048_576 + 3 * 8448)),
        ({**LLAMA, "model_type": "minimax_text_01", "num_hidden_layers": 8, "head_dim": 128,
          "attn_type_list": [0] * 7 + [1]}, {"full": 1, "state": 7}, 7 * 2 * 32 * 128 * 128),
        # 32·128·128 elements in float32, 3 of 3·32·128 inputs.
        (KIMI_LINEAR, {"full": 1, "state": 3}, 3 * (4 * 524_288 + 2 * 3 * 12_288)),
        ({"model_type": "mamba", "num_hidden_layers": 64, "hidden_size": 2560, "state_size": 16,
          "expand": 2, "conv_kernel": 4, "torch_dtype": "float32"}, {"state": 64},
         64 * 4 * (5120 * 16 + 3 * 5120)),
        ({"model_type": "mamba2", "num_hidden_layers": 64, "num_heads": 128, "head_dim": 64,
          "n_groups": 8, "state_size": 128, "conv_kernel": 4, **BF16}, {"state": 64},
         64 * 2 * (1_048_576 + 3 * (8192 + 2048))),
        ({**LLAMA, "model_type": "lfm2", "num_hidden_layers": 3, "conv_L_cache": 3,
          "layer_types": ["conv", "conv", "full_attention"]}, {"full": 1, "state": 2},
         2 * 2 * 2 * 4096),
    ],
)  # fmt: skip
def test_states_have_the_sizes_that_engines_allocate(
    tmp_path: Path, config: dict[str, Any], layers: dict[str, int], state_bytes: int
) -> None:
    model = read(tmp_path, config)
    assert layers_of(model) == layers
    assert model.state_bytes == state_bytes


def test_a_state_is_cut_by_its_heads_and_its_groups_are_copied_where_they_are_fewer(
    tmp_path: Path,
) -> None:
    model = read(tmp_path, GRANITE)  # 128 heads, one group, 3 layers with a state
    _full, whole = model.group_bytes(256, 1)
    _full, half = model.group_bytes(256, 2)
    group = 3 * 2 * 3 * 2 * 128  # of all layers: 3 inputs of 2·128 elements
    assert whole == model.state_bytes == 2 * half - group


def test_values_may_be_narrower_than_keys(tmp_path: Path) -> None:
    model = read(tmp_path, {
        "model_type": "mimo_v2_flash", "num_hidden_layers": 3, "num_key_value_heads": 4,
        "head_dim": 192, "v_head_dim": 128, "swa_num_key_value_heads": 8, "swa_head_dim": 192,
        "swa_v_head_dim": 128, "sliding_window": 128, "hybrid_layer_pattern": [0, 1, 1], **BF16,
    })  # fmt: skip
    assert model.layer_groups == (
        LayerGroup(kind="full", layers=1, kv_heads=4, head_dim=192, v_head_dim=128),
        LayerGroup(
            kind="sliding", layers=2, kv_heads=8, head_dim=192, v_head_dim=128, window_tokens=128
        ),
    )


# -- the stored type --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": None, "dtype": "float32"}, "float32"),
        ({"torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ({"quantization_config": {"quant_method": "fp8"}}, "bfloat16"),
        ({"quantization_config": {"kv_cache_scheme": None}}, "bfloat16"),
        ({"quantization_config": {"kv_cache_scheme": {"type": "float", "num_bits": 8}}}, "fp8"),
        ({"quantization_config": {"kv_cache_scheme": {"type": "int", "num_bits": 8}}}, "int8"),
        ({"quantization_config": {"kv_cache_scheme": "FP8"}}, "fp8"),
        ({"quantization_config": {"quantization": {"kv_cache_quant_algo": "FP8"}}}, "fp8"),
        ({"torch_dtype": None, "quantization_config": {"quant_method": "mxfp4"}}, "bfloat16"),
    ],
)
def test_kv_is_stored_as_a_quantization_says_else_as_the_model_computes(
    tmp_path: Path, changes: dict[str, Any], dtype: str
) -> None:
    assert read(tmp_path, {**LLAMA, **changes}).dtype == dtype
    assert read(tmp_path, {**LLAMA, **changes}, "auto").dtype == dtype
    assert read(tmp_path, {**LLAMA, **changes}, "fp8_e5m2").dtype == "fp8_e5m2"


def test_the_quantization_of_modelopt_lies_beside_the_configuration(tmp_path: Path) -> None:
    read(tmp_path, LLAMA)
    beside = tmp_path / "my-model" / "hf_quant_config.json"
    beside.write_text('{"quantization": {"kv_cache_quant_algo": "FP8"}}', encoding="utf-8")
    assert load_config(str(tmp_path / "my-model")).dtype == "fp8"
    beside.write_text('{"quantization": {"kv_cache_quant_algo": "NVFP4"}}', encoding="utf-8")
    with pytest.raises(OptionError, match=r"hf_quant_config.json: quantization.kv_cache_quant_al"):
        load_config(str(tmp_path / "my-model"))


def test_a_type_that_is_given_needs_none_in_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, {**LLAMA, "torch_dtype": None}, "fp8").bytes_per_token == 65_536


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen3-8B/config.json", "Qwen3-8B"),
        ("hub/models--Qwen--Qwen3-8B/snapshots/0a1b/config.json", "Qwen3-8B"),
        ("my model, 2/config.json", "my-model-2"),
        ("configs/Qwen--Qwen3-8B_config.json", "Qwen3-8B"),
        ("configs/mine.json", "mine"),
        ("qwen3-8b/config.json", "qwen3-8b"),
    ],
)
def test_a_model_is_called_as_its_directory_or_its_file(
    tmp_path: Path, path: str, name: str
) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    config = {**LLAMA, "model_type": "qwen3", "num_hidden_layers": 36, "head_dim": 128}
    file.write_text(json.dumps(config), encoding="utf-8")
    assert load_config(str(file)).name == name
    assert is_config(str(file))
    assert is_config(str(file.parent)) == (file.name == "config.json")


def test_another_shape_under_the_name_of_a_shipped_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "qwen3-8b" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(LLAMA), encoding="utf-8")
    with pytest.raises(OptionError, match="would be called qwen3-8b, which is a shipped model of"):
        load_config(str(file))


# -- what is wrong ----------------------------------------------------------------------------


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != key}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not valid JSON: "),
        ("[]", "holds list; it must hold one JSON object"),
        ("[" * 100_000, "is not valid JSON: "),
        (without(LLAMA, "model_type"), ": lacks model_type; a model must have it, so complete"),
        ({**LLAMA, "model_type": 3}, ": model_type is 3; it must be a string"),
        ({**LLAMA, "model_type": "gemma9"}, ": model_type is 'gemma9' (did you mean 'gemma'"),
        ({**LLAMA, "model_type": "deepseek_v4"}, ": model_type is 'deepseek_v4' (did you mean"),
        ({**LLAMA, "text_config": 3}, ": text_config is 3; it must be a JSON object"),
        (without(LLAMA, "num_hidden_layers"), ": lacks num_hidden_layers; a llama model must"),
        (without(LLAMA, "num_attention_heads"), ": lacks num_attention_heads; a llama model"),
        (without(LLAMA, "hidden_size"), ": lacks hidden_size; a llama model must have it"),
        (without(LLAMA, "torch_dtype"), ": lacks torch_dtype; a llama model must have it (or dt"),
        (without(QWEN2, "num_key_value_heads"), ": lacks num_key_value_heads; a qwen2 model"),
        ({**LLAMA, "num_hidden_layers": "32"}, ": num_hidden_layers is '32'; it must be a whole"),
        ({**LLAMA, "num_hidden_layers": True}, ": num_hidden_layers is True; it must be a whole"),
        ({**LLAMA, "num_hidden_layers": 0}, ": num_hidden_layers is 0; it must be at least 1"),
        ({**LLAMA, "hidden_size": 4097}, ": hidden_size is 4097; it must be a multiple of num_at"),
        ({**LLAMA, "torch_dtype": "int4"}, ": torch_dtype is 'int4'; it must be one of bfloat16"),
        ({**LLAMA, "sliding_window": 4096}, ": sliding_window is 4096; layers of a llama model"),
        ({**LLAMA, "num_key_value_heads": 5}, ": model my-model: q_heads is 32; it must be a mul"),
        ({**QWEN2, "use_sliding_window": 1}, ": use_sliding_window is 1; it must be true or fal"),
        (without({**QWEN2, "use_sliding_window": True}, "max_window_layers"),
         ": lacks max_window_layers; a qwen2 model must have it"),
        ({**LLAMA, "quantization_config": 3}, ": quantization_config is 3; it must be a JSON obj"),
        ({**LLAMA, "quantization_config": {"kv_cache_scheme": {"type": "float", "num_bits": 4}}},
         ": quantization_config.kv_cache_scheme is {'type': 'float', 'num_bits': 4}; it must be"),
        ({**LLAMA, "quantization_config": {"kv_cache_post_rope": True}},
         ": quantization_config.kv_cache_post_rope is True; it must be of 8 bits as"),
        ({**LLAMA, "model_type": "gemma2", "layer_types": ["full_attention"]},
         ": layer_types has 1 entries; it must be a list with one for each of the 32 layers"),
        ({**LLAMA, "model_type": "gemma2", "layer_types": "full"}, ": layer_types has 'full'; it"),
        ({**LLAMA, "model_type": "gemma2", "layer_types": ["ring_attention"] * 32},
         ": layer_types[0] is 'ring_attention'; what such a layer keeps is not known here, known"),
        ({**LLAMA, "model_type": "gemma2", "layer_types": [{}] * 32}, ": layer_types[0] is {}; wh"),
        (without(DEEPSEEK, "kv_lora_rank"), ": lacks kv_lora_rank; a deepseek_v3 model must have"),
        ({**DEEPSEEK, "use_mla": False}, ": use_mla is false; only the latent cache of a deepseek"),
        ({**DEEPSEEK, "model_type": "glm_moe_dsa", "index_head_dim": 128, "index_topk_freq": 4},
         ": indexer_types: layers share an indexer, whose cache is not known here"),
        ({**NEMOTRON, "hybrid_override_pattern": "M*?"}, ": hybrid_override_pattern is 'M*?'; '?'"),
        ({**NEMOTRON, "hybrid_override_pattern": "--"}, ": num_hidden_layers is 2; no layer has a"),
        ({**NEMOTRON, "mamba_ssm_cache_dtype": "int8"}, ": mamba_ssm_cache_dtype is 'int8'; it m"),
        ({**GRANITE, "layer_types": None}, ": lacks layer_types"),
        ({**GRANITE, "mamba_n_heads": 100}, ": model_type granitemoehybrid: groups: state: state_"),
        ({**GRANITE, "model_type": "bamba"}, ": attn_layer_indices is None; it must be a list of"),
        ({**LLAMA, "model_type": "minimax"}, ": lacks attn_type_list; a minimax model must have"),
        (without(KIMI_LINEAR, "linear_attn_config"), ": lacks linear_attn_config"),
        ({**KIMI_LINEAR, "linear_attn_config": {"full_attn_layers": [1], "kda_layers": [1]}},
         ": linear_attn_config.full_attn_layers and kda_layers must number each of the 4 layers"),
    ],
)  # fmt: skip
def test_a_configuration_that_breaks_a_rule_is_refused_with_file_and_key(
    tmp_path: Path, config: Any, message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        read(tmp_path, config)
    file = f"{tmp_path}/my-model/config.json"
    assert str(caught.value).startswith((f"{file}{message}", f"{file} {message}"))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(OptionError, match="is not valid JSON: 'utf-8' codec"):
        load_config(str(file))


VALUES = st.none() | st.booleans() | st.integers(-2, 4096) | st.text(max_size=4) | st.lists(
    st.sampled_from(["full_attention", "linear_attention", 0, 1]), max_size=5
) | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)  # fmt: skip


@given(
    st.sampled_from(sorted(READERS)),
    st.sampled_from([LLAMA, MISTRAL, DEEPSEEK, QWEN3_NEXT, NEMOTRON, JAMBA, GRANITE, KIMI_LINEAR]),
    st.data(),
)
def test_whatever_a_configuration_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, model_type: str, config: dict[str, Any],
    data: st.DataObject,
) -> None:  # fmt: skip
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(config)), VALUES, max_size=4))
    try:
        model = read(
            tmp_path_factory.getbasetemp(), {**config, **changes, "model_type": model_type}
        )
    except OptionError:
        return
    assert model.bytes_per_token + model.state_bytes > 0
    assert sum(model.group_bytes(16, 1)) == model.block_bytes(16, 1)


# -- the table --------------------------------------------------------------------------------


def test_every_shipped_model_says_where_its_figures_are_from() -> None:
    assert len(MODELS) >= 30
    assert all(model.source for model in MODELS.values())
    assert all(model.name == name for name, model in MODELS.items())


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gemma3-27b", "llama4-scout", "mistral-7b-v0.1"])
def test_shipped_models_with_windows_grow_by_less_beyond_them(name: str) -> None:
    assert MODELS[name].bytes_per_late_token < MODELS[name].bytes_per_token
