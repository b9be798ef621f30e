"""Layers of a model that keep the same of a context: one group of its KV cache, one object.

vLLM divides the layers so, and its offloading stores and loads group by group
(``v1/kv_cache_interface.py``; ``kv_connector/v1/offloading/scheduler.py``); SGLang keeps a
pool per kind (``srt/mem_cache``). Pure values; imports nothing of the package but ``errors``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.dtypes import DTYPE_BYTES
from pytest_kvcache.errors import OptionError, ResultError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping

FULL: Final = "full"
SLIDING: Final = "sliding"
CHUNKED: Final = "chunked"
STATE: Final = "state"
KINDS: Final = (FULL, SLIDING, CHUNKED, STATE)

_HEADS = ("kv_heads", "head_dim", "v_head_dim")
_LATENT = ("kv_lora_rank", "rope_dim", "index_bytes")
_STATE = ("state_bytes", "state_heads", "state_groups", "group_state_bytes")
_FAMILY_RULE = "it must have kv_heads and head_dim, or for MLA kv_lora_rank and rope_dim"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """``layers`` layers of one ``kind`` and one shape.

    ``full``, ``sliding`` and ``chunked`` attention keep KV of tokens: of all, of the last
    ``window_tokens``, of those since the last multiple of ``window_tokens``. Their shape is
    heads (``kv_heads``, ``head_dim``, ``v_head_dim`` where values are not as wide as keys) or
    a latent (``kv_lora_rank``, ``rope_dim``), beside which a sparse attention keeps
    ``index_bytes`` of a token, whatever the dtype. A ``state`` layer (linear attention, state
    space, short convolution) keeps ``state_bytes`` however long the context is, which
    tensor parallelism divides by its ``state_heads``, and ``group_state_bytes`` for each of its
    ``state_groups``, which more shards than groups copy. Raises ``OptionError``.
    """

    kind: str
    layers: int
    kv_heads: int | None = None
    head_dim: int | None = None
    v_head_dim: int | None = None
    kv_lora_rank: int | None = None
    rope_dim: int | None = None
    index_bytes: int | None = None
    window_tokens: int | None = None
    state_bytes: int | None = None
    state_heads: int | None = None
    state_groups: int | None = None
    group_state_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("kind of layers", self.kind, KINDS, option="groups: kind")
        if self.layers is None:
            raise OptionError(f"groups: {self.kind}: lacks layers; it must be a whole number")
        for field in fields(self)[1:]:
            check_count(f"groups: {self.kind}: {field.name}", getattr(self, field.name))
        needed, allowed = self._keys()
        given = [field.name for field in fields(self)[2:] if getattr(self, field.name) is not None]
        if odd := [key for key in given if key not in allowed]:
            raise OptionError(
                f"groups: {self.kind}: has {odd[0]}; it must have {', '.join(needed)}"
                f" and nothing but {', '.join(allowed)}"
            )
        for key in needed:
            if getattr(self, key) is None:
                raise OptionError(f"groups: {self.kind}: lacks {key}; {self._rule()}")
        if self.state_bytes and self.state_heads and self.state_bytes % self.state_heads:
            raise OptionError(
                f"groups: {self.kind}: state_bytes is {self.state_bytes}; it must be a multiple of"
                f" state_heads, which is {self.state_heads}"
            )

    def _keys(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What it needs, and all that it may have."""
        if self.kind == STATE:
            return _STATE[:2], _STATE
        is_latent = self.kv_lora_rank is not None or self.rope_dim is not None
        shape = _LATENT if is_latent else _HEADS
        window = () if self.kind == FULL else ("window_tokens",)
        return (*shape[:2], *window), (*shape, *window)

    def _rule(self) -> str:
        if self.kind == STATE:
            return "it must have state_bytes of a layer and the state_heads that divide them"
        return _FAMILY_RULE + ("" if self.kind == FULL else ", and window_tokens")

    # --- of a token, of a state ------------------------------------------------------------

    def token_bytes(self, dtype: str) -> int:
        """KV bytes of one token in all its layers, unsharded; 0: it keeps a state.

        MHA and GQA (one K and one V per layer; Ainslie et al. 2023, arXiv:2305.13245):
        ``layers · kv_heads · (head_dim + v_head_dim) · dtype bytes``. MLA (one latent and one
        decoupled key per layer; DeepSeek-V2, arXiv:2405.04434, section 2.1):
        ``layers · ((kv_lora_rank + rope_dim) · dtype bytes + index_bytes)``.
        """
        if self.kind == STATE:
            return 0
        if self.kv_lora_rank is not None and self.rope_dim is not None:
            elements = self.kv_lora_rank + self.rope_dim
        else:
            assert self.kv_heads is not None
            assert self.head_dim is not None
            elements = self.kv_heads * (self.head_dim + (self.v_head_dim or self.head_dim))
        return self.layers * (elements * DTYPE_BYTES[dtype] + (self.index_bytes or 0))

    @property
    def held_state_bytes(self) -> int:
        """Bytes of the state of all its layers, unsharded; 0: it keeps tokens."""
        return self.layers * ((self.state_bytes or 0) + self._group_state_bytes(1))

    def _group_state_bytes(self, shards: int) -> int:
        """What one of so many shards has of the groups of a state, one of them at least."""
        return -(-(self.state_groups or 0) // shards) * (self.group_state_bytes or 0)

    def context_bytes(self, tokens: int, dtype: str) -> int:
        """What a context of so many tokens has at most here; ``min(tokens, window)`` of them."""
        kept = tokens if self.window_tokens is None else min(tokens, self.window_tokens)
        return kept * self.token_bytes(dtype) + (self.held_state_bytes if tokens else 0)

    # --- of a shard ------------------------------------------------------------------------

    def shards(self, tensor_parallel: int, model: str) -> int:
        """In how many parts its bytes are cut; a latent in 1. ``OptionError``: it can't be."""
        heads = self.state_heads if self.kind == STATE else self.kv_heads
        if heads is None:
            return 1
        shards = min(tensor_parallel, heads)
        if heads % shards:
            divisors = [n for n in range(1, heads + 1) if heads % n == 0]
            what = "state heads" if self.kind == STATE else "KV heads"
            raise OptionError(
                f"--kv-tensor-parallel is {tensor_parallel}; it must divide the "
                f"{heads} {what} of {model} (or exceed them): "
                f"{', '.join(map(str, divisors))}"
            )
        return shards

    def block_bytes(self, block_tokens: int, dtype: str, tensor_parallel: int, model: str) -> int:
        """Bytes of one shard of what is stored of a block: its tokens, or the state after it.

        A multiple of ``layers``.
        """
        shards = self.shards(tensor_parallel, model)
        if self.kind == STATE:
            assert self.state_bytes is not None
            return self.layers * (self.state_bytes // shards + self._group_state_bytes(shards))
        return block_tokens * self.token_bytes(dtype) // shards

    def key_bytes(self, size: int) -> int | None:
        """Of so many bytes of heads, those of the keys; None: it has no keys apart from values."""
        if self.kind == STATE or self.head_dim is None:
            return None
        return size * self.head_dim // (self.head_dim + (self.v_head_dim or self.head_dim))

    # --- of a prefix -----------------------------------------------------------------------

    def read_blocks(self, hit_blocks: int, block_tokens: int) -> int:
        """Of so many leading hit blocks, how many last ones a request reads of this group.

        As vLLM's offloading connector: all of full attention, of a window the last
        ``ceil(window / block)``, of a state the last one. Of chunked attention those that
        hold tokens of the chunk in which the request goes on (vLLM's
        ``ChunkedLocalAttentionManager``).
        """
        if self.kind == STATE:
            return min(hit_blocks, 1)
        if self.window_tokens is None:
            return hit_blocks
        if self.kind == SLIDING:
            return min(hit_blocks, -(-self.window_tokens // block_tokens))
        hit_tokens = hit_blocks * block_tokens
        chunk = hit_tokens // self.window_tokens * self.window_tokens
        return hit_blocks - chunk // block_tokens

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, None where it does not apply."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerGroup:
        """Read back ``to_json``; ``ResultError`` if keys are absent or unknown."""
        if wrong := {field.name for field in fields(cls)} ^ set(data):
            raise ResultError(
                f"a group of layers {data.get('kind')!r} must have exactly the keys of LayerGroup;"
                f" absent or unknown: {', '.join(sorted(wrong))}"
            )
        return cls(**data)


def check_count(what: str, value: object) -> None:
    """``OptionError`` unless it is None or a whole number of at least 1."""
    if value is None:
        return
    if type(value) is not int:  # a bool is an int, and no size
        raise OptionError(f"{what} is {value!r}; it must be a whole number")
    if value < 1:
        raise OptionError(f"{what} is {value}; it must be at least 1")
