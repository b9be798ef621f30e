from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.errors import OptionError, UnknownNameError
from pytest_kvcache.models import MODELS
from pytest_kvcache.registry import Registry, build_registry
from pytest_kvcache.workloads.scenarios import SYNTHETIC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def write_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], str]]:
    """Make an importable module of that name and source; forgotten at the end."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def write(name: str, source: str) -> str:
        header = "import pytest_kvcache\nfrom pytest_kvcache.backends.null import NullBackend\n"
        (tmp_path / f"{name}.py").write_text(header + source, encoding="utf-8")
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


BACKEND = """
@pytest_kvcache.hookimpl
def kvcache_backends():
    return {{"{name}": NullBackend}}
"""


@pytest.fixture(scope="module")
def built_in() -> Registry:
    return build_registry()


# -- what is there -------------------------------------------------------------------------


def test_the_built_ins_are_there(built_in: Registry) -> None:
    assert dict(built_in.models) == dict(MODELS)
    assert set(built_in.backends) == {"file", "memory", "null"}
    assert set(built_in.workloads) == {*SYNTHETIC, "trace", "mlperf-1", "mlperf-2", "mlperf-3"}
    assert set(built_in.launchers) == {"openmpi", "hydra", "srun", "pals"}


def test_only_a_replay_needs_a_trace(built_in: Registry) -> None:
    needy = {name for name, family in built_in.workloads.items() if family.needs_trace}
    assert needy == {"trace"}


def test_a_backend_is_made_anew_each_time(built_in: Registry) -> None:
    factory = built_in.backend("file")
    assert isinstance(factory(), StoreBackend)
    assert factory() is not factory()


@pytest.mark.parametrize("kind", ["backend", "workload"])
def test_an_unknown_name_lists_the_known_ones(built_in: Registry, kind: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        getattr(built_in, kind)("like nothing known")
    option = {"backend": "--kv-backend", "workload": "--kv-scenario"}[kind]
    assert str(caught.value).startswith(f"{option} is 'like nothing known'; it must name a known")
    assert set(caught.value.known) == set(getattr(built_in, f"{kind}s"))


# -- models --------------------------------------------------------------------------------

TOML = """
[mine]
layers = 2
kv_heads = 1
head_dim = 8
dtype = "int8"
["mine-too"]
layers = 3
kv_heads = 1
head_dim = 8
dtype = "int8"
"""


def test_models_come_by_name_and_out_of_files(built_in: Registry, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TOML, encoding="utf-8")
    models = built_in.models_of(["qwen3-32b", str(path), "tiny-1b"])
    assert [model.name for model in models] == ["qwen3-32b", "mine", "mine-too", "tiny-1b"]


def test_a_model_comes_once(built_in: Registry, tmp_path: Path) -> None:
    path, again = tmp_path / "mine.toml", tmp_path / "again.toml"
    for file in (path, again):
        file.write_text(TOML, encoding="utf-8")
    with pytest.raises(OptionError, match="--kv-model names 'mine' twice"):
        built_in.models_of([str(path), str(again)])


def test_an_unknown_model_lists_the_known_ones(built_in: Registry) -> None:
    with pytest.raises(UnknownNameError, match=r"--kv-model is 'gpt-9'; .*tiny-1b"):
        built_in.models_of(["gpt-9"])


# -- plugins -------------------------------------------------------------------------------


def test_a_plugin_adds_its_names(write_plugin: Callable[[str, str], str]) -> None:
    source = "from pytest_kvcache.launchers.family import LauncherFamily\n"
    source += BACKEND.format(name="mine") + (
        "@pytest_kvcache.hookimpl\n"
        "def kvcache_launchers():\n"
        "    return {'flux': LauncherFamily(title='flux', make=None)}\n"
    )
    registry = build_registry([write_plugin("kvp_adds", source)])
    assert set(registry.backends) == {"file", "memory", "null", "mine"}
    assert set(registry.launchers) == {"openmpi", "hydra", "srun", "pals", "flux"}


@pytest.mark.parametrize(
    ("stated", "shown"), [("lambda: NullBackend()", "None"), ("Odd", "{'unit': 'range'}")]
)
def test_a_backend_that_does_not_say_what_it_is_like_is_refused_by_name(
    write_plugin: Callable[[str, str], str], stated: str, shown: str
) -> None:
    source = (
        "class Odd(NullBackend):\n"
        "    traits = {'unit': 'range'}\n"
        "@pytest_kvcache.hookimpl\n"
        "def kvcache_backends():\n"
        f"    return {{'mine': {stated}}}\n"
    )
    with pytest.raises(OptionError) as error:
        build_registry([write_plugin("kvp_stateless", source)])
    reported = str(error.value)
    assert reported.startswith("the backend 'mine' (")
    assert f"states {shown} as its traits; they must be a BackendTraits, as a class" in reported


def test_a_plugin_that_is_named_twice_counts_once(write_plugin: Callable[[str, str], str]) -> None:
    name = write_plugin("kvp_twice", BACKEND.format(name="mine"))
    assert "mine" in build_registry([name, name]).backends


@pytest.mark.parametrize("name", ["file", "mine"])
def test_a_name_that_two_plugins_register_is_refused(
    write_plugin: Callable[[str, str], str], name: str
) -> None:
    plugins = [
        write_plugin("kvp_first", BACKEND.format(name="mine")),
        write_plugin("kvp_second", BACKEND.format(name=name)),
    ]
    with pytest.raises(OptionError, match=f"the backend '{name}' is registered twice; .*memory"):
        build_registry(plugins)


def test_a_module_that_does_not_exist_is_refused() -> None:
    with pytest.raises(OptionError, match="--kv-plugin is 'kvp_nowhere'; it must be importable"):
        build_registry(["kvp_nowhere"])


def test_a_hook_that_does_not_exist_is_refused(write_plugin: Callable[[str, str], str]) -> None:
    source = BACKEND.format(name="mine").replace("kvcache_backends", "kvcache_bakcends")
    with pytest.raises(
        OptionError, match=r"implements a hook that does not exist.*kvcache_bakcends"
    ):
        build_registry([write_plugin("kvp_typo", source)])


@pytest.mark.parametrize(
    ("name", "source"),
    [("kvp_syntax", "def broken(:\n"), ("kvp_raises", "raise ValueError('not today')\n")],
)
def test_a_module_that_fails_while_it_is_imported_is_refused(
    write_plugin: Callable[[str, str], str], name: str, source: str
) -> None:
    with pytest.raises(OptionError, match=f"--kv-plugin is '{name}'"):
        build_registry([write_plugin(name, source)])


def test_a_module_without_hooks_is_refused(write_plugin: Callable[[str, str], str]) -> None:
    # The decorator was forgotten: the run would go on without the plugin.
    source = BACKEND.format(name="mine").replace("@pytest_kvcache.hookimpl", "")
    with pytest.raises(OptionError, match=r"--kv-plugin is 'kvp_bare'; .*hook"):
        build_registry([write_plugin("kvp_bare", source)])


@pytest.mark.parametrize("name", ["m.yaml", "m.safetensors"])
def test_a_file_of_models_that_is_neither_json_nor_toml_is_told_what_to_become(name: str) -> None:
    with pytest.raises(OptionError, match=r"must be the model's config.json, or a TOML file"):
        build_registry(()).models_of([name])


@pytest.mark.parametrize("name", ["mistral.json", "/models/m/config.json", "models/absent"])
def test_a_configuration_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(OptionError, match=r"can't be read: No such file .* config.json"):
        build_registry(()).models_of([name])


def test_a_configuration_is_a_model_and_the_stored_type_is_of_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 3, "num_attention_heads": 4,'
        ' "hidden_size": 64}'
    )
    models = build_registry(()).models_of(["tiny-1b", str(tmp_path)], "fp8")
    assert [model.bytes_per_token for model in models] == [12_288, 3 * 64 * 2]
    with pytest.raises(OptionError, match="lacks torch_dtype"):
        build_registry(()).models_of([str(tmp_path)])
