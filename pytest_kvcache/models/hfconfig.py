"""A model as its Hugging Face ``config.json`` describes it.

What a key means, and what holds where it is absent, is what transformers 5.24.0 makes of it
(``models/*/configuration_*.py``); how large a state is, what vLLM allocates for it
(``model_executor/layers/mamba/mamba_utils.py``). A kind of model whose cache is not known
here is refused. Imports nothing of the package but ``errors``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.dtypes import AUTO
from pytest_kvcache.errors import OptionError, did_you_mean
from pytest_kvcache.models.hfkeys import Keys
from pytest_kvcache.models.hftypes import READERS
from pytest_kvcache.models.shipped import MODELS
from pytest_kvcache.models.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = "config.json"
# Where a multimodal model describes the language model within it.
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_FLOAT8 = ("FP8", "FLOAT8", "FP8_E4M3", "FP8_E5M2")


def is_config(name: str) -> bool:
    """Whether ``--kv-model`` names a configuration, or a directory that holds one."""
    return name.endswith(".json") or (Path(name) / CONFIG).is_file()


def load_config(path: str, kv_dtype: str | None = None) -> ModelSpec:
    """The model of a configuration, or of the one in a directory.

    ``kv_dtype`` takes the place of the type of KV that the file gives, None and ``auto`` do
    not. Raises ``OptionError`` with file, key and rule.
    """
    file = Path(path)
    if file.is_dir():
        file /= CONFIG
    root = Keys(str(file), _read_json(file))
    keys = _language_model(root)
    model_type = keys.text("model_type")
    reader = READERS.get(model_type)
    if reader is None:
        raise OptionError(
            f"{file}: model_type is {model_type!r}{did_you_mean(model_type, READERS)}, whose cache"
            " is not known here; describe it in a TOML file of models (docs/models.md), or use a"
            " model of a known kind"
        )
    shape = reader(keys)
    dtype = kv_dtype if kv_dtype not in (None, AUTO) else _kv_dtype(root, keys, file)
    name = _name_of(file)
    try:
        model = ModelSpec(name=name, dtype=str(dtype), source=str(file.name), **shape)
    except OptionError as error:
        raise OptionError(f"{file}: {error}") from error
    _check_name(model, file)
    return model


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OptionError(
            f"--kv-model: {file} can't be read: {error.strerror or error}; it must be a model's"
            f" {CONFIG}"
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise OptionError(f"{file} is not valid JSON: {error}; correct the file") from error
    if not isinstance(data, dict):
        raise OptionError(f"{file} holds {type(data).__name__}; it must hold one JSON object")
    return data


def _language_model(keys: Keys) -> Keys:
    """The part that describes the language model: itself, unless one is nested."""
    for name in _NESTED:
        if keys.has(name):
            return _language_model(keys.within(name))
    return keys


def _name_of(file: Path) -> str:
    """The directory's name, as a repository has one; of a file of another name, its own."""
    directory = file.resolve().parent
    if directory.parent.name == "snapshots":  # the cache of huggingface_hub
        directory = directory.parent.parent
    stem = directory.name if file.name == CONFIG else file.stem.removesuffix("_config")
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", stem.rpartition("--")[2]).lstrip("._+-")
    return name or "model"


def _check_name(model: ModelSpec, file: Path) -> None:
    """Two shapes under one name would be compared as one."""
    known = MODELS.get(model.name)
    if known is None or (known.layer_groups, known.dtype) == (model.layer_groups, model.dtype):
        return
    raise OptionError(
        f"{file} would be called {model.name}, which is a shipped model of another shape or dtype;"
        f" give the directory (or the file, if it is not {CONFIG}) another name"
    )


# --- what KV is stored as -------------------------------------------------------------------


def _kv_dtype(root: Keys, keys: Keys, file: Path) -> str:
    """The type of KV that a quantization names, else the model's own."""
    for part in (keys, root):
        if part.has("quantization_config"):
            found = _quantized_kv(part.within("quantization_config"))
            if found is not None:
                return found
    beside = file.with_name("hf_quant_config.json")  # NVIDIA's ModelOpt
    if file.name == CONFIG and beside.is_file():
        found = _quantized_kv(Keys(str(beside), _read_json(beside)))
        if found is not None:
            return found
    return keys.dtype(root)


def _quantized_kv(keys: Keys) -> str | None:
    """What a quantization makes of KV: fp8, int8, or None where it leaves it alone."""
    if keys.has("quantization"):
        return _quantized_kv(keys.within("quantization"))
    for name in keys.names():
        value = keys.get(name)
        if not name.startswith("kv_cache") or value is None:
            continue
        if isinstance(value, dict):  # compressed-tensors
            found = {("float", 8): "fp8", ("int", 8): "int8"}.get(
                (str(value.get("type")), value.get("num_bits", 0))
            )
        else:  # ModelOpt
            text = str(value).upper()
            found = "fp8" if text in _FLOAT8 else {"INT8": "int8"}.get(text)
        if found is None or name not in ("kv_cache_scheme", "kv_cache_quant_algo"):
            raise OptionError(
                f"{keys.where(name)} is {value!r}; it must be of 8 bits as compressed-tensors"
                " (kv_cache_scheme) or ModelOpt (kv_cache_quant_algo) write it, so give the stored"
                " type with --kv-kv-dtype"
            )
        return found
    return None
