from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import PreflightError
from pytest_kvcache.hosts.mpilibrary import mpi_library
from pytest_kvcache.launchers.detect import check_library, find_launcher, found_launcher, identify
from pytest_kvcache.launchers.families import FAMILIES
from pytest_kvcache.launchers.family import FoundLauncher, LauncherFamily
from pytest_kvcache.launchers.hydra import HydraLauncher
from pytest_kvcache.launchers.openmpi import OpenMPILauncher
from pytest_kvcache.launchers.pals import PalsLauncher
from pytest_kvcache.launchers.srun import SrunLauncher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_kvcache.launchers.protocol import Launcher

FAMILY_OF = {"openmpi-5": "openmpi", "openmpi-4": "openmpi", "intel": "hydra"}
HYDRA = "HYDRA build details:\n    Version:                                 5.0.2\n    CC: cc"

INTEL = (
    "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626 (id: b44796a)\n"
    "Copyright 2003-2026, Intel Corporation."
)
SLURM_TYPES = """MPI plugin types are...
	pmix
	none
	cray_shasta
	pmi2
specific pmix plugin versions available: pmix_v3,pmix_v4"""


def recognised(path: str, **changes: Any) -> tuple[str, FoundLauncher]:
    """The launcher's family and what it is, for ranks of some library."""
    values: dict[str, Any] = {"families": FAMILIES, "library": OPEN_MPI_LIBRARY, "environ": {}}
    return identify(path, **(values | changes))


def family_of(flavour: str) -> LauncherFamily:
    return FAMILIES[FAMILY_OF.get(flavour, flavour)]


def found(
    flavour: str, library: str, environ: Mapping[str, str] | None = None, offers: str = ""
) -> FoundLauncher:
    """A launcher of this flavour that answers each question with what it offers."""
    launcher = found_launcher("/m", flavour, "7.7", library=library, environ=environ or {})
    return replace(launcher, hostname="n1.site", ask=lambda _question: offers)


def made(
    flavour: str, library: str, environ: Mapping[str, str] | None = None, offers: str = ""
) -> Launcher:
    return family_of(flavour).make(found(flavour, library, environ, offers))


def program(directory: Path, name: str) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_launcher_beside_the_interpreter_is_found_first(tmp_path: Path) -> None:
    beside = program(tmp_path / "venv" / "bin", "mpirun")
    program(tmp_path / "usr", "mpirun")

    assert find_launcher("mpirun", prefix=f"{tmp_path}/venv", path=f"{tmp_path}/usr") == beside


def test_launcher_is_found_on_path_otherwise(tmp_path: Path) -> None:
    program(tmp_path / "venv" / "bin", "mpiexec")
    on_path = program(tmp_path / "usr", "mpirun")

    assert find_launcher("mpirun", prefix=f"{tmp_path}/venv", path=f"{tmp_path}/usr") == on_path


def test_name_with_a_slash_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = program(tmp_path / "mine", "mpirun")
    program(tmp_path / "venv" / "bin", "mpirun")
    monkeypatch.chdir(tmp_path)

    assert find_launcher("mine/mpirun", prefix=f"{tmp_path}/venv", path="") == given


@pytest.mark.parametrize("name", ["mpirun", "bin/mpirun", "/no/such/mpirun"])
def test_absent_launcher_is_an_error_with_the_fix(tmp_path: Path, name: str) -> None:
    with pytest.raises(PreflightError, match=r"pip install 'pytest-kvcache\[mpi\]'") as error:
        find_launcher(name, prefix=str(tmp_path), path=str(tmp_path))

    assert f"--kv-mpi-bin is {name}" in str(error.value)


@pytest.mark.parametrize(
    ("output", "flavour", "version"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to", "openmpi-5", "5.0.11"),
        ("mpirun.openmpi (OpenRTE) 4.1.4", "openmpi-4", "4.1.4"),
        ("mpirun (Open MPI) 4.1.7a1", "openmpi-4", "4.1.7a1"),
        (HYDRA, "hydra", "5.0.2"),
        (INTEL, "intel", "2021.18.1"),
        ("slurm-wlm 22.05.8", "srun", "22.05.8"),
        ("slurm 24.05.1", "srun", "24.05.1"),
        ("mpiexec version 1.8.0 revision 3a2f1c4", "pals", "1.8.0"),
    ],
)
def test_launcher_is_recognised_by_its_version_text(
    prints: Callable[[str], str], output: str, flavour: str, version: str
) -> None:
    path = prints(output)
    name, launcher = recognised(path)

    assert FAMILIES[name] is family_of(flavour)
    assert (launcher.path, launcher.flavour, launcher.version) == (path, flavour, version)
    assert (launcher.library, launcher.environ) == (OPEN_MPI_LIBRARY, {})


