"""Rank-safe hooks (pluggy project ``kvcache``): what a plugin adds to both sides.

They are called on the controller and again on every rank, so the module that
implements them must be importable on every host: an entry point of the group
``pytest_kvcache``, or a module named by ``--kv-plugin``. A conftest.py never reaches a
rank. Imports neither pytest nor MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.backends.protocol import BackendFactory
    from pytest_kvcache.launchers.family import LauncherFamily
    from pytest_kvcache.models import ModelSpec
    from pytest_kvcache.workloads.protocol import WorkloadFamily

PROJECT = "kvcache"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def kvcache_models() -> Mapping[str, ModelSpec]:  # type: ignore[empty-body]  # a spec has no body
    """Name → model, for ``--kv-model``. Called once per process, at the start.

    ::

        @pytest_kvcache.hookimpl
        def kvcache_models():
            return {"mine": ModelSpec(name="mine", layers=32, kv_heads=8, head_dim=128,
                                      dtype="float16")}
    """


@hookspec
def kvcache_backends() -> Mapping[str, BackendFactory]:  # type: ignore[empty-body]
    """Name → what makes a backend and states its traits, for ``--kv-backend``.

    Usually a class with a class attribute ``traits``, a ``BackendTraits``: by them it is
    decided, before anything is launched and without making a backend, what it is given and
    what is asked of it. Called once per process; the class once per rank and trial.
    docs/backends.md shows a whole one::

        @pytest_kvcache.hookimpl
        def kvcache_backends():
            return {"mine": MyBackend}
    """


@hookspec
def kvcache_workloads() -> Mapping[str, WorkloadFamily]:  # type: ignore[empty-body]
    """Name → workload family, for ``--kv-scenario``.

    Its ``need`` is asked on the controller, its ``build`` on every rank::

        @pytest_kvcache.hookimpl
        def kvcache_workloads():
            return {"mine": MyFamily()}
    """


@hookspec
def kvcache_launchers() -> Mapping[str, LauncherFamily]:  # type: ignore[empty-body]
    """Name → launcher family, for ``--kv-mpi-bin``.

    A program that is given there, or found along PATH, is of the first family that recognises
    what it prints for ``--version``; its version, its MPI library and its daemon are then
    checked, what it leaves is cleaned up, and its last words are read, as the family says.
    Called once per process::

        @pytest_kvcache.hookimpl
        def kvcache_launchers():
            return {"flux": LauncherFamily(title="Flux's flux", make=FluxLauncher, ...)}
    """
