"""What each kind of model (``model_type``) keeps of a context: one reader of keys per kind.

A rule is that of transformers 5.24.0, ``models/<model_type>/configuration_<model_type>.py``,
the size of a state that of vLLM, ``model_executor/layers/mamba/mamba_utils.py``, unless it says
otherwise.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.errors import OptionError
from pytest_kvcache.models.groups import CHUNKED, FULL, KINDS, SLIDING, STATE, LayerGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_kvcache.models.hfkeys import Keys

    Reader = Callable[[Keys], dict[str, Any]]
    Kinds = Callable[[Keys, int], Sequence[str]]

NOTHING = "nothing"  # a layer without a cache: an MLP of its own
_LAYER_TYPES = {
    "full_attention": FULL, "attention": FULL, "sliding_attention": SLIDING,
    "chunked_attention": CHUNKED,
}  # fmt: skip
_MIXED_TYPES = {
    "full_attention": FULL, "attention": FULL, "linear_attention": STATE, "mamba": STATE,
    "conv": STATE, "mlp": NOTHING, "moe": NOTHING,
}  # fmt: skip
_INDEX_SCALE_EVERY = 128  # an fp32 scale per so many fp8 values of an indexer's key
_HEADS_KEY = "num_attention_heads"
_STATE_DTYPE_KEYS = ("mamba_ssm_cache_dtype", "mamba_ssm_dtype")


# --- which layers do what --------------------------------------------------------------------


def _no_window(keys: Keys, layers: int) -> Sequence[str]:
    """Every layer keeps every token."""
    if keys.has("sliding_window") and keys.flag("use_sliding_window", default=True):
        raise OptionError(
            f"{keys.where('sliding_window')} is {keys.get('sliding_window')!r}; layers of a"
            f" {keys.get('model_type')} model have no window, so set it to null or correct"
            " model_type"
        )
    return [FULL] * layers


def _all_slide(keys: Keys, layers: int, default: int | None = None) -> Sequence[str]:
    """Every layer has the window, if there is one."""
    return [FULL if _window(keys, default) is None else SLIDING] * layers


def _last_slide(keys: Keys, layers: int) -> Sequence[str]:
    """Qwen: layers from ``max_window_layers`` on slide, if ``use_sliding_window`` says so."""
    if not keys.flag("use_sliding_window", default=False) or _window(keys) is None:
        return [FULL] * layers
    full = min(layers, keys.count("max_window_layers", least=0))
    return [FULL] * full + [SLIDING] * (layers - full)


def _moe_slide(keys: Keys, layers: int) -> Sequence[str]:
    """Qwen3 MoE: all layers, if ``use_sliding_window`` says so."""
    slides = keys.flag("use_sliding_window", default=False)
    return _all_slide(keys, layers) if slides else [FULL] * layers


def _every(keys: Keys, layers: int, *, period: int, default: int | None = None) -> Sequence[str]:
    """All slide but each ``sliding_window_pattern``-th."""
    if _window(keys, default) is None:
        return [FULL] * layers
    if keys.get("sliding_window_pattern") == "LLLG":  # EXAONE 4
        period = 4
    elif period:
        period = keys.count("sliding_window_pattern", period)
    return [SLIDING if (number + 1) % period else FULL for number in range(layers)]


def _llama4(keys: Keys, layers: int) -> Sequence[str]:
    """Layers with rotary positions attend within chunks, each fourth has none and to all."""
    if "attention_chunk_size" in keys.names() and not keys.has("attention_chunk_size"):
        return [FULL] * layers
    if keys.get("no_rope_layers"):
        return keys.per_layer("no_rope_layers", layers, {1: CHUNKED, 0: FULL})
    period = keys.count("no_rope_layer_interval", 4)
    return [CHUNKED if (number + 1) % period else FULL for number in range(layers)]


def _window(keys: Keys, default: int | None = None) -> int | None:
    """``sliding_window``, unless it is longer than any context of the model."""
    window = keys.window("sliding_window", default)
    most = keys.get("max_position_embeddings")
    return None if window is not None and type(most) is int and window >= most else window


# --- attention ------------------------------------------------------------------------------


def _heads(keys: Keys, *, kv: int | None, head_dim: int | None) -> dict[str, int]:
    """KV heads and their width; ``kv`` 0: a configuration must say, None: as many as queries."""
    if keys.has("num_key_value_heads"):
        kv_heads = keys.count("num_key_value_heads")
    elif kv is None or "num_key_value_heads" in keys.names():
        kv_heads = keys.count(_HEADS_KEY)
    else:
        kv_heads = keys.count("num_key_value_heads", *([kv] if kv else []))
    if keys.has("head_dim"):
        width = keys.count("head_dim")
    elif head_dim is not None and "head_dim" not in keys.names():
        width = head_dim
    else:
        width = _divided(keys, "hidden_size", _HEADS_KEY)
    return {"kv_heads": kv_heads, "head_dim": width}


def _divided(keys: Keys, whole: str, parts: str) -> int:
    width, rest = divmod(keys.count(whole), keys.count(parts))
    if rest:
        raise OptionError(
            f"{keys.where(whole)} is {keys.get(whole)}; it must be a multiple of {parts}, which is"
            f" {keys.get(parts)}, or the file give head_dim"
        )
    return width


def _attention(
    keys: Keys,
    kinds: Kinds = _no_window,
    *,
    kv: int | None = 0,
    head_dim: int | None = None,
    window: int | None = None,
) -> dict[str, Any]:
    """A model of attention layers; ``kv``, ``head_dim``, ``window``: where the file is silent."""
    layers = keys.count("num_hidden_layers")
    found: Sequence[str]
    if keys.has("layer_types"):
        found = keys.per_layer("layer_types", layers, _LAYER_TYPES)
    else:
        found = kinds(keys, layers)
    heads = _heads(keys, kv=kv, head_dim=head_dim)
    return _shape(keys, layers, Counter(found), heads, window=window)


def _shape(
    keys: Keys,
    layers: int,
    counts: Mapping[str, int],
    attention: Mapping[str, int],
    *,
    window: int | None = None,
    state: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What `ModelSpec` takes: the shape itself where all layers are alike, else groups."""
    informs = {
        "layers": layers,
        "hidden": keys.count("hidden_size", 0) or None,
        "q_heads": keys.count(_HEADS_KEY, 0) or None,
    }
    plain = {"kv_heads", "head_dim", "kv_lora_rank", "rope_dim"}
    if counts.get(FULL) == layers and len(counts) == 1 and plain.issuperset(attention):
        return {**informs, **attention}
    groups = []
    for kind in KINDS:
        if not counts.get(kind):
            continue
        shape = dict(state or {}) if kind == STATE else dict(attention)
        if kind == SLIDING:
            shape["window_tokens"] = keys.count("sliding_window", *([window] if window else []))
        elif kind == CHUNKED:
            shape["window_tokens"] = keys.count("attention_chunk_size", 8192)
        groups.append(_group(keys, kind, counts[kind], shape))
    if not groups:
        raise OptionError(
            f"{keys.where('num_hidden_layers')} is {layers}; no layer has a cache, so there is"
            " nothing to store"
        )
    return {**informs, "groups": tuple(groups)}


