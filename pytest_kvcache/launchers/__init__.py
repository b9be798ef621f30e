"""How ranks are started: one module per launcher family; re-exports, nothing else."""

from __future__ import annotations

from pytest_kvcache.launchers.detect import (
    LauncherIdentity,
    check_library,
    find_launcher,
    identify,
    launcher_for,
)
from pytest_kvcache.launchers.hydra import HydraLauncher
from pytest_kvcache.launchers.openmpi import OpenMPILauncher
from pytest_kvcache.launchers.pals import PalsLauncher
from pytest_kvcache.launchers.protocol import Launcher, LaunchJob, remote_shell_script
from pytest_kvcache.launchers.srun import SrunLauncher

__all__ = [
    "HydraLauncher",
    "LaunchJob",
    "Launcher",
    "LauncherIdentity",
    "OpenMPILauncher",
    "PalsLauncher",
    "SrunLauncher",
    "check_library",
    "find_launcher",
    "identify",
    "launcher_for",
    "remote_shell_script",
]
