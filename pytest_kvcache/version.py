"""The version of the installed package; every rank compares it with the controller's."""

from __future__ import annotations

from importlib.metadata import version

VERSION = version("pytest-kvcache")
