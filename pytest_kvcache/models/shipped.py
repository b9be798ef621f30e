"""The models that a name stands for: the one table of their figures, with the source of each.

A row has the keys of its ``config.json`` that its cache depends on, and is read as such a file
is; sizes are derived. Imports nothing of the package but ``errors``.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.models.hfkeys import Keys
from pytest_kvcache.models.hftypes import READERS
from pytest_kvcache.models.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MLPERF = "MLPerf Storage v3.0, KV Cache benchmark"
_PACKAGED = "config.json of {}, as aiconfigurator-core 0.12.0 packages it"
_BRIDGE = "Megatron Bridge 0.3.1, {}"
_CLASS = "defaults of transformers 5.24.0, {}"
_LITGPT = "litgpt 0.5.13, config.py: {}"
_BF16, _FP16 = "bfloat16", "float16"
_SLIDES = "every {} layer keeps all tokens, the others the last {:,}"
_STATES = "{} layers keep a state, {} all tokens"


def _heads(
    model_type: str, layers: int, kv_heads: int, head_dim: int, **more: object
) -> dict[str, object]:
    """Keys of a model of attention layers."""
    return {
        "model_type": model_type, "num_hidden_layers": layers, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, **more,
    }  # fmt: skip


def _llama(
    layers: int, hidden: int, q_heads: int, kv_heads: int, head_dim: int, **more: object
) -> dict[str, object]:
    more = {"hidden_size": hidden, "num_attention_heads": q_heads, **more}
    return _heads("llama", layers, kv_heads, head_dim, **more)


def _mla(model_type: str, layers: int, **more: object) -> dict[str, object]:
    """DeepSeek's latent of 512 and its decoupled key of 64."""
    return {
        "model_type": model_type, "num_hidden_layers": layers, "kv_lora_rank": 512,
        "qk_rope_head_dim": 64, **more,
    }  # fmt: skip


def _delta(
    model_type: str, layers: int, kv_heads: int, v_heads: int, **more: object
) -> dict[str, object]:
    """Qwen's Gated DeltaNet in three of four layers."""
    return _heads(
        model_type, layers, kv_heads, 256, full_attention_interval=4, linear_num_key_heads=16,
        linear_num_value_heads=v_heads, linear_key_head_dim=128, linear_value_head_dim=128,
        linear_conv_kernel_dim=4, **more,
    )  # fmt: skip


def _nemotron(pattern: str, kv_heads: int, mamba_heads: int, **more: object) -> dict[str, object]:
    return {
        "model_type": "nemotron_h", "hybrid_override_pattern": pattern, "head_dim": 128,
        "num_key_value_heads": kv_heads, "mamba_num_heads": mamba_heads, "n_groups": 8,
        "conv_kernel": 4, **more,
    }  # fmt: skip


def _deepseek(name: str) -> str:
    return _PACKAGED.format(f"deepseek-ai/{name}")


def _rows() -> Iterator[tuple[str, str, Mapping[str, Any], str, str]]:
    """Name, dtype, keys, source, note."""
    yield ("tiny-1b", _FP16, _llama(12, 1024, 8, 4, 128), _MLPERF, "synthetic")
    yield (
        "mistral-7b",
        _BF16,
        _llama(32, 4096, 32, 8, 128),
        _MLPERF,
        "v0.2 and v0.3, which have no window; v0.1 is mistral-7b-v0.1",
    )
    yield ("llama2-7b", _FP16, _llama(32, 4096, 32, 32, 128), _MLPERF, "")
    yield ("llama3.1-8b", _BF16, _llama(32, 4096, 32, 8, 128), _MLPERF, "")
    yield ("llama3.1-70b-instruct", _BF16, _llama(80, 8192, 64, 8, 128), _MLPERF, "")
    yield (
        "deepseek-v3",
        _BF16,
        _mla("deepseek_v3", 61, hidden_size=7168),
        _MLPERF,
        "MLA: the latent is replicated, not sharded",
    )
    yield (
        "qwen3-32b",
        _BF16,
        _heads("qwen3", 64, 8, 128, hidden_size=5120, num_attention_heads=64),
        _MLPERF,
        "head_dim is explicit, not hidden / q_heads",
    )
    for size, layers in (("120b", 36), ("20b", 24)):
        yield (
            f"gpt-oss-{size}",
            _BF16,
            _heads(
                "gpt_oss",
                layers,
                8,
                64,
                hidden_size=2880,
                num_attention_heads=64,
                sliding_window=128,
            ),
            f"{_MLPERF}; {_PACKAGED.format('openai/gpt-oss-' + size)}",
            _SLIDES.format("2nd", 128),
        )
    yield from _llamas()
    yield from _qwens()
    yield from _latents()
    yield from _mistrals()
    yield from _gemmas()
    yield from _others()
    yield from _hybrids()


