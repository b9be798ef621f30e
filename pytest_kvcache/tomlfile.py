"""A TOML file of the user's, read or refused in one sentence. Imports nothing but ``errors``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pytest_kvcache.errors import OptionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: str, option: str, what: str) -> dict[str, Any]:
    """The tables of the file that ``option`` names; OptionError where it is not ``what``."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OptionError(
            f"{option} is {path}, which can't be read: {error.strerror or error}; it must be {what}"
        ) from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise OptionError(f"{path} is not valid TOML: {error}; correct the file") from error
