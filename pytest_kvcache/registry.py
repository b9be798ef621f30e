"""What exists by name: models, backends, workloads, launchers.

Built-ins register through the same hooks as plugins do. Rank-safe; imports neither
pytest nor MPI.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from pytest_kvcache import hookspecs
from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.backends.traits import BackendTraits
from pytest_kvcache.errors import OptionError, UnknownNameError
from pytest_kvcache.launchers.families import FAMILIES
from pytest_kvcache.models import MODELS, ModelSpec, is_config, load_config, load_models
from pytest_kvcache.workloads.mlperf import FAMILIES as MLPERF
from pytest_kvcache.workloads.replay import ReplayFamily
from pytest_kvcache.workloads.scenarios import SYNTHETIC, TRACE
from pytest_kvcache.workloads.synthetic import SyntheticFamily

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from types import ModuleType

    from pytest_kvcache.backends.protocol import BackendFactory
    from pytest_kvcache.launchers.family import LauncherFamily
    from pytest_kvcache.workloads.protocol import WorkloadFamily

_T = TypeVar("_T")

ENTRY_POINTS = "pytest_kvcache"
_OTHER_FILES = (".yaml", ".yml", ".safetensors", ".gguf")  # what people have of a model


BACKENDS: Mapping[str, BackendFactory] = {
    "file": StoreBackend, "memory": MemoryBackend, "null": NullBackend,
}  # fmt: skip
"""What this package brings; no plugin can register one of these names."""


class _BuiltIns:
    """What this package brings, through the public hooks."""

    @hookspecs.hookimpl
    def kvcache_models(self) -> Mapping[str, ModelSpec]:
        return MODELS

    @hookspecs.hookimpl
    def kvcache_backends(self) -> Mapping[str, BackendFactory]:
        return BACKENDS

    @hookspecs.hookimpl
    def kvcache_launchers(self) -> Mapping[str, LauncherFamily]:
        return FAMILIES

    @hookspecs.hookimpl
    def kvcache_workloads(self) -> Mapping[str, WorkloadFamily]:
        families: dict[str, WorkloadFamily] = {name: SyntheticFamily() for name in SYNTHETIC}
        families[TRACE] = ReplayFamily()
        return {**families, **MLPERF}


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Every known name of every kind."""

    models: Mapping[str, ModelSpec]
    backends: Mapping[str, BackendFactory]
    workloads: Mapping[str, WorkloadFamily]
    launchers: Mapping[str, LauncherFamily]

    def backend(self, name: str) -> BackendFactory:
        """What makes the backend and states its traits; UnknownNameError lists the known ones."""
        return _find("backend", name, self.backends)

    def workload(self, name: str, synthetic: Collection[str] = ()) -> WorkloadFamily:
        """The scenario's family.

        ``synthetic`` are those of the table of distributions, to which a file may add.
        """
        families = {**dict.fromkeys(synthetic, SyntheticFamily()), **self.workloads}
        return _find("scenario", name, families)

    def models_of(self, names: Sequence[str], kv_dtype: str | None = None) -> tuple[ModelSpec, ...]:
        """The models behind ``--kv-model``, their KV stored as ``kv_dtype`` if that is given.

        Names, TOML files with all they define, and ``config.json`` files or directories that
        hold one.
        """
        chosen: dict[str, ModelSpec] = {}
        for name in names:
            if name.endswith(".toml"):
                found = load_models(name)
            elif name.endswith(_OTHER_FILES):
                raise OptionError(_how_a_model_is_described(name))
            elif name not in self.models and (is_config(name) or os.sep in name):
                model = load_config(name, kv_dtype)
                found = {model.name: model}
            else:
                found = {name: _find("model", name, self.models)}
            for key, spec in found.items():
                if key in chosen:
                    raise OptionError(f"--kv-model names {key!r} twice; every model may come once")
                chosen[key] = spec.with_kv_dtype(kv_dtype)
        return tuple(chosen.values())


def _how_a_model_is_described(path: str) -> str:
    return (
        f"--kv-model is {path!r}; a file must be the model's config.json, or a TOML file"
        " (NAME.toml) with a table [my-model] of layers, kv_heads, head_dim and dtype"
    )


def _find(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    if name not in known:
        raise UnknownNameError(kind, name, known, option=f"--kv-{kind}")
    return known[name]


def _merge(kind: str, mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One mapping of all; a name that two plugins register is an error."""
    merged: dict[str, Any] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            if name in merged:
                raise OptionError(
                    f"the {kind} {name!r} is registered twice; names must be unique, known are"
                    f" {', '.join(sorted(merged))}"
                )
            merged[name] = value
    return merged


def _stating_traits(backends: Mapping[str, BackendFactory]) -> Mapping[str, BackendFactory]:
    """The backends; OptionError for one that does not say what it is like.

    There is no default: whatever it was, another kind of backend would be given a directory
    it has no use for, or have its capacity taken from a disk that it never writes to.
    """
    for name, factory in backends.items():
        traits = getattr(factory, "traits", None)
        if not isinstance(traits, BackendTraits):
            what = getattr(factory, "__qualname__", repr(factory))
            raise OptionError(
                f"the backend {name!r} ({what}) states {traits!r} as its traits; they must be a"
                " BackendTraits, as a class attribute 'traits' of what kvcache_backends registers"
                " (docs/backends.md shows one)"
            )
    return backends


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a stranger's module raises
        raise OptionError(
            f"--kv-plugin is {name!r}; it must be importable here and on every host:"
            f" {type(error).__name__}: {error}"
        ) from error


def build_registry(plugins: Sequence[str] = ()) -> Registry:
    """Collect all names from the built-ins, the entry points and the given modules.

    Raises OptionError for a module that can't be imported, an implementation of a hook
    that does not exist, and a duplicate name.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(_BuiltIns(), "built-in")
    manager.load_setuptools_entrypoints(ENTRY_POINTS)
    for name in plugins:
        module = _import(name)
        if not manager.is_registered(module):
            manager.register(module, name)
        if not manager.get_hookcallers(module):
            raise OptionError(
                f"--kv-plugin is {name!r}; it must implement at least one kvcache_… hook, marked"
                " with @pytest_kvcache.hookimpl"
            )
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise OptionError(f"a plugin implements a hook that does not exist: {error}") from error
    hook = manager.hook
    # pluggy calls the last registered first; the built-ins come first in messages.
    return Registry(
        models=_merge("model", hook.kvcache_models()[::-1]),
        backends=_stating_traits(_merge("backend", hook.kvcache_backends()[::-1])),
        workloads=_merge("scenario", hook.kvcache_workloads()[::-1]),
        launchers=_merge("launcher", hook.kvcache_launchers()[::-1]),
    )