def _llamas() -> Iterator[tuple[str, str, Mapping[str, Any], str, str]]:
    yield (
        "llama2-13b",
        _FP16,
        _llama(40, 5120, 40, 40, 128),
        _BRIDGE.format("Llama2ModelProvider13B"),
        "",
    )
    yield (
        "llama2-70b",
        _FP16,
        _llama(80, 8192, 64, 8, 128),
        _BRIDGE.format("Llama2ModelProvider70B"),
        "",
    )
    yield (
        "llama3.1-405b",
        _BF16,
        _llama(126, 16384, 128, 8, 128),
        _PACKAGED.format("meta-llama/Meta-Llama-3.1-405B"),
        "",
    )
    yield (
        "llama3.2-1b",
        _BF16,
        _llama(16, 2048, 32, 8, 64),
        _BRIDGE.format("Llama32ModelProvider1B"),
        "",
    )
    yield (
        "llama3.2-3b",
        _BF16,
        _llama(28, 3072, 24, 8, 128),
        _BRIDGE.format("Llama32ModelProvider3B"),
        "",
    )
    yield (
        "llama3.3-70b-instruct",
        _BF16,
        _llama(80, 8192, 64, 8, 128),
        _LITGPT.format("Llama-3.3-70B-Instruct"),
        "",
    )
    for name, official in (
        ("scout", "Llama-4-Scout-17B-16E-Instruct"),
        ("maverick", "Llama-4-Maverick-17B-128E-Instruct"),
    ):
        yield (
            f"llama4-{name}",
            _BF16,
            _heads("llama4_text", 48, 8, 128, attention_chunk_size=8192),
            _PACKAGED.format(f"meta-llama/{official}"),
            "every 4th layer keeps all tokens, the others a chunk of 8,192",
        )


