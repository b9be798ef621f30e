"""What a backend's traits allow of the options. Pure.

``build_options`` knows no backends: they come from plugins, which the options name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError, did_you_mean
from pytest_kvcache.masking import MASK, Secrets
from pytest_kvcache.options.engines import WHOLE_OBJECT, makes_calls
from pytest_kvcache.options.table import flag_of
from pytest_kvcache.phases import PHASES
from pytest_kvcache.system.kernelqueues import KERNEL_ENGINES
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from pytest_kvcache.backends.traits import BackendTraits
    from pytest_kvcache.options.options import Options

_FLAG = "--kv-backend-option"


def check_backend(options: Options, traits: BackendTraits) -> None:
    """Raise OptionError for what the chosen backend would ignore, or can't do."""
    _check_slo(options, traits)
    _check_store(options, traits)
    _check_storage(options, traits)
    _check_settings(options, traits)
    _check_transfer(options, traits)
    _check_io_engine(options, traits)
    _check_calls(options, traits)
    _check_restart(options, traits)


def secrets_of(options: Options, traits: BackendTraits) -> Secrets:
    """The backend's settings that nobody may see."""
    given = options.backend_option
    return Secrets({name: given[name] for name in given if name in traits.secrets})


def shown_settings(options: Options, traits: BackendTraits) -> dict[str, str]:
    """The backend's settings as anybody may see them."""
    return {
        name: MASK if name in traits.secrets else value
        for name, value in options.backend_option.items()
    }


def _check_slo(options: Options, traits: BackendTraits) -> None:
    if options.slo and not traits.is_storage and not options.allow_invalid:
        raise OptionError(
            f"--kv-slo is {options.slo[0]} and --kv-backend is {options.backend}, which is no"
            " storage, so the SLO would say nothing about any; use --kv-backend=file, or"
            " --kv-allow-invalid to judge it all the same"
        )


def _check_store(options: Options, traits: BackendTraits) -> None:
    """A store must be one of the backend's; auto is no choice of one."""
    if options.store == "auto" or options.store in traits.stores:
        return
    name = "kv_store" if options.origins["store"] == "ini" else "--kv-store"
    known = f"only {', '.join(traits.stores)}" if traits.stores else "no choice of stores"
    raise OptionError(
        f"{name} is {options.store} and --kv-backend is {options.backend}, which has {known}; leave"
        " the store out or use --kv-backend=file"
    )


def _check_storage(options: Options, traits: BackendTraits) -> None:
    """Backends without storage keep nothing and sync nothing; an ini may serve other runs."""
    if traits.is_storage:
        return
    for name, asked in (("keep", options.keep), ("sync", options.sync == "data")):
        if asked and options.overrides(name):
            flag = "--kv-keep" if name == "keep" else "--kv-sync=data"
            raise OptionError(
                f"{flag} is given and --kv-backend is {options.backend}, which is no storage and"
                f" would ignore it; leave out {flag}, or use --kv-backend=file"
            )


def _check_settings(options: Options, traits: BackendTraits) -> None:
    """Only settings that the backend knows, and all that it needs."""
    known = {option.name: option for option in traits.options}
    flag = "kv_backend_option" if options.origins.get("backend_option") == "ini" else _FLAG
    described = "; ".join(f"{name}: {option.meaning}" for name, option in known.items())
    for name in options.backend_option:
        if name not in known:
            raise OptionError(
                f"{flag} has {name!r}{did_you_mean(name, known)}, which the backend"
                f" {options.backend} does not know; it knows {described or 'none, so leave it out'}"
            )
    for name, option in known.items():
        if option.required and name not in options.backend_option:
            raise OptionError(
                f"--kv-backend is {options.backend}, which needs {name} ({option.meaning}); give it"
                f" by {_FLAG} {name}=VALUE"
            )


def _check_calls(options: Options, traits: BackendTraits) -> None:
    """Calls of an engine are made where the backend makes them."""
    if traits.makes_calls or not makes_calls(options):
        return
    knobs = ("engine", "sharing", "lookup", "publish")
    name = next(n for n in knobs if options.given(n))
    raise OptionError(
        f"{flag_of(name)} is {getattr(options, name)} and --kv-backend is {options.backend}, which"
        " moves objects in a way of its own; use --kv-backend=file, or leave it out"
    )


def _check_restart(options: Options, traits: BackendTraits) -> None:
    """Names that tell what is stored are those of files in the ranks' directories."""
    if PHASES[options.phase].restarts and not (traits.directory and traits.makes_calls):
        raise OptionError(
            f"--kv-phase is restart, which finds objects by the names of their files, and"
            f" --kv-backend is {options.backend}, which keeps none in a directory; use"
            " --kv-backend=file, or leave one of them out"
        )


def _check_io_engine(options: Options, traits: BackendTraits) -> None:
    """The kernel moves by itself only what is in files."""
    if options.io_engine in KERNEL_ENGINES and not traits.kernel_counts:
        raise OptionError(
            f"--kv-io-engine is {options.io_engine} and --kv-backend is {options.backend}, which"
            " keeps nothing in files that the kernel could move; take auto or threads"
        )


def _check_transfer(options: Options, traits: BackendTraits) -> None:
    """A transfer size that was asked for is the one that is used; an ini may serve other runs."""
    size = options.transfer_size
    if size == WHOLE_OBJECT or not options.overrides("transfer_size"):
        return
    assert isinstance(size, int)
    most, least, unit = (
        traits.largest_part_bytes, traits.smallest_part_bytes, traits.alignment_bytes,
    )  # fmt: skip
    if traits.unit == "object":
        rule = "moves objects whole"
    elif size < least:
        rule = f"takes {format_bytes(least)} or more at a time"
    elif most is not None and size > most:
        rule = f"takes at most {format_bytes(most)} at a time"
    elif size % unit:
        rule = f"takes multiples of {unit} bytes"
    else:
        return
    raise OptionError(
        f"--kv-transfer-size is {format_bytes(size)} and --kv-backend is {options.backend}, which"
        f" {rule}; leave the transfer size out, or name one that it takes"
    )
