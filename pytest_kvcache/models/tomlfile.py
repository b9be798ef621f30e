"""The user's own models: a TOML file with a table each.

Imports nothing of the package but ``errors``, ``tomlfile`` and the models.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError
from pytest_kvcache.models.groups import LayerGroup
from pytest_kvcache.models.shipped import MODELS
from pytest_kvcache.models.spec import ModelSpec
from pytest_kvcache.tomlfile import read_toml

if TYPE_CHECKING:
    from collections.abc import Mapping


def load_models(path: str) -> dict[str, ModelSpec]:
    """Return the models of a TOML file by name: one table per model, keys as in ModelSpec.

    ::

        ["my-model-1.5b"]  # quoted, because of the dot
        layers = 28
        kv_heads = 2
        head_dim = 128
        dtype = "bfloat16"

    Where layers keep different things, ``[["my-model".groups]]`` tables with the keys of
    `LayerGroup` take the place of ``kv_heads`` and the like. Raises ``OptionError`` with file,
    table, key and rule.
    """
    tables = read_toml(path, "--kv-model", "a TOML file of models")
    if not tables:
        raise OptionError(f"{path} holds no model; it must have a table per model: [my-model]")
    return {name: _model_of_table(path, name, table) for name, table in tables.items()}


def _model_of_table(path: str, name: str, table: object) -> ModelSpec:
    if not isinstance(table, dict):
        raise OptionError(f"{path}: {name} is outside a table; put it below a [my-model] line")
    where = f"{path} [{name}]"
    if name in MODELS:  # two shapes under one name would be compared as one
        raise OptionError(f"{where} is the name of a shipped model; give yours another name")
    _check_keys(where, name, table)
    groups = tuple(_group(where, one) for one in _listed_groups(where, table))
    try:
        return ModelSpec(**{**table, "name": name, "groups": groups})
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error


def _listed_groups(where: str, table: Mapping[str, object]) -> list[object]:
    found = table.get("groups", [])
    if not isinstance(found, list):
        raise OptionError(f"{where} groups is {found!r}; it must be a list of tables")
    return found


def _group(where: str, table: object) -> LayerGroup:
    known = [field.name for field in fields(LayerGroup)]
    if not isinstance(table, dict):
        raise OptionError(f"{where} groups holds {table!r}; it must hold tables")
    for key in table:
        if key not in known:
            raise OptionError(
                f"{where} groups has an unknown key {key!r}; known are {', '.join(known)}"
            )
    for key in ("kind", "layers"):
        if key not in table:
            raise OptionError(f"{where} groups lacks {key}; every group must give kind and layers")
    try:
        return LayerGroup(**table)
    except OptionError as error:
        raise OptionError(f"{where} {error}") from error


def _check_keys(where: str, name: str, table: Mapping[str, object]) -> None:
    if "sliding_window" in table:
        raise OptionError(
            f"{where} has sliding_window; layers that slide must be a group of their own:"
            f' [["{name}".groups]] with kind = "sliding", window_tokens, layers, kv_heads, head_dim'
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
