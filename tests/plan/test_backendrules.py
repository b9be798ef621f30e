from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.options import build_options
from pytest_kvcache.plan.backendrules import check_backend
from tests.factories import OBJECTS, traits_of


def check(backend: str, **given: tuple[Any, Any]) -> None:
    """Check these texts, each with its origin, against that backend; ``mine`` keeps objects."""
    chosen = {"backend": (backend, "command line"), **given}
    check_backend(build_options(chosen), traits_of(backend))


@pytest.mark.parametrize("backend", ["memory", "null", "mine"])
@pytest.mark.parametrize("store", ["file", "slab"])
@pytest.mark.parametrize(
    ("origin", "name"),
    [("command line", "--kv-store"), ("call", "--kv-store"), ("ini", "kv_store")],
)
def test_a_store_is_one_that_the_backend_has(
    backend: str, store: str, origin: str, name: str
) -> None:
    with pytest.raises(OptionError) as error:
        check(backend, store=(store, origin))
    assert str(error.value).startswith(
        f"{name} is {store} and --kv-backend is {backend}, which has no choice of stores; leave"
    )
    check("file", store=(store, origin))
    check(backend, store=("auto", origin))


def test_a_backend_may_have_one_of_the_stores() -> None:
    asked = build_options({"store": ("slab", "command line")})
    with pytest.raises(OptionError, match="which has only file; leave"):
        check_backend(asked, replace(OBJECTS, stores=("file",)))


@pytest.mark.parametrize("backend", ["memory", "null"])
@pytest.mark.parametrize(
    ("name", "text", "flag"), [("keep", "true", "--kv-keep"), ("sync", "data", "--kv-sync=data")]
)
def test_what_a_backend_without_storage_would_ignore_is_refused(
    backend: str, name: str, text: str, flag: str
) -> None:
    for origin in ("command line", "call"):
        with pytest.raises(OptionError, match=f"^{flag} is given and --kv-backend is {backend},"):
            check(backend, **{name: (text, origin)})
        check("file", **{name: (text, origin)})
        check("mine", **{name: (text, origin)})
    check(backend, **{name: (text, "ini")})  # serves the checkout's other runs
    check(backend, sync=("none", "command line"), keep=("false", "command line"))


@pytest.mark.parametrize("backend", ["memory", "null"])
def test_an_slo_says_nothing_about_what_is_no_storage(backend: str) -> None:
    slo = (["read.p95_ms<20"], "command line")
    with pytest.raises(OptionError, match=f"--kv-backend is {backend}, which is no storage"):
        check(backend, slo=slo)
    check(backend, slo=slo, allow_invalid=("true", "command line"))
    check("mine", slo=slo)
