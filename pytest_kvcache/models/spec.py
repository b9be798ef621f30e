"""What a context costs in a model; every size is derived from its layers, never stored.

Pure values; imports nothing of the package but ``errors``.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pytest_kvcache.dtypes import AUTO, DTYPE_BYTES
from pytest_kvcache.errors import OptionError, ResultError, UnknownNameError
from pytest_kvcache.models.groups import FULL, STATE, LayerGroup, check_count

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # part of test ids and file names


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape of one model's KV cache.

    Where all its layers keep every token: attention heads (``kv_heads``, ``head_dim``; MHA,
    GQA, MQA) or a latent (``kv_lora_rank``, ``rope_dim``; MLA), never both. Else ``groups``, and
    none of these: a group has layers of one kind and shape. ``layers`` counts all of them, with
    a state or KV. ``q_heads`` and ``hidden`` inform only, except that an absent ``head_dim`` is
    ``hidden / q_heads``. ``dtype`` is that of the stored KV; ``source`` says where the figures
    are from. Raises ``OptionError``, for the dtype ``UnknownNameError``.
    """

    name: str
    layers: int
    dtype: str
    kv_heads: int | None = None
    head_dim: int | None = None
    kv_lora_rank: int | None = None
    rope_dim: int | None = None
    q_heads: int | None = None
    hidden: int | None = None
    groups: tuple[LayerGroup, ...] = ()
    note: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        self._check_texts()
        self._check_numbers()
        if self.groups:
            self._check_groups()
            return
        self._check_family()
        if self.kv_heads is not None and self.head_dim is None:
            object.__setattr__(self, "head_dim", self._derived_head_dim())

    @property
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """All its layers, by what they keep; never empty."""
        return self.groups or (
            LayerGroup(
                kind=FULL,
                layers=self.layers,
                kv_heads=self.kv_heads,
                head_dim=self.head_dim,
                kv_lora_rank=self.kv_lora_rank,
                rope_dim=self.rope_dim,
            ),
        )

    @property
    def keeps_all(self) -> bool:
        """Whether every layer keeps every token, all in one object of a block."""
        return len(self.layer_groups) == 1 and self.layer_groups[0].kind == FULL

    @property
    def bytes_per_token(self) -> int:
        """KV bytes of one token over all layers, unsharded, as long as it is in every window."""
        return sum(group.token_bytes(self.dtype) for group in self.layer_groups)

    @property
    def bytes_per_late_token(self) -> int:
        """KV bytes that a context grows by with a token, once it is longer than every window."""
        return sum(
            group.token_bytes(self.dtype)
            for group in self.layer_groups
            if group.window_tokens is None
        )

    @property
    def state_bytes(self) -> int:
        """Bytes that a context has whatever its length, unsharded."""
        return sum(group.held_state_bytes for group in self.layer_groups)

    def context_bytes(self, tokens: int) -> int:
        """What a context of so many tokens has at most, unsharded."""
        return sum(group.context_bytes(tokens, self.dtype) for group in self.layer_groups)

    def shard_bytes_per_token(self, tensor_parallel: int) -> int:
        """KV bytes of one token in one of ``min(tensor_parallel, kv_heads)`` shards.

        MLA is replicated: a shard is the whole. Raises ``OptionError`` where heads
        would have to be cut.
        """
        _check_tensor_parallel(tensor_parallel)
        return sum(
            group.token_bytes(self.dtype) // group.shards(tensor_parallel, self.name)
            for group in self.layer_groups
        )

    def group_bytes(self, block_tokens: int, tensor_parallel: int) -> tuple[int, ...]:
        """Bytes of one shard of what each group of layers stores of a block."""
        if block_tokens < 1:
            raise OptionError(f"--kv-block-tokens is {block_tokens}; it must be at least 1")
        _check_tensor_parallel(tensor_parallel)
        return tuple(
            group.block_bytes(block_tokens, self.dtype, tensor_parallel, self.name)
            for group in self.layer_groups
        )

    def block_bytes(self, block_tokens: int, tensor_parallel: int) -> int:
        """Bytes of one shard of all that is stored of a block of ``block_tokens`` tokens."""
        return sum(self.group_bytes(block_tokens, tensor_parallel))

    def with_kv_dtype(self, dtype: str | None) -> ModelSpec:
        """The same with another type of stored KV; None and ``auto``: its own."""
        return self if dtype in (None, AUTO) else replace(self, dtype=dtype)

    def without_windows(self) -> ModelSpec:
        """The same with every token kept by every layer, in one object: an upper bound.

        So it is to a benchmark that knows no windows. ``OptionError`` where a layer keeps a
        state, or layers differ in shape.
        """
        shapes = {
            replace(group, kind=FULL, layers=1, window_tokens=None)
            for group in self.layer_groups
            if group.kind != STATE
        }
        if len(shapes) != 1 or self.state_bytes:
            kinds = ", ".join(dict.fromkeys(group.kind for group in self.layer_groups))
            raise OptionError(
                f"model {self.name}: its layers ({kinds}) keep what has no common size of a token;"
                " it must be a model whose layers have KV of one shape, so choose another one"
            )
        (shape,) = shapes
        return replace(self, groups=(replace(shape, layers=self.layers),)) if self.groups else self

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, None where it does not apply."""
        return {**asdict(self), "groups": [group.to_json() for group in self.groups]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Read back ``to_json``; ``ResultError`` if keys are absent or unknown."""
        wanted = {field.name for field in fields(cls)}
        if wrong := wanted ^ set(data):
            raise ResultError(
                f"model record {data.get('name')!r} must have exactly the keys of ModelSpec; "
                f"absent or unknown: {', '.join(sorted(wrong))}"
            )
        groups = data["groups"]
        if not isinstance(groups, list) or not all(isinstance(one, dict) for one in groups):
            raise ResultError(
                f"model record {data['name']!r} has groups {groups!r}; they must be a list of"
                " objects"
            )
        return cls(**{**data, "groups": tuple(map(LayerGroup.from_json, groups))})

    def _check_texts(self) -> None:
        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise OptionError(
                f"a model is named {self.name!r}; a name must be letters, digits, '.', '_', "
                "'+' and '-', and begin with a letter or digit"
            )
        for key, text in {"note": self.note, "source": self.source}.items():
            if not isinstance(text, str):
                raise OptionError(f"model {self.name}: {key} is {text!r}; it must be a string")
        if not (isinstance(self.dtype, str) and self.dtype in DTYPE_BYTES):
            option = f"model {self.name}: dtype"
            raise UnknownNameError("dtype", self.dtype, DTYPE_BYTES, option=option)

    def _check_numbers(self) -> None:
        if self.layers is None:
            raise OptionError(f"model {self.name}: layers is None; it must be a whole number")
        for key in ("layers", *_SHAPE, "q_heads", "hidden"):
            check_count(f"model {self.name}: {key}", getattr(self, key))

    def _check_groups(self) -> None:
        if both := [key for key in _SHAPE if getattr(self, key) is not None]:
            raise OptionError(
                f"model {self.name}: has {both[0]} and groups; it must have one of them,"
                f" so put {both[0]} into its group"
            )
        counted = sum(group.layers for group in self.groups)
        # A layer with attention beside a state space counts in two groups (Falcon-H1).
        if not max(group.layers for group in self.groups) <= self.layers:
            raise OptionError(
                f"model {self.name}: layers is {self.layers}; a group must not have more, and its"
                f" groups have {counted} in all"
            )

    def _check_family(self) -> None:
        heads = {"kv_heads": self.kv_heads, "head_dim": self.head_dim}
        latent = {"kv_lora_rank": self.kv_lora_rank, "rope_dim": self.rope_dim}
        has_heads, has_latent = (
            [key for key, value in family.items() if value is not None]
            for family in (heads, latent)
        )
        rule = "it must have kv_heads and head_dim, or for MLA kv_lora_rank and rope_dim"
        if has_heads and has_latent:
            raise OptionError(f"model {self.name}: has {has_heads[0]} and {has_latent[0]}; {rule}")
        lacking = set(latent) - set(has_latent) if has_latent else {"kv_heads"} - set(has_heads)
        if lacking:
            raise OptionError(f"model {self.name}: lacks {lacking.pop()}; {rule}")
        if self.kv_heads and self.q_heads and self.q_heads % self.kv_heads:
            raise OptionError(
                f"model {self.name}: q_heads is {self.q_heads}; it must be a multiple of "
                f"kv_heads, which is {self.kv_heads}"
            )

    def _derived_head_dim(self) -> int:
        if self.hidden is None or self.q_heads is None or self.hidden % self.q_heads:
            raise OptionError(
                f"model {self.name}: lacks head_dim, and hidden {self.hidden} over q_heads "
                f"{self.q_heads} makes no whole number; give head_dim"
            )
        return self.hidden // self.q_heads


_SHAPE = ("kv_heads", "head_dim", "kv_lora_rank", "rope_dim")


def _check_tensor_parallel(tensor_parallel: int) -> None:
    if tensor_parallel < 1:
        raise OptionError(f"--kv-tensor-parallel is {tensor_parallel}; it must be at least 1")
