from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.traits import BackendOption
from pytest_kvcache.errors import OptionError
from pytest_kvcache.masking import MASK, Secrets
from pytest_kvcache.options.options import build_options, describe_given, describe_value
from pytest_kvcache.plan.backendrules import check_backend, secrets_of, shown_settings
from tests.factories import OBJECTS, traits_of

if TYPE_CHECKING:
    from pytest_kvcache.backends.traits import BackendTraits
    from pytest_kvcache.options.options import Options
    from tests.desk import Desk


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


@pytest.mark.parametrize("engine", ["io_uring", "libaio"])
@pytest.mark.parametrize("backend", ["memory", "null"])
def test_the_kernel_moves_only_what_is_in_files(backend: str, engine: str) -> None:
    for origin in ("command line", "ini"):
        with pytest.raises(OptionError, match=f"--kv-io-engine is {engine} and --kv-backend is"):
            check(backend, io_engine=(engine, origin))
    check("file", io_engine=(engine, "command line"))
    check(backend, io_engine=("threads", "command line"))


# -- settings of the backend's own -----------------------------------------------------------

KNOWN = replace(
    OBJECTS,
    options=(
        BackendOption(name="endpoint", meaning="where it is", required=True),
        BackendOption(name="secret_key", meaning="who we are", secret=True),
    ),
)
GOOD = ("endpoint=http://a", "secret_key=hunter2")


def settings(*texts: str, origin: Any = "command line") -> Options:
    given: dict[str, tuple[Any, Any]] = {"backend": ("mine", "command line")}
    if texts:
        given["backend_option"] = (list(texts), origin)
    return build_options(given)


def test_the_settings_that_a_backend_knows_are_taken() -> None:
    asked = settings(*GOOD)
    check_backend(asked, KNOWN)
    assert shown_settings(asked, KNOWN) == {"endpoint": "http://a", "secret_key": MASK}
    assert secrets_of(asked, KNOWN) == Secrets({"secret_key": "hunter2"})


def test_a_value_may_hold_equals_signs() -> None:
    assert settings("endpoint=a=b==").backend_option == {"endpoint": "a=b=="}


@pytest.mark.parametrize(
    ("texts", "traits", "reported"),
    [
        (
            ("endpoint=x", "secretkey=hunter2"), KNOWN,
            ("--kv-backend-option has 'secretkey' (did you mean 'secret_key'?), which the backend"
            " mine does not know; it knows endpoint: where it is; secret_key: who we are"),
        ),
        (
            ("secret_key=hunter2",), OBJECTS,
            ("--kv-backend-option has 'secret_key', which the backend mine does not know; it knows"
            " none, so leave it out"),
        ),
        (
            ("secret_key=hunter2",), KNOWN,
            ("--kv-backend is mine, which needs endpoint (where it is); give it by"
            " --kv-backend-option endpoint=VALUE"),
        ),
    ],
)  # fmt: skip
def test_what_a_backend_does_not_know_or_lacks_is_refused(
    texts: tuple[str, ...], traits: BackendTraits, reported: str
) -> None:
    with pytest.raises(OptionError) as error:
        check_backend(settings(*texts), traits)
    assert str(error.value) == reported


def test_a_setting_of_an_ini_is_refused_by_its_name_there() -> None:
    with pytest.raises(OptionError, match=r"^kv_backend_option has 'odd'"):
        check_backend(settings("odd=1", origin="ini"), KNOWN)


@pytest.mark.parametrize(
    ("texts", "reported"),
    [
        (("endpoint=x", "hunter2"), "lacks an = in text 2 of 2 (not shown, as it may be a secret)"),
        (("=hunter2",), "lacks a name in text 1 of 1 (not shown"),
        (("secret_key=",), "lacks a value in text 1 of 1 (not shown"),
        (("a=hunter2", "a=hunter3"), "has 'a' twice; each key may come once, drop one"),
    ],
)
def test_texts_that_are_no_settings_are_refused_unseen(
    texts: tuple[str, ...], reported: str
) -> None:
    with pytest.raises(OptionError) as error:
        settings(*texts)
    assert str(error.value).startswith(f"--kv-backend-option {reported}")
    assert "hunter" not in str(error.value)


def test_options_do_not_show_what_may_be_secret() -> None:
    assert "hunter2" not in repr(settings(*GOOD))
    reported = describe_given(settings(*GOOD), secrets_of(settings(*GOOD), KNOWN).mask)
    assert "hunter2" not in "".join(reported)
    assert f"secret_key={MASK}" in "".join(reported)


def test_a_test_gives_settings_as_a_mapping() -> None:
    assert describe_value({"endpoint": "a", "size": 4}) == ["endpoint=a", "size=4"]


@pytest.mark.parametrize(
    ("traits", "rule"),
    [
        ({"unit": "object"}, "moves objects whole"),
        ({"smallest_part_bytes": 1 << 20}, "takes 1 MiB or more at a time"),
        ({"largest_part_bytes": 4096}, "takes at most 4 KiB at a time"),
        ({"alignment_bytes": 1 << 20}, "takes multiples of 1048576 bytes"),
    ],
)
def test_a_transfer_size_that_the_backend_would_not_use_is_refused(
    traits: dict[str, Any], rule: str
) -> None:
    asked = build_options(
        {"backend": ("mine", "command line"), "transfer_size": ("64KiB", "command line")}
    )
    chosen = replace(OBJECTS, **{"unit": "range"} | traits)
    with pytest.raises(OptionError, match=f"--kv-transfer-size is 64 KiB and .* {rule}; leave"):
        check_backend(asked, chosen)


@pytest.mark.parametrize("size", ["object", "64KiB"])
def test_a_transfer_size_that_the_backend_takes_is_none_of_its_business(size: str) -> None:
    asked = build_options(
        {"backend": ("mine", "command line"), "transfer_size": (size, "command line")}
    )
    check_backend(asked, replace(OBJECTS, unit="range"))


@pytest.mark.parametrize("backend", ["null", "memory"])
def test_a_restart_needs_objects_in_a_directory(backend: str, desk: Desk) -> None:
    words = ("--kv-phase=restart", f"--kv-backend={backend}")
    said = desk.refusal(*words, without=("--kv-duration", "--kv-ramp"))
    assert said.startswith("--kv-phase is restart, which finds objects by the names of their files")
    assert f"--kv-backend is {backend}, which keeps none in a directory" in said
