"""Names of ours that nobody knows: on the command line and in a configuration file.

pytest lets unknown keys of a file pass with a warning, and calls an unknown option
unrecognised; here both are refused with the name that was probably meant.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import OptionError, did_you_mean
from pytest_kvcache.options.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FLAG, _KEY = "--kv", "kv_"
_SECTION = re.compile(r"\s*\[([^\[\]]+)\]")
_SECTIONS = frozenset({"pytest", "tool:pytest", "tool.pytest", "tool.pytest.ini_options"})
_ASSIGNMENT = re.compile(r"""\s*["']?([A-Za-z][\w-]*)["']?\s*[=:]""")


def ini_keys(config: pytest.Config) -> set[str]:
    """Keys that begin like ours: of the configuration file, and of ``-o``.

    Read from the file itself, for pytest tells only of keys that somebody has registered.
    """
    overridden = config.known_args_namespace.override_ini or ()
    found = {text.partition("=")[0].strip() for text in overridden}
    if config.inipath is not None:
        found.update(_keys(config.inipath.read_text(encoding="utf-8", errors="replace")))
    return {key for key in found if _plain(key).startswith(_KEY)}


def _keys(text: str) -> Iterator[str]:
    section = ""
    for line in text.splitlines():
        if head := _SECTION.match(line):
            section = head[1]
        elif (key := _ASSIGNMENT.match(line)) and section in _SECTIONS:
            yield key[1]


def _plain(key: str) -> str:
    return key.lower().replace("-", "_")


def register_later_keys(config: pytest.Config, parser: pytest.Parser) -> None:
    """Known to pytest only where a file has them: its help leaves out what does not exist yet."""
    found = ini_keys(config)
    for spec in OPTIONS:
        if spec.later is not None and spec.ini in found:
            parser.addini(spec.ini, spec.help.replace("%%", "%"), type="string", default=None)


def check_words(config: pytest.Config, parser: pytest.Parser, words: Sequence[str]) -> None:
    """UsageError for an option that begins like ours and that nobody has registered."""
    _known, unknown = parser.parse_known_and_unknown_args(words, copy.copy(config.option))
    for word in unknown:
        flag = word.partition("=")[0]
        if flag.startswith(_FLAG):
            names = {spec.flag.removeprefix("--kv-"): spec.flag for spec in OPTIONS}
            meant = did_you_mean(flag.removeprefix(_FLAG).strip("-_").replace("_", "-"), names)
            for name, known in names.items():
                meant = meant.replace(f"'{name}'", known)
            raise pytest.UsageError(f"{flag} is no option{meant}; pytest --help lists all --kv-*")


def check_ini(config: pytest.Config) -> None:
    """OptionError for a key that begins like ours and is none."""
    known = {spec.ini for spec in OPTIONS}
    for key in sorted(ini_keys(config)):
        if key not in known:
            names = {name.removeprefix(_KEY): name for name in known}
            meant = did_you_mean(_plain(key).removeprefix(_KEY), names)
            for name, whole in names.items():
                meant = meant.replace(f"'{name}'", whole)
            where = config.inipath or "-o"
            raise OptionError(f"{key} in {where} is no option{meant}; pytest --help lists all kv_*")