def _group(keys: Keys, kind: str, layers: int, shape: Mapping[str, int]) -> LayerGroup:
    try:
        return LayerGroup(kind=kind, layers=layers, **shape)
    except OptionError as error:
        raise OptionError(
            f"{keys.where('model_type')} {keys.get('model_type')}: {error}"
        ) from error


def _mimo(keys: Keys) -> dict[str, Any]:
    """MiMo V2: sliding layers have heads of their own, and values narrower than keys."""
    layers = keys.count("num_hidden_layers")
    counts = Counter(keys.per_layer("hybrid_layer_pattern", layers, {0: FULL, 1: SLIDING}))
    groups = []
    for kind, prefix in ((FULL, ""), (SLIDING, "swa_")):
        if counts[kind]:
            heads = {
                "kv_heads": keys.count(f"{prefix}num_key_value_heads"),
                "head_dim": keys.count(f"{prefix}head_dim"),
                "v_head_dim": keys.count(f"{prefix}v_head_dim"),
            }
            if kind == SLIDING:
                heads["window_tokens"] = keys.count("sliding_window")
            groups.append(_group(keys, kind, counts[kind], heads))
    return {"layers": layers, "groups": tuple(groups)}


def _mla(keys: Keys, *, indexed: bool = False, per_layer: int = 1) -> dict[str, Any]:
    """A latent per layer; ``indexed``: a sparse attention's indexer keeps a key beside it.

    The indexer's key is fp8 with an fp32 scale for 128 of them (vLLM, models/deepseek_v2.py:
    ``DeepseekV32IndexerCache``, 132 bytes of a token).
    """
    layers = keys.count("num_hidden_layers" if per_layer == 1 else "num_layers") * per_layer
    if not keys.flag("use_mla", default=True):
        raise OptionError(
            f"{keys.where('use_mla')} is false; only the latent cache of a"
            f" {keys.get('model_type')} model is known here, so describe it in a TOML file of"
            " models"
        )
    latent = _latent(keys)
    if indexed:
        if keys.count("index_topk_freq", 1) > 1 or "shared" in (keys.get("indexer_types") or []):
            raise OptionError(
                f"{keys.where('indexer_types')}: layers share an indexer, whose cache is not known"
                " here; describe the model in a TOML file of models"
            )
        width = keys.count("index_head_dim")
        latent["index_bytes"] = width + -(-width // _INDEX_SCALE_EVERY) * 4
    return _shape(keys, layers, {FULL: layers}, latent)


def _latent(keys: Keys) -> dict[str, int]:
    return {
        "kv_lora_rank": keys.count("kv_lora_rank"), "rope_dim": keys.count("qk_rope_head_dim"),
    }  # fmt: skip


# --- of other names -------------------------------------------------------------------------


def _multi_head(
    keys: Keys, layers: str, heads: str, width: str, kv_heads: Callable[[Keys, int], int]
) -> dict[str, Any]:
    """An older kind of model, whose keys have names of their own."""
    count = keys.count(heads)
    return {
        "layers": keys.count(layers), "q_heads": count, "hidden": keys.count(width),
        "kv_heads": kv_heads(keys, count), "head_dim": _divided(keys, width, heads),
    }  # fmt: skip


def _as_many(_keys: Keys, heads: int) -> int:
    return heads


def _one_if_multi_query(keys: Keys, heads: int) -> int:
    return 1 if keys.flag("multi_query", default=True) else heads


def _falcon(keys: Keys, heads: int) -> int:
    if keys.flag("new_decoder_architecture", default=False):
        return keys.count("num_kv_heads", heads)
    return _one_if_multi_query(keys, heads)


def _in_attn_config(keys: Keys, heads: int) -> int:
    """MPT and DBRX: ``attn_config.kv_n_heads``."""
    return keys.within("attn_config").count("kv_n_heads", heads) if keys.has("attn_config") else (
        heads
    )  # fmt: skip


def _chatglm(keys: Keys) -> dict[str, Any]:
    multi_query = keys.flag("multi_query_attention", default=False)
    return {
        "layers": keys.count("num_layers"), "hidden": keys.count("hidden_size"),
        "kv_heads": keys.count("multi_query_group_num" if multi_query else _HEADS_KEY),
        "head_dim": keys.count("kv_channels", 128),
    }  # fmt: skip


# --- states ---------------------------------------------------------------------------------


def _mamba2(
    keys: Keys,
    *,
    inner: int,
    groups: int,
    heads: int,
    state: int,
    kernel: int,
    silent: str | None = None,
) -> dict[str, int]:
    """Mamba 2: a state of ``inner · state`` elements and the last inputs of a convolution."""
    element = keys.state_dtype_bytes()
    held = inner * state * keys.state_dtype_bytes(*_STATE_DTYPE_KEYS, default=silent)
    return {
        "state_bytes": held + inner * (kernel - 1) * element,
        "state_heads": heads,
        "state_groups": groups,
        "group_state_bytes": 2 * state * (kernel - 1) * element,
    }


def _mamba1(keys: Keys, *, inner: int, state: int, kernel: int) -> dict[str, int]:
    """Mamba: every channel by itself."""
    held = inner * state * keys.state_dtype_bytes(*_STATE_DTYPE_KEYS)
    held += inner * (kernel - 1) * keys.state_dtype_bytes()
    return {"state_bytes": held, "state_heads": inner}


def _delta_net(keys: Keys) -> dict[str, int]:
    """Gated DeltaNet (Qwen3-Next): a matrix per value head and a convolution."""
    k_heads, v_heads = keys.count("linear_num_key_heads"), keys.count("linear_num_value_heads")
    k_dim, v_dim = keys.count("linear_key_head_dim"), keys.count("linear_value_head_dim")
    kernel = keys.count("linear_conv_kernel_dim")
    held = v_heads * v_dim * k_dim * keys.state_dtype_bytes("mamba_ssm_dtype")
    inputs = 2 * k_heads * k_dim + v_heads * v_dim
    held += inputs * (kernel - 1) * keys.state_dtype_bytes()
    return {"state_bytes": held, "state_heads": k_heads}


def _qwen3_next(keys: Keys) -> dict[str, Any]:
    layers = keys.count("num_hidden_layers")
    if keys.has("layer_types"):
        counts = Counter(keys.per_layer("layer_types", layers, _MIXED_TYPES))
    else:
        period = keys.count("full_attention_interval", 4)
        counts = Counter(STATE if (i + 1) % period else FULL for i in range(layers))
    heads = _heads(keys, kv=0, head_dim=256)
    return _shape(keys, layers, counts, heads, state=_delta_net(keys))


def _jamba(keys: Keys) -> dict[str, Any]:
    layers = keys.count("num_hidden_layers")
    if keys.has("layers_block_type"):
        counts = Counter(keys.per_layer("layers_block_type", layers, _MIXED_TYPES))
    else:
        period = keys.count("attn_layer_period")
        offset = keys.count("attn_layer_offset", least=0)
        counts = Counter(FULL if i % period == offset else STATE for i in range(layers))
    state = _mamba1(
        keys,
        inner=keys.count("mamba_expand") * keys.count("hidden_size"),
        state=keys.count("mamba_d_state"),
        kernel=keys.count("mamba_d_conv"),
    )
    heads = _heads(keys, kv=0, head_dim=None)
    return _shape(keys, layers, counts, heads, state=state)


def _nemotron_h(keys: Keys) -> dict[str, Any]:
    kinds = {"M": STATE, "*": FULL, "-": NOTHING, "E": NOTHING}
    key = "layers_block_type" if keys.has("layers_block_type") else "layer_types"
    if keys.has(key):
        found = keys.get(key)
        layers = len(found) if isinstance(found, list) else 0
        counts = Counter(keys.per_layer(key, layers, _MIXED_TYPES))
    else:
        pattern = keys.text("hybrid_override_pattern")
        if odd := set(pattern) - set(kinds):
            raise OptionError(
                f"{keys.where('hybrid_override_pattern')} is {pattern!r}; {min(odd)!r} is no known"
                f" layer, known are {' '.join(kinds)}"
            )
        layers, counts = len(pattern), Counter(kinds[one] for one in pattern)
    mamba_heads = keys.count("mamba_num_heads")
    kernel = "mamba_d_conv" if keys.has("mamba_d_conv") else "conv_kernel"
    groups = "mamba_n_groups" if keys.has("mamba_n_groups") else "n_groups"
    state = _mamba2(
        keys,
        inner=mamba_heads * keys.count("mamba_head_dim"),
        groups=keys.count(groups),
        heads=mamba_heads,
        state=keys.count("ssm_state_size"),
        kernel=keys.count(kernel),
        silent="float32",
    )
    width = keys.get("attention_head_dim")
    heads = _heads(keys, kv=0, head_dim=width if type(width) is int else 128)
    return _shape(keys, layers, counts, heads, state=state)


def _mamba_heads(keys: Keys, *, inner: int | None = None) -> dict[str, int]:
    """Mamba 2 as Granite 4, Bamba and Falcon-H1 name its keys."""
    if inner is None:
        inner = keys.count("mamba_expand", 2) * keys.count("hidden_size")
    return _mamba2(
        keys,
        inner=inner,
        groups=keys.count("mamba_n_groups"),
        heads=keys.count("mamba_n_heads"),
        state=keys.count("mamba_d_state"),
        kernel=keys.count("mamba_d_conv"),
    )


def _granite_hybrid(keys: Keys) -> dict[str, Any]:
    layers = keys.count("num_hidden_layers")
    key = "layers_block_type" if keys.has("layers_block_type") else "layer_types"
    if not keys.has(key):
        raise keys.lacks("layer_types")
    counts = Counter(keys.per_layer(key, layers, _MIXED_TYPES))
    state = _mamba_heads(keys) if counts[STATE] else None
    heads = _heads(keys, kv=None, head_dim=None)
    return _shape(keys, layers, counts, heads, state=state)


def _bamba(keys: Keys) -> dict[str, Any]:
    layers = keys.count("num_hidden_layers")
    full = keys.get("attn_layer_indices")
    if not isinstance(full, list) or not all(type(i) is int and 0 <= i < layers for i in full):
        raise OptionError(
            f"{keys.where('attn_layer_indices')} is {full!r}; it must be a list of numbers of"
            f" layers, 0 to {layers - 1}"
        )
    attends = len(set(full))
    counts = {FULL: attends, STATE: layers - attends}
    heads = _heads(keys, kv=0, head_dim=None)
    return _shape(keys, layers, counts, heads, state=_mamba_heads(keys))


def _falcon_h1(keys: Keys) -> dict[str, Any]:
    """Every layer has attention and a state beside it."""
    layers = keys.count("num_hidden_layers")
    inner = keys.count("mamba_d_ssm") if keys.has("mamba_d_ssm") else None
    heads = _heads(keys, kv=0, head_dim=None)
    counts = {FULL: layers, STATE: layers}
    return _shape(keys, layers, counts, heads, state=_mamba_heads(keys, inner=inner))


def _minimax(keys: Keys) -> dict[str, Any]:
    """Lightning attention: a matrix per head, in the type that the model computes in."""
    layers = keys.count("num_hidden_layers")
    if keys.has("layer_types"):
        counts = Counter(keys.per_layer("layer_types", layers, _MIXED_TYPES))
    elif keys.has("attn_type_list"):
        counts = Counter(keys.per_layer("attn_type_list", layers, {0: STATE, 1: FULL}))
    else:
        raise keys.lacks("attn_type_list", " (or layer_types)")
    heads = _heads(keys, kv=0, head_dim=None)
    count, width = keys.count(_HEADS_KEY), heads["head_dim"]
    state = {
        "state_bytes": count * width * width * keys.state_dtype_bytes(), "state_heads": count,
    }  # fmt: skip
    return _shape(keys, layers, counts, heads, state=state)


def _kimi_linear(keys: Keys) -> dict[str, Any]:
    """Kimi Delta Attention (a matrix per head, always float32) and MLA."""
    layers = keys.count("num_hidden_layers")
    if not keys.has("linear_attn_config"):
        raise keys.lacks("linear_attn_config")
    linear = keys.within("linear_attn_config")
    full, states = linear.get("full_attn_layers"), linear.get("kda_layers")
    if not isinstance(full, list) or not isinstance(states, list):
        raise linear.lacks("kda_layers" if isinstance(full, list) else "full_attn_layers")
    if sorted([*full, *states], key=str) != sorted(range(1, layers + 1), key=str):
        raise OptionError(
            f"{linear.where('full_attn_layers')} and kda_layers must number each of the {layers}"
            " layers once, from 1; correct the file"
        )
    heads, width = linear.count("num_heads"), linear.count("head_dim")
    inputs = 3 * heads * width * (linear.count("short_conv_kernel_size") - 1)
    state = {
        "state_bytes": heads * width * width * 4 + inputs * keys.state_dtype_bytes(),
        "state_heads": heads,
    }
    counts = {FULL: len(full), STATE: len(states)}
    return _shape(keys, layers, counts, _latent(keys), state=state)


def _lfm2(keys: Keys) -> dict[str, Any]:
    """Short convolutions keep their last inputs."""
    layers = keys.count("num_hidden_layers")
    counts = Counter(keys.per_layer("layer_types", layers, _MIXED_TYPES))
    width = keys.count("conv_dim", keys.count("hidden_size"))
    inputs = width * (keys.count("conv_L_cache") - 1)
    state = {"state_bytes": inputs * keys.state_dtype_bytes(), "state_heads": width}
    heads = _heads(keys, kv=0, head_dim=None)
    return _shape(keys, layers, counts, heads, state=state)


def _only_states(keys: Keys) -> dict[str, Any]:
    """Mamba, Falcon Mamba and Mamba 2: no attention at all."""
    layers, kernel = keys.count("num_hidden_layers"), keys.count("conv_kernel")
    size = keys.count("state_size")
    if keys.get("model_type") == "mamba2":
        heads = keys.count("num_heads")
        inner = heads * keys.count("head_dim")
        groups = keys.count("n_groups")
        state = _mamba2(keys, inner=inner, groups=groups, heads=heads, state=size, kernel=kernel)
    else:
        inner = keys.count("expand", 2) * keys.count("hidden_size")
        inner = keys.count("intermediate_size", inner)
        state = _mamba1(keys, inner=inner, state=size, kernel=kernel)
    return _shape(keys, layers, {STATE: layers}, {}, state=state)


# --- which kind is read how -----------------------------------------------------------------


def _alike(names: Sequence[str], reader: Reader) -> dict[str, Reader]:
    return {name: reader for name in names}  # noqa: C420  a function is no mutable value


# Kinds whose every layer keeps every token, where heads are given; by what their class takes
# where num_key_value_heads is absent: as many as there are query heads, or it must be there.
_AS_QUERIES = (
    "llama", "cohere", "granite", "granitemoe", "nemotron", "olmo", "olmo2", "olmoe", "phi",
    "apertus", "arcee", "baichuan", "internlm", "internlm2", "internlm3", "minicpm",
)  # fmt: skip
_TOLD = (
    "stablelm", "glm4_moe", "glm4v_moe_text", "ernie4_5_moe", "qwen3_vl_moe_text",
    "qwen3_omni_moe_text", "mimo",
)  # fmt: skip
_TOLD_128 = ("qwen3_vl_text", "glm", "glm4", "glm4v_text", "seed_oss", "ernie4_5", "minimax_m2")

READERS: Final[Mapping[str, Reader]] = MappingProxyType({
    **_alike(_AS_QUERIES, partial(_attention, kv=None)),
    **_alike(_TOLD, _attention),
    **_alike(_TOLD_128, partial(_attention, head_dim=128)),
    "gemma": partial(_attention, head_dim=256),
    "ministral3": partial(_attention, kinds=_all_slide, head_dim=128),
    "ministral": partial(_attention, kinds=partial(_all_slide, default=4096), window=4096),
    "mistral": partial(_attention, kinds=partial(_all_slide, default=4096), window=4096),
    **_alike(("mixtral", "phimoe", "starcoder2"), partial(_attention, kinds=_all_slide)),
    **_alike(("phi3", "phi3_v", "phi4mm", "phi4_multimodal"),
                    partial(_attention, kinds=_all_slide, kv=None)),
    **_alike(("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl",
                     "qwen2_5_vl_text", "qwen2_5_omni_text", "smollm3"),
                    partial(_attention, kinds=_last_slide)),
    "qwen3": partial(_attention, kinds=_last_slide, head_dim=128),
    "qwen3_moe": partial(_attention, kinds=_moe_slide),
    "gemma2": partial(_attention, kinds=partial(_every, period=2, default=4096), head_dim=256,
                      window=4096),
    # Published text_configs leave out what the class takes anyway (gemma-3-4b-it).
    "gemma3_text": partial(_attention, kinds=partial(_every, period=6, default=4096), kv=4,
                           head_dim=256, window=4096),
    "gpt_oss": partial(_attention, kinds=partial(_every, period=2, default=128), head_dim=64,
                       window=128),
    "cohere2": partial(_attention, kinds=partial(_every, period=4, default=4096), kv=None,
                       window=4096),
    "olmo3": partial(_attention, kinds=partial(_every, period=4, default=4096), kv=None,
                     window=4096),
    "exaone4": partial(_attention, kinds=partial(_every, period=4, default=4096), window=4096),
    "llama4_text": partial(_attention, kinds=_llama4, head_dim=128),
    "mimo_v2_flash": _mimo,
    **_alike(("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite"), _mla),
    **_alike(("deepseek_v32", "glm_moe_dsa"), partial(_mla, indexed=True)),
    "longcat_flash": partial(_mla, per_layer=2),  # two attentions in each of its num_layers
    "gpt2": partial(_multi_head, layers="n_layer", heads="n_head", width="n_embd",
                    kv_heads=_as_many),
    "gptj": partial(_multi_head, layers="n_layer", heads="n_head", width="n_embd",
                    kv_heads=_as_many),
    "gpt_bigcode": partial(_multi_head, layers="n_layer", heads="n_head", width="n_embd",
                           kv_heads=_one_if_multi_query),
    "bloom": partial(_multi_head, layers="n_layer", heads="n_head", width="hidden_size",
                     kv_heads=_as_many),
    "mpt": partial(_multi_head, layers="n_layers", heads="n_heads", width="d_model",
                   kv_heads=_in_attn_config),
    "dbrx": partial(_multi_head, layers="n_layers", heads="n_heads", width="d_model",
                    kv_heads=_in_attn_config),
    **_alike(("gpt_neox", "opt"),
                    partial(_multi_head, layers="num_hidden_layers", heads=_HEADS_KEY,
                            width="hidden_size", kv_heads=_as_many)),
    "falcon": partial(_multi_head, layers="num_hidden_layers", heads=_HEADS_KEY,
                      width="hidden_size", kv_heads=_falcon),
    "chatglm": _chatglm,
    **_alike(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _qwen3_next),
    "jamba": _jamba,
    "nemotron_h": _nemotron_h,
    "granitemoehybrid": _granite_hybrid,
    "bamba": _bamba,
    "falcon_h1": _falcon_h1,
    **_alike(("minimax", "minimax_text_01", "minimax_m1"), _minimax),
    "kimi_linear": _kimi_linear,
    **_alike(("lfm2", "lfm2_moe"), _lfm2),
    **_alike(("mamba", "falcon_mamba", "mamba2"), _only_states),
})  # fmt: skip
"""``model_type`` of the language model → what its layers keep."""
