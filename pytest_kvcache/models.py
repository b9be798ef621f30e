"""What a token's KV costs in each model; bytes per token are derived, never stored.

Pure values, and one reader of the user's TOML file; imports nothing of the package
but ``errors``.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import (
    OptionError,
    ResultError,
    UnavailableError,
    UnknownNameError,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping

DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {"bfloat16": 2, "float16": 2, "float32": 4, "float8": 1, "fp8": 1, "int8": 1}
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # part of test ids and file names


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape of one model's KV cache.

    Either attention heads (``kv_heads``, ``head_dim``; MHA, GQA, MQA) or a latent
    (``kv_lora_rank``, ``rope_dim``; MLA), never both. ``q_heads`` and ``hidden`` inform
    only, except that an absent ``head_dim`` is ``hidden / q_heads``. Every layer is
    taken to keep every token, so a model with sliding windows is an upper bound.
    Raises ``OptionError``, for the dtype ``UnknownNameError``.
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
    note: str = ""

    def __post_init__(self) -> None:
        self._check_texts()
        self._check_numbers()
        self._check_family()
        if self.kv_heads is not None and self.head_dim is None:
            object.__setattr__(self, "head_dim", self._derived_head_dim())

    @property
    def bytes_per_token(self) -> int:
        """KV bytes of one token over all layers, unsharded.

        MHA and GQA (one K and one V per layer; Ainslie et al. 2023, arXiv:2305.13245):
        ``layers · kv_heads · head_dim · 2 · dtype bytes``. MLA (one latent and one
        decoupled key per layer; DeepSeek-V2, arXiv:2405.04434, section 2.1):
        ``layers · (kv_lora_rank + rope_dim) · dtype bytes``.
        """
        if self.kv_lora_rank is not None and self.rope_dim is not None:
            elements = self.kv_lora_rank + self.rope_dim
        else:
            assert self.kv_heads is not None
            assert self.head_dim is not None
            elements = self.kv_heads * self.head_dim * 2
        return self.layers * elements * DTYPE_BYTES[self.dtype]

    def shard_bytes_per_token(self, tensor_parallel: int) -> int:
        """KV bytes of one token in one of ``min(tensor_parallel, kv_heads)`` shards.

        MLA is replicated: a shard is the whole. Raises ``OptionError`` where heads
        would have to be cut.
        """
        if tensor_parallel < 1:
            raise OptionError(f"--kv-tensor-parallel is {tensor_parallel}; it must be at least 1")
        if self.kv_heads is None:
            return self.bytes_per_token
        shards = min(tensor_parallel, self.kv_heads)
        if self.kv_heads % shards:
            divisors = [n for n in range(1, self.kv_heads + 1) if self.kv_heads % n == 0]
            raise OptionError(
                f"--kv-tensor-parallel is {tensor_parallel}; it must divide the "
                f"{self.kv_heads} KV heads of {self.name} (or exceed them): "
                f"{', '.join(map(str, divisors))}"
            )
        return self.bytes_per_token // shards

    def block_bytes(self, block_tokens: int, tensor_parallel: int) -> int:
        """KV bytes of one shard of a block of ``block_tokens`` tokens.

        A multiple of ``layers``: one layer of the block is ``block_bytes // layers``.
        """
        if block_tokens < 1:
            raise OptionError(f"--kv-block-tokens is {block_tokens}; it must be at least 1")
        return block_tokens * self.shard_bytes_per_token(tensor_parallel)

    def to_json(self) -> dict[str, Any]:
        """Return every field by name, None where it does not apply."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Read back ``to_json``; ``ResultError`` if keys are absent or unknown."""
        wanted = {field.name for field in fields(cls)}
        if wrong := wanted ^ set(data):
            raise ResultError(
                f"model record {data.get('name')!r} must have exactly the keys of ModelSpec; "
                f"absent or unknown: {', '.join(sorted(wrong))}"
            )
        return cls(**data)

    def _check_texts(self) -> None:
        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise OptionError(
                f"a model is named {self.name!r}; a name must be letters, digits, '.', '_', "
                "'+' and '-', and begin with a letter or digit"
            )
        if not isinstance(self.note, str):
            raise OptionError(f"model {self.name}: note is {self.note!r}; it must be a string")
        if not (isinstance(self.dtype, str) and self.dtype in DTYPE_BYTES):
            option = f"model {self.name}: dtype"
            raise UnknownNameError("dtype", self.dtype, DTYPE_BYTES, option=option)

    def _check_numbers(self) -> None:
        optional = {
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "kv_lora_rank": self.kv_lora_rank,
            "rope_dim": self.rope_dim,
            "q_heads": self.q_heads,
            "hidden": self.hidden,
        }
        given = {key: value for key, value in optional.items() if value is not None}
        for key, value in {"layers": self.layers, **given}.items():
            if type(value) is not int:  # a bool is an int, and no size
                raise OptionError(
                    f"model {self.name}: {key} is {value!r}; it must be a whole number"
                )
            if value < 1:
                raise OptionError(f"model {self.name}: {key} is {value}; it must be at least 1")

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