def test_what_srun_offers_is_asked_for_too(fake_program: Callable[..., str]) -> None:
    srun = fake_program(
        f"""case $1 in
--version) echo slurm-wlm 22.05.8;;
--mpi=list) cat >&2 <<'END'
{SLURM_TYPES}
END
esac""",
        name="srun",
    )

    node = socket.gethostname().partition(".")[0]
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": node}
    name, launcher = recognised(srun, environ=environ)

    assert (name, launcher.flavour, launcher.version) == ("srun", "srun", "22.05.8")
    srun_launcher = FAMILIES[name].make(launcher)
    assert isinstance(srun_launcher, SrunLauncher)
    assert srun_launcher.mpi_types == {
        "pmix", "none", "cray_shasta", "pmi2", "pmix_v3", "pmix_v4",
    }  # fmt: skip


def test_srun_without_a_configured_slurm_is_an_error_that_says_where_it_works(
    fake_program: Callable[..., str],
) -> None:
    srun = fake_program("echo srun: fatal: no configuration source >&2; exit 1", name="srun")

    with pytest.raises(PreflightError, match=r"no configuration source.*inside salloc or sbatch"):
        recognised(srun)


def test_unknown_launcher_is_an_error_with_what_it_said(prints: Callable[[str], str]) -> None:
    with pytest.raises(PreflightError, match=r"whose --version says 'aprun 6\.1'; it must be"):
        recognised(prints("aprun 6.1\nmore"))


@pytest.mark.parametrize("version", ["3.1.6", "6.0.0"])
def test_other_open_mpi_is_an_error(prints: Callable[[str], str], version: str) -> None:
    with pytest.raises(
        PreflightError, match=f"{version}; its version must be at least 4 and below 6"
    ):
        recognised(prints(f"mpirun (Open MPI) {version}"))


def test_failing_version_is_an_error_with_its_output(fake_program: Callable[..., str]) -> None:
    broken = fake_program("echo libpmix.so: cannot open >&2; exit 127")

    with pytest.raises(PreflightError, match=r"exit code 127 and 'libpmix.so: cannot open'"):
        recognised(broken)


def test_hanging_version_is_an_error(fake_program: Callable[..., str]) -> None:
    def impatient(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        options["timeout"] = 0.1
        return subprocess.run(*args, **options)  # noqa: PLW1510 - among the options

    with pytest.raises(PreflightError, match="gave no answer in 20 s"):
        recognised(fake_program("exec sleep 600"), run=impatient)


def test_program_that_can_not_start_is_an_error(tmp_path: Path) -> None:
    not_a_program = tmp_path / "mpirun"
    not_a_program.write_bytes(b"\x7fELF garbage")
    not_a_program.chmod(0o755)

    with pytest.raises(PreflightError, match="can't be started"):
        recognised(str(not_a_program))


@pytest.mark.parametrize("flavour", ["openmpi-5", "openmpi-4"])
def test_open_mpis_launcher_fits_what_was_found(flavour: str) -> None:
    environ = {"OMPI_MCA_pml": "ucx"}
    launcher = made(flavour, OPEN_MPI_LIBRARY, environ)

    assert launcher == OpenMPILauncher(path="/m", flavour=flavour, environ=environ)


@pytest.mark.parametrize("flavour", ["hydra", "intel"])
def test_hydra_of_either_vendor_fits_what_was_found(flavour: str) -> None:
    environ = {"I_MPI_PIN": "on"}
    launcher = made(flavour, MPICH_LIBRARY, environ)

    assert launcher == HydraLauncher(path="/m", flavour=flavour, environ=environ)


def test_palss_launcher_fits_what_was_found() -> None:
    assert made("pals", MPICH_LIBRARY) == PalsLauncher(path="/m")


def test_srun_is_told_library_types_and_this_hosts_name_in_slurm() -> None:
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-2]"}

    assert made("srun", MPICH_LIBRARY, environ, SLURM_TYPES) == SrunLauncher(
        path="/m",
        library=MPICH_LIBRARY,
        mpi_types=frozenset({"pmix", "none", "cray_shasta", "pmi2", "pmix_v3", "pmix_v4"}),
        own_node="n1",
        environ=environ,
    )


def test_srun_outside_an_allocation_is_refused() -> None:
    with pytest.raises(PreflightError, match=r"SLURM_JOB_ID is not set.*inside salloc or sbatch"):
        made("srun", MPICH_LIBRARY)


# -- a family of a plugin ---------------------------------------------------------------------


def flux(**changes: Any) -> LauncherFamily:
    """A launcher that only a plugin knows."""
    values: dict[str, Any] = {
        "title": "Flux's flux",
        "make": lambda found: PalsLauncher(path=found.path),
        "recognise": lambda output: ("flux", output.split()[1]) if "flux" in output else None,
        "minimum": (0, 50),
    }
    return LauncherFamily(**(values | changes))