def _qwens() -> Iterator[tuple[str, str, Mapping[str, Any], str, str]]:
    for size, layers, hidden, q_heads, kv_heads in (
        ("7b", 28, 3584, 28, 4),
        ("14b", 48, 5120, 40, 8),
        ("32b", 64, 5120, 40, 8),
        ("72b", 80, 8192, 64, 8),
    ):
        yield (
            f"qwen2.5-{size}",
            _BF16,
            _heads("qwen2", layers, kv_heads, 128, hidden_size=hidden, num_attention_heads=q_heads),
            _BRIDGE.format(f"Qwen25ModelProvider{size.upper()}"),
            "",
        )
    yield ("qwen3-8b", _BF16, _heads("qwen3", 36, 8, 128), _PACKAGED.format("Qwen/Qwen3-8B"), "")
    yield (
        "qwen3-14b",
        _BF16,
        _heads("qwen3", 40, 8, 128),
        _BRIDGE.format("Qwen3ModelProvider14B"),
        "",
    )
    for name, official, layers, kv_heads in (
        ("qwen3-30b-a3b", "Qwen3-30B-A3B", 48, 4),
        ("qwen3-235b-a22b", "Qwen3-235B-A22B", 94, 4),
        ("qwen3-coder-480b-a35b", "Qwen3-Coder-480B-A35B-Instruct", 62, 8),
    ):
        yield (
            name,
            _BF16,
            _heads("qwen3_moe", layers, kv_heads, 128),
            _PACKAGED.format(f"Qwen/{official}"),
            "",
        )
    yield (
        "qwen3-next-80b-a3b",
        _BF16,
        _delta("qwen3_next", 48, 2, 32),
        "config.json of Qwen/Qwen3-Next-80B-A3B-Thinking, in ai-dynamo/aiconfigurator at 1b7cfb1",
        _STATES.format(36, 12) + "; the state in bfloat16, as vLLM keeps it",
    )
    for size, layers, v_heads in (("397b-a17b", 60, 64), ("35b-a3b", 40, 32)):
        yield (
            f"qwen3.5-{size}",
            _BF16,
            _delta("qwen3_5_moe_text", layers, 2, v_heads, mamba_ssm_dtype="float32"),
            _PACKAGED.format(f"Qwen/Qwen3.5-{size.upper()}"),
            _STATES.format(layers * 3 // 4, layers // 4) + "; the state in float32",
        )


def _latents() -> Iterator[tuple[str, str, Mapping[str, Any], str, str]]:
    yield (
        "deepseek-v2",
        _BF16,
        _mla("deepseek_v2", 60),
        _BRIDGE.format("DeepSeekV2ModelProvider"),
        "",
    )
    yield (
        "deepseek-v2-lite",
        _BF16,
        _mla("deepseek_v2", 27),
        _BRIDGE.format("DeepSeekV2LiteModelProvider"),
        "",
    )
    yield ("deepseek-r1", _BF16, _mla("deepseek_v3", 61), _deepseek("DeepSeek-R1"), "")
    yield (
        "deepseek-v3.2",
        _BF16,
        _mla("deepseek_v32", 61, index_head_dim=128),
        _deepseek("DeepSeek-V3.2"),
        "with the indexer's key, 132 bytes of a token and layer",
    )
    yield (
        "kimi-k2",
        _BF16,
        _mla("kimi_k2", 61),
        _PACKAGED.format("moonshotai/Kimi-K2-Instruct"),
        "",
    )
    yield (
        "glm-5",
        _BF16,
        _mla("glm_moe_dsa", 78, index_head_dim=128),
        _PACKAGED.format("zai-org/GLM-5"),
        "with the indexer's key, 132 bytes of a token and layer",
    )


def _mistrals() -> Iterator[tuple[str, str, Mapping[str, Any], str, str]]:
    yield (
        "mistral-7b-v0.1",
        _BF16,
        _heads("mistral", 32, 8, 128, sliding_window=4096),
        _CLASS.format("MistralConfig (mistralai/Mistral-7B-v0.1)"),
        "every layer keeps the last 4,096 tokens",
    )
    yield (
        "mistral-small-24b",
        _BF16,
        _heads("mistral", 40, 8, 128, sliding_window=None),
        _BRIDGE.format("MistralSmall3ModelProvider24B"),
        "",
    )
    yield (
        "mistral-large-2",
        _BF16,
        _heads("mistral", 88, 8, 128, sliding_window=None),
        _LITGPT.format("Mistral-Large-Instruct-2407"),
        "",
    )
    yield (
        "ministral-3-8b",
        _BF16,
        _heads("ministral3", 34, 8, 128),
        _BRIDGE.format("Ministral3ModelProvider8B"),
        "",
    )
    for name, layers in (("8x7B", 32), ("8x22B", 56)):
        yield (
            f"mixtral-{name.lower()}",
            _BF16,
            _heads("mixtral", layers, 8, 128),
            _PACKAGED.format(f"mistralai/Mixtral-{name}-v0.1"),
            "",
        )


def _gemmas() -> Iterator[tuple[str, str, Mapping[str, Any], str, str]]:
    for size, layers, kv_heads, width in (("9b", 42, 8, 256), ("27b", 46, 16, 128)):
        yield (
            f"gemma2-{size}",
            _BF16,
            _heads("gemma2", layers, kv_heads, width, sliding_window=4096),
            _BRIDGE.format(f"Gemma2ModelProvider{size.upper()}"),
            _SLIDES.format("2nd", 4096),
        )
    for size, layers, kv_heads, width in (
        ("4b", 34, 4, 256),
        ("12b", 48, 8, 256),
        ("27b", 62, 16, 128),
    ):
        yield (
            f"gemma3-{size}",
            _BF16,
            _heads("gemma3_text", layers, kv_heads, width, sliding_window=1024),
            _BRIDGE.format(f"Gemma3ModelProvider{size.upper()}"),
            _SLIDES.format("6th", 1024),
        )


def _others() -> Iterator[tuple[str, str, Mapping[str, Any], str, str]]:
    yield ("phi-4", _BF16, _heads("phi3", 40, 10, 128), _LITGPT.format("phi-4"), "")
    yield (
        "phi-4-mini",
        _BF16,
        _heads("phi3", 32, 8, 128),
        _LITGPT.format("Phi-4-mini-instruct"),
        "its window is longer than any of its contexts",
    )
    yield (
        "phi-3.5-mini",
        _BF16,
        _heads("phi3", 32, 32, 96),
        _LITGPT.format("Phi-3.5-mini-instruct"),
        "",
    )
    bridge = _BRIDGE.format("GLM45ModelProvider355B")
    yield ("glm-4.5", _BF16, _heads("glm4_moe", 92, 8, 128), bridge, "")
    yield (
        "glm-4.5-air",
        _BF16,
        _heads("glm4_moe", 46, 8, 128),
        _BRIDGE.format("GLM45AirModelProvider106B"),
        "",
    )
    yield (
        "glm-4.6",
        _BF16,
        _heads("glm4_moe", 92, 8, 128),
        bridge,
        "its config.json differs from that of GLM-4.5 in the longest context alone",
    )
    yield (
        "minimax-m2.5",
        _BF16,
        _heads("minimax_m2", 62, 8, 128),
        _PACKAGED.format("MiniMaxAI/MiniMax-M2.5"),
        "",
    )
    yield (
        "nemotron-4-340b",
        _BF16,
        _heads("nemotron", 96, 8, 192),
        _BRIDGE.format("Nemotron4ModelProvider340B"),
        "",
    )
    yield (
        "command-r",
        _FP16,
        _heads("cohere", 40, 64, 128),
        _CLASS.format("CohereConfig (CohereForAI/c4ai-command-r-v01)"),
        "",
    )
    yield (
        "mimo-v2-flash",
        _BF16,
        {
            "model_type": "mimo_v2_flash",
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "head_dim": 192,
            "v_head_dim": 128,
            "swa_num_key_value_heads": 8,
            "swa_head_dim": 192,
            "swa_v_head_dim": 128,
            "sliding_window": 128,
            "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0, *[1, 1, 1, 1, 1, 0] * 7],
        },
        _PACKAGED.format("XiaomiMiMo/MiMo-V2-Flash"),
        "9 layers keep all tokens, 39 the last 128",
    )


def _hybrids() -> Iterator[tuple[str, str, Mapping[str, Any], str, str]]:
    yield (
        "minimax-text-01",
        _BF16,
        _heads(
            "minimax_text_01",
            80,
            8,
            128,
            num_attention_heads=64,
            attn_type_list=[0, 0, 0, 0, 0, 0, 0, 1] * 10,
        ),
        "transformers, conversion of MiniMaxAI/MiniMax-Text-01",
        _STATES.format(70, 10),
    )
    yield (
        "jamba-v0.1",
        _BF16,
        _heads(
            "jamba",
            32,
            8,
            128,
            hidden_size=4096,
            attn_layer_period=8,
            attn_layer_offset=4,
            mamba_d_state=16,
            mamba_d_conv=4,
            mamba_expand=2,
        ),
        _CLASS.format("JambaConfig (ai21labs/Jamba-v0.1)"),
        _STATES.format(28, 4),
    )
    yield (
        "nemotron-h-56b",
        _BF16,
        _nemotron(
            "M-M-M-M*" + "-M-M-M-M-M*" * 9 + "-M-M-M-M-M-",
            8,
            256,
            mamba_head_dim=64,
            ssm_state_size=256,
        ),
        _PACKAGED.format("nvidia/Nemotron-H-56B-Base-8K"),
        _STATES.format(54, 10) + "; the state in float32",
    )
    yield (
        "nemotron-nano-9b-v2",
        _BF16,
        _nemotron(
            "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
            8,
            128,
            mamba_head_dim=80,
            ssm_state_size=128,
        ),
        _BRIDGE.format("NemotronNanoModelProvider9Bv2"),
        _STATES.format(27, 4) + "; the state in float32",
    )
    yield (
        "nemotron-3-nano-30b-a3b",
        _BF16,
        _nemotron(
            "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            2,
            64,
            mamba_head_dim=64,
            ssm_state_size=128,
            mamba_ssm_cache_dtype="float32",
        ),
        _PACKAGED.format("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
        _STATES.format(23, 6) + "; the state in float32",
    )
    yield (
        "granite-4.0-h-small",
        _BF16,
        _heads(
            "granitemoehybrid",
            40,
            8,
            128,
            hidden_size=4096,
            mamba_expand=2,
            mamba_d_state=128,
            mamba_d_conv=4,
            mamba_n_heads=128,
            mamba_n_groups=1,
            layer_types=["mamba"] * 36 + ["attention"] * 4,
        ),
        "config.json of ibm-granite/granite-4.0-h-small, as quoted publicly; "
        + _CLASS.format("GraniteMoeHybridConfig"),
        _STATES.format(36, 4),
    )
    yield (
        "falcon-h1-7b",
        _BF16,
        _heads(
            "falcon_h1",
            44,
            2,
            128,
            mamba_d_ssm=3072,
            mamba_n_heads=24,
            mamba_n_groups=1,
            mamba_d_state=256,
            mamba_d_conv=4,
        ),
        "config.json of Falcon-H1-7B-Instruct, as quoted publicly",
        "every layer has attention and a state",
    )


def _read(name: str, dtype: str, keys: Mapping[str, Any], source: str, note: str) -> ModelSpec:
    shape = READERS[keys["model_type"]](Keys(name, {"dtype": dtype, **keys}))
    return ModelSpec(name=name, dtype=dtype, source=source, note=note, **shape)


MODELS: Final[Mapping[str, ModelSpec]] = MappingProxyType({row[0]: _read(*row) for row in _rows()})
"""Every model that ``--kv-model`` knows by name."""