def load_models(path: str) -> dict[str, ModelSpec]:
    """Return the models of a TOML file by name: one table per model, keys as in ModelSpec.

    ::

        ["my-model-1.5b"]  # quoted, because of the dot
        layers = 28
        kv_heads = 2
        head_dim = 128
        dtype = "bfloat16"

    Raises ``OptionError`` with file, table, key and rule; ``UnavailableError`` for
    ``sliding_window``.
    """
    tables = _read_toml(path)
    if not tables:
        raise OptionError(f"{path} holds no model; it must have a table per model: [my-model]")
    return {name: _model_of_table(path, name, table) for name, table in tables.items()}


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OptionError(
            f"{path} can't be read: {error.strerror or error}; it must be a TOML file of models"
        ) from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise OptionError(f"{path} is not valid TOML: {error}; correct the file") from error


def _model_of_table(path: str, name: str, table: object) -> ModelSpec:
    if not isinstance(table, dict):
        raise OptionError(f"{path}: {name} is outside a table; put it below a [my-model] line")
    where = f"{path} [{name}]"
    if name in MODELS:  # two shapes under one name would be compared as one
        raise OptionError(f"{where} is the name of a shipped model; give yours another name")
    _check_keys(where, name, table)
    try:
        return ModelSpec(name=name, **table)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error


def _check_keys(where: str, name: str, table: Mapping[str, object]) -> None:
    if "sliding_window" in table:
        raise UnavailableError(
            f"{where} sliding_window",
            table["sliding_window"],
            "sizes are the upper bound at which every layer keeps every token; "
            "remove the key and say so in note",
        )
    known = [field.name for field in fields(ModelSpec) if field.name != "name"]
    for key, value in table.items():
        if key in known:
            continue
        if isinstance(value, dict):  # [a.b] is table b in table a
            raise OptionError(
                f'{where} holds a table {key!r}; quote a name that has a dot: ["{name}.{key}"]'
            )
        raise OptionError(f"{where} has an unknown key {key!r}; known are {', '.join(known)}")
    for key in ("layers", "dtype"):
        if key not in table:
            raise OptionError(f"{where} lacks {key}; every model must give layers and dtype")


def _by_name(*models: ModelSpec) -> Mapping[str, ModelSpec]:
    return MappingProxyType({model.name: model for model in models})


# Shapes as the MLPerf Storage v3.0 KV Cache benchmark gives them; two bytes per element.
MODELS: Mapping[str, ModelSpec] = _by_name(
    ModelSpec(
        name="tiny-1b",
        layers=12,
        hidden=1024,
        q_heads=8,
        kv_heads=4,
        head_dim=128,
        dtype="float16",
        note="synthetic",
    ),
    ModelSpec(
        name="mistral-7b",
        layers=32,
        hidden=4096,
        q_heads=32,
        kv_heads=8,
        head_dim=128,
        dtype="bfloat16",
        note="upper bound for v0.1, whose layers slide over 4,096 tokens",
    ),
    ModelSpec(
        name="llama2-7b",
        layers=32,
        hidden=4096,
        q_heads=32,
        kv_heads=32,
        head_dim=128,
        dtype="float16",
    ),
    ModelSpec(
        name="llama3.1-8b",
        layers=32,
        hidden=4096,
        q_heads=32,
        kv_heads=8,
        head_dim=128,
        dtype="bfloat16",
    ),
    ModelSpec(
        name="llama3.1-70b-instruct",
        layers=80,
        hidden=8192,
        q_heads=64,
        kv_heads=8,
        head_dim=128,
        dtype="bfloat16",
    ),
    ModelSpec(
        name="deepseek-v3",
        layers=61,
        hidden=7168,
        kv_lora_rank=512,
        rope_dim=64,
        dtype="bfloat16",
        note="MLA: the latent is replicated, not sharded",
    ),
    ModelSpec(
        name="qwen3-32b",
        layers=64,
        hidden=5120,
        q_heads=64,
        kv_heads=8,
        head_dim=128,
        dtype="bfloat16",
        note="head_dim is explicit, not hidden / q_heads",
    ),
    ModelSpec(
        name="gpt-oss-120b",
        layers=36,
        hidden=2880,
        q_heads=64,
        kv_heads=8,
        head_dim=64,
        dtype="bfloat16",
        note="upper bound: every 2nd layer slides over 128 tokens, which is not modelled",
    ),
    ModelSpec(
        name="gpt-oss-20b",
        layers=24,
        hidden=2880,
        q_heads=64,
        kv_heads=8,
        head_dim=64,
        dtype="bfloat16",
        note="upper bound: every 2nd layer slides over 128 tokens, which is not modelled",
    ),
)