def test_a_family_of_a_plugin_is_recognised_beside_the_others(prints: Callable[[str], str]) -> None:
    families = {**FAMILIES, "flux": flux()}
    name, launcher = recognised(prints("flux 0.66.0"), families=families)
    assert (name, launcher.version) == ("flux", "0.66.0")
    assert recognised(prints(HYDRA), families=families)[0] == "hydra"
    with pytest.raises(PreflightError, match=r"is flux 0\.49\.0; .* must be at least 0\.50 "):
        recognised(prints("flux 0.49.0"), families=families)
    with pytest.raises(PreflightError, match=r"must be one of: .*; Flux's flux "):
        recognised(prints("aprun 6.1"), families=families)


def test_a_family_may_take_any_library() -> None:
    check_library(found("flux", "Some Other MPI"), flux())


MPICH_LIBRARY = "MPICH Version:      5.0.2"
OPEN_MPI_LIBRARY = "Open MPI v5.0.11, package: Open MPI, ident: 5.0.11"


@pytest.mark.parametrize(
    ("flavour", "library"),
    [
        ("openmpi-5", OPEN_MPI_LIBRARY),
        ("openmpi-4", OPEN_MPI_LIBRARY),
        ("hydra", "MPICH Version:      5.0.2"),
        ("hydra", "MPI VERSION    : CRAY MPICH version 8.1.28.2"),
        ("hydra", "MVAPICH2 Version      : 2.3.7"),
        ("hydra", "Intel(R) MPI Library 2021.18 for Linux* OS"),
        ("intel", "Intel(R) MPI Library 2021.18 for Linux* OS"),
        ("pals", "MPI VERSION    : CRAY MPICH version 8.1.28.2"),
        ("srun", "MPICH Version:      5.0.2"),
        ("srun", OPEN_MPI_LIBRARY),
    ],
)
def test_library_of_the_launchers_family_passes(flavour: str, library: str) -> None:
    check_library(found(flavour, library), family_of(flavour))


@pytest.mark.parametrize(
    ("flavour", "library"),
    [
        ("hydra", OPEN_MPI_LIBRARY),
        ("openmpi-5", "MPICH Version:      5.0.2"),
        ("openmpi-4", "Intel(R) MPI Library 2021.18 for Linux* OS"),
        ("openmpi-5", "Some Other MPI"),
        ("intel", OPEN_MPI_LIBRARY),
        ("pals", OPEN_MPI_LIBRARY),
        ("srun", "Some Other MPI"),
    ],
)
def test_library_of_another_family_is_an_error(flavour: str, library: str) -> None:
    with pytest.raises(PreflightError) as error:
        check_library(found(flavour, library), family_of(flavour))

    assert f"/m is {flavour} 7.7, but mpi4py loads '{library}'" in str(error.value)


def test_library_is_the_first_line_among_what_the_interpreter_prints(
    fake_program: Callable[..., str],
) -> None:
    python = fake_program(
        "echo welcome; printf 'mpi-library: MPICH Version: 5.0.2\\0\\nMPICH Release\\n'",
        "python",
    )

    assert mpi_library(python) == "MPICH Version: 5.0.2"


def test_interpreter_without_mpi4py_is_an_error_with_the_fix(
    fake_program: Callable[..., str],
) -> None:
    python = fake_program(
        "printf \"Traceback:\\n x\\nModuleNotFoundError: No module named 'mpi4py'\\n\" >&2\nexit 1",
        "python",
    )

    with pytest.raises(PreflightError, match=r"No module named 'mpi4py'\); pip install"):
        mpi_library(python)


def test_absent_interpreter_is_an_error() -> None:
    with pytest.raises(PreflightError, match="/no/python could not be asked"):
        mpi_library("/no/python")


def test_interpreter_that_prints_no_library_is_an_error(
    fake_program: Callable[..., str],
) -> None:
    with pytest.raises(PreflightError, match=r"can't load MPI through mpi4py \(no message\)"):
        mpi_library(fake_program("exit 0", "python"))


@pytest.mark.mpi
def test_mpi_that_can_not_be_loaded_is_an_error(
    mpirun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPI4PY_LIBMPI", "/no/such/libmpi.so")

    with pytest.raises(PreflightError, match=r"cannot load MPI library.*/no/such/libmpi.so"):
        mpi_library(sys.executable)

    assert Path(mpirun).exists()


@pytest.mark.mpi
def test_installed_launcher_and_library_fit(mpirun: str) -> None:
    path = find_launcher("mpirun", prefix=sys.prefix, path=os.environ["PATH"])
    library = mpi_library(sys.executable)
    name, launcher = recognised(path, library=library)

    assert path == mpirun
    assert launcher.flavour == "openmpi-5"
    assert str(launcher.version) in library
    check_library(launcher, FAMILIES[name])
