"""One object of a ``config.json``, read key by key: what is wrong is named with file and key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "half": "float16", "float32": "float32",
           "float": "float32"}  # fmt: skip
_STATE_DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
# Where a configuration has no dtype: the only one in which engines compute such weights
# (vLLM, quantization/mxfp4.py: get_supported_act_dtypes).
_ONLY_DTYPE = {"mxfp4": "bfloat16"}
_REQUIRED: Any = object()


class Keys:
    """The keys of one object; ``file`` and ``path`` say where it is."""

    def __init__(self, file: str, data: Mapping[str, Any], path: str = "") -> None:
        self._file = file
        self._data = data
        self._path = path
        self._outer: Keys | None = None

    def where(self, key: str) -> str:
        """What an error calls a key."""
        return f"{self._file}: {self._path}{key}"

    def names(self) -> Sequence[str]:
        """All keys that are there."""
        return tuple(self._data)

    def has(self, key: str) -> bool:
        """Whether it is there, and not null."""
        return self._data.get(key) is not None

    def get(self, key: str) -> Any:
        """Its value, whatever it is; None: absent or null."""
        return self._data.get(key)

    def within(self, key: str) -> Keys:
        """The object that a key holds."""
        found = self._data[key]
        if not isinstance(found, dict):
            raise OptionError(f"{self.where(key)} is {found!r}; it must be a JSON object")
        inner = Keys(self._file, found, f"{self._path}{key}.")
        inner._outer = self
        return inner

    def lacks(self, key: str, why: str = "") -> OptionError:
        """The error of a key that is needed and is not there."""
        of = self._data.get("model_type")
        what = f"a {of} model" if isinstance(of, str) else "a model"
        return OptionError(
            f"{self._file}: lacks {self._path}{key}; {what} must have it{why}, so complete the file"
        )

    def text(self, key: str) -> str:
        """A string that must be there."""
        if not self.has(key):
            raise self.lacks(key)
        value = self._data[key]
        if not isinstance(value, str):
            raise OptionError(f"{self.where(key)} is {value!r}; it must be a string")
        return value

    def count(self, key: str, default: Any = _REQUIRED, *, least: int = 1) -> int:
        """A whole number; ``default`` where the key is absent or null."""
        if not self.has(key):
            if default is _REQUIRED:
                raise self.lacks(key)
            return int(default)
        value = self._data[key]
        if type(value) is not int:
            raise OptionError(f"{self.where(key)} is {value!r}; it must be a whole number")
        if value < least:
            raise OptionError(f"{self.where(key)} is {value}; it must be at least {least}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """A truth value; ``default`` where the key is absent or null."""
        if not self.has(key):
            return default
        value = self._data[key]
        if not isinstance(value, bool):
            raise OptionError(f"{self.where(key)} is {value!r}; it must be true or false")
        return value

    def window(self, key: str, default: int | None = None) -> int | None:
        """A window in tokens, None where null says that there is none; absent: ``default``."""
        if key not in self._data:
            return default
        return self.count(key) if self.has(key) else None

    def per_layer(self, key: str, layers: int, known: Mapping[Any, str]) -> list[str]:
        """What a list says of each layer, in our words."""
        value = self._data.get(key)
        if not isinstance(value, list) or len(value) != layers:
            length = f"{len(value)} entries" if isinstance(value, list) else repr(value)
            raise OptionError(
                f"{self.where(key)} has {length}; it must be a list with one for each of the"
                f" {layers} layers"
            )
        found = []
        for number, one in enumerate(value):
            kind = None if isinstance(one, (list, dict)) else known.get(one)
            if kind is None:
                raise OptionError(
                    f"{self.where(key)}[{number}] is {one!r}; what such a layer keeps is not known"
                    f" here, known are {', '.join(map(str, known))}"
                )
            found.append(kind)
        return found

    def dtype(self, root: Keys) -> str:
        """The type that the model computes in: its own, else that of the whole."""
        for part in (self, root):
            for key in ("dtype", "torch_dtype"):
                if not part.has(key):
                    continue
                value = str(part.get(key)).removeprefix("torch.")
                if value not in _DTYPES:
                    raise OptionError(
                        f"{part.where(key)} is {part.get(key)!r}; it must be one of"
                        f" {', '.join(_DTYPES)}, or give the stored type with --kv-kv-dtype"
                    )
                return _DTYPES[value]
        for part in (self, root):
            quantization = part.get("quantization_config")
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            if method in _ONLY_DTYPE:
                return _ONLY_DTYPE[method]
        raise self.lacks("torch_dtype", " (or dtype, or --kv-kv-dtype)")

    def state_dtype_bytes(self, *names: str, default: str | None = None) -> int:
        """Bytes of an element of a state: the type that a key names, else the model's.

        vLLM's ``mamba_ssm_cache_dtype: auto``; SGLang keeps float32 where no key says so.
        ``default``: what the class of the configuration says then.
        """
        for key in names:
            if self.has(key):
                value = self._data[key]
                if value not in _STATE_DTYPES:
                    raise OptionError(
                        f"{self.where(key)} is {value!r}; it must be one of"
                        f" {', '.join(_STATE_DTYPES)}"
                    )
                return _STATE_DTYPES[value]
        if default is not None:
            return _STATE_DTYPES[default]
        root = self
        while root._outer is not None:
            root = root._outer
        return _STATE_DTYPES[self.dtype(root)]
