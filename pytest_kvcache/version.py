"""The version of the installed package, and of the run files that it writes and reads.

Every rank compares the former with the controller's.
"""

from __future__ import annotations

from importlib.metadata import version

VERSION = version("pytest-kvcache")
RUN_SCHEMA = "pytest-kvcache/run/1"
