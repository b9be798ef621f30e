from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.launch.diagnosis import cause_of_death, explanation, relevant_lines

RANKS = [{"host": "n1", "pid": 101}, {"host": "n2", "pid": 102}]
BOX = "-" * 74

# As Open MPI 5.0.11 prints it, with its line breaks.
SIGNAL = f"""{BOX}
prterun noticed that process rank 2 with PID 102 on node n2 exited on
signal 9 (Killed).
{BOX}"""
CODE = f"""{BOX}
prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-vm-467@1,2]
   Exit code:    {{}}
{BOX}"""
CODE_4 = f"""{BOX}
mpirun detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[31415,1],1]
  Exit code:    3
{BOX}"""
EARLY = f"""{BOX}
prterun detected that one or more processes exited with non-zero status...
This may be: mpirun has exited due to process rank 1 with PID 101 on node n1 exiting improperly.
There are three reasons this could occur:
1. this process did not call "init" before exiting
{BOX}"""
ABORT = f"""{BOX}
mpirun has exited due to process rank 1 with PID 0 on node n1 calling
"abort". This may have caused other processes in the application to be
terminated by signals sent by prterun (as reported here).
{BOX}"""
HYDRA = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 102 RUNNING AT n2
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
==================================================================================="""

# As srun of Slurm 22.05 prints it; the first task is one that srun ended itself.
SRUN = """srun: error: n1: task 1: Terminated
srun: error: n2: task 2: {}
srun: launch/slurm: _step_signal: Terminating StepId=6.4"""
CONTAINER = f"""kvcache: the container on host n2 ended: it was killed (exit code 137)
{ABORT}"""
PALS = """n1.site: rank 1 died from signal 15
n2.site: rank 2 {}"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (CONTAINER, "the container on host n2 ended: it was killed (exit code 137)"),
        (SIGNAL, "rank 1 (pid 102) on host n2 was killed by signal 9"),
        (EARLY, "rank 0 (pid 101) on host n1 ended in the middle of the work"),
        (ABORT, "rank 0 (pid 101) on host n1 gave up"),
        (HYDRA, "rank 1 (pid 102) on host n2 ended with exit code 9"),
        (
            SRUN.format("Exited with exit code 3"),
            "rank 1 (pid 102) on host n2 ended with exit code 3",
        ),
        (SRUN.format("Killed"), "rank 1 (pid 102) on host n2 ended with 'Killed'"),
        (
            SRUN.format("Segmentation fault (core dumped)"),
            "rank 1 (pid 102) on host n2 ended with 'Segmentation fault'",
        ),
        (PALS.format("exited with code 3"), "rank 1 (pid 102) on host n2 ended with exit code 3"),
        (PALS.format("died from signal 9"), "rank 1 (pid 102) on host n2 was killed by signal 9"),
    ],
)
def test_the_launchers_words_become_rank_host_and_cause(text: str, cause: str) -> None:
    assert cause_of_death(text.splitlines(), RANKS) == cause


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            CODE.format(143),
            "rank 1 (pid 102) on host n2 ended with exit code 143, as after signal 15",
        ),
        (CODE.format(1), "rank 1 (pid 102) on host n2 ended with exit code 1"),
        (CODE_4, "rank 0 (pid 101) on host n1 ended with exit code 3"),
    ],
)
def test_a_rank_that_ended_in_its_own_way_is_named_with_its_exit_code(
    text: str, cause: str
) -> None:
    assert cause_of_death(text.splitlines(), RANKS) == cause


def test_an_exit_code_of_a_process_that_is_no_rank_says_nothing() -> None:
    lines = CODE.format(1).splitlines()
    assert cause_of_death(lines, RANKS[:1]) is None
    assert cause_of_death([line.replace("1,2]", "1,0]") for line in lines], RANKS) is None


def test_a_rank_that_never_got_together_is_named_without_its_pid() -> None:
    assert cause_of_death(SIGNAL.splitlines(), []) == "rank 1 on host n2 was killed by signal 9"


def test_world_rank_0_is_the_coordinator() -> None:
    text = SIGNAL.replace("rank 2", "rank 0")
    expected = "the coordinator on host n2 was killed by signal 9"
    assert cause_of_death(text.splitlines(), RANKS) == expected


def test_a_process_that_is_no_rank_is_named_by_its_pid() -> None:
    text = HYDRA.replace("PID 102", "PID 99")
    assert (
        cause_of_death(text.splitlines(), RANKS)
        == "a process ended with exit code 9; the launcher names pid 99 on host n2"
    )


def test_the_coordinator_under_hydra_is_named_by_its_pid() -> None:
    text = HYDRA.replace("PID 102", "PID 100")
    assert (
        cause_of_death(text.splitlines(), RANKS)
        == "a process ended with exit code 9; the launcher names pid 100 on host n2"
    )


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "ssh: connect to host n2 port 22: Connection refused",
            "host n2 can't be reached over ssh (Connection refused)",
        ),
        (
            "ssh: connect to host n2.site port 2222: Connection timed out\r",
            "host n2.site can't be reached over ssh (Connection timed out)",
        ),
        (
            "ssh: Could not resolve hostname n2: Name or service not known",
            "host n2 can't be reached over ssh (Name or service not known)",
        ),
    ],
)
def test_a_host_that_ssh_does_not_reach_is_the_cause_of_all_that_follows(
    line: str, cause: str
) -> None:
    assert cause_of_death([*EARLY.splitlines(), line, "more"], RANKS) == cause


@pytest.mark.parametrize(
    "line", ["plm:ssh: Warning: setpgid(0, 0) failed", "ssh: is a word", "ssh"]
)
def test_other_words_of_ssh_are_no_cause(line: str) -> None:
    assert cause_of_death([line], RANKS) is None


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        ("n1", "rank 0 (pid 7) on host n1 ended with exit code 9"),
        ("n2", "rank 1 (pid 7) on host n2 ended with exit code 9"),
        ("n3", "a process ended with exit code 9; the launcher names pid 7 on host n3"),
    ],
)
def test_one_pid_on_two_hosts_is_told_apart_by_the_host(host: str, cause: str) -> None:
    ranks = [{"host": "n1", "pid": 7}, {"host": "n2", "pid": 7}]
    text = HYDRA.replace("PID 102", "PID 7").replace("AT n2", f"AT {host}")
    assert cause_of_death(text.splitlines(), ranks) == cause


def test_a_pid_that_only_one_rank_has_is_that_rank_by_whatever_name_of_its_host() -> None:
    text = HYDRA.replace("AT n2", "AT 10.0.0.2")
    cause = "rank 1 (pid 102) on host n2 ended with exit code 9"
    assert cause_of_death(text.splitlines(), RANKS) == cause


def test_where_the_launcher_says_nothing_there_is_no_cause() -> None:
    assert cause_of_death([], RANKS) is None
    assert cause_of_death(["Traceback (most recent call last):"], RANKS) is None


def test_the_ranks_own_lines_tell_more_than_the_launchers() -> None:
    log = ["Traceback (most recent call last):", "ValueError: no", *SIGNAL.splitlines(), ""]
    assert relevant_lines(log, 5) == ["Traceback (most recent call last):", "ValueError: no"]


def test_of_many_lines_of_ranks_the_last_are_reported() -> None:
    assert relevant_lines([str(n) for n in range(20)], 3) == ["17", "18", "19"]


def test_without_lines_of_ranks_the_launchers_first_are_reported() -> None:
    reported = relevant_lines(SIGNAL.splitlines(), 2)
    assert reported == SIGNAL.splitlines()[:2]


@settings(deadline=None)
@given(st.lists(st.text(max_size=30)), st.integers(1, 20))
def test_what_is_told_are_lines_of_the_log_and_not_too_many(lines: list[str], count: int) -> None:
    reported = relevant_lines(lines, count)
    assert len(reported) <= count + 24
    assert set(reported) <= set(lines)
    assert bool(reported) == any(line.strip() for line in lines)


# As Open MPI 5.0.11 prints them; the second dashed line of a box may follow a NUL.
NOT_FOUND = f"""{BOX}
A requested component was not found, or was unable to be opened.  This
means that this component is either not installed or is unable to be
used on your system (e.g., sometimes this means that shared libraries
that the component requires are unable to be found/loaded).

Host:      n1
Framework: smsc
Component: xpmem
{BOX}"""
NO_INIT = f"""{BOX}
It looks like MPI_INIT failed for some reason; your parallel process is
likely to abort.

  mca_base_framework_open on opal_smsc failed
  --> Returned "Not found" (-13) instead of "Success" (0)
 {BOX}"""
NO_SHARED_MEMORY = f"""{BOX}
It appears as if there is not enough space for /dev/shm/sm_segment.n1.0.{{}}.0
(the shared-memory backing file). It is likely that your MPI job will now either abort or experience
performance degradation.

  Local host:  n1
  Space Requested: 16777216 B
  Space Available: 4096 B
{BOX}"""
NOT_MAPPED = f"""{BOX}
Your job has requested more processes than the ppr for
this topology can support:

  App: python
  Number of procs:  3
  PPR: 2:node

Please revise the conflict and try again.
{BOX}"""
UNKNOWN_INTERFACE = f"""{BOX}
WARNING: An invalid value was given for btl_tcp_if_include.  This
value will be ignored.

  Local host: n1
  Value:      eth77
{BOX}"""
NOISE = """*** An error occurred in MPI_Init_thread
*** on a NULL communicator
*** MPI_ERRORS_ARE_FATAL (processes in this communicator will abort,
***    and MPI will try to terminate your MPI job as well)
[n1:17948] Local abort before MPI_INIT completed completed successfully, but am not
[n1:17945] PMIX ERROR: PMIX_ERR_UNREACH in file ptl_base_connection_hdlr.c at line 121"""


def reported(*texts: str, count: int = 12) -> list[str]:
    return relevant_lines("\n".join(texts).splitlines(), count)


def content(box: str) -> list[str]:
    return [line for line in box.splitlines() if line.strip() and BOX not in line]


def test_a_boxed_reason_is_reported_instead_of_the_noise_of_all_ranks() -> None:
    lines = reported(NOISE, NOT_FOUND, NOISE, NO_INIT, NOISE, SIGNAL, NOISE)

    assert lines == [*content(NOT_FOUND), *content(NO_INIT)]
    assert "Framework: smsc" in lines


def test_a_boxed_reason_that_every_rank_prints_is_reported_once() -> None:
    boxes = [NO_SHARED_MEMORY.format(f"7a{rank}0001") for rank in range(3)]

    assert reported(*boxes, NOISE) == content(boxes[0])


def test_the_lines_of_ranks_follow_a_boxed_reason() -> None:
    error = "RuntimeError: cannot load MPI library"

    assert reported(error, NOT_FOUND, NOISE) == [*content(NOT_FOUND), error]


def test_a_boxed_warning_is_no_reason_where_ranks_say_something() -> None:
    assert reported(UNKNOWN_INTERFACE, "ValueError: no") == ["ValueError: no"]
    assert reported(UNKNOWN_INTERFACE, NOT_FOUND) == content(NOT_FOUND)
    assert reported(UNKNOWN_INTERFACE, NOISE) == content(UNKNOWN_INTERFACE)


def test_tagged_boxes_are_boxes() -> None:
    tagged = "\n".join(f"[prterun-n1-7@1,0]<stderr>: {line}" for line in NOT_FOUND.splitlines())

    assert reported(NOISE, tagged) == content(NOT_FOUND)


def test_a_dashed_line_without_its_partner_hides_no_box() -> None:
    assert reported(BOX, NOISE, NOT_FOUND, NOISE) == content(NOT_FOUND)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            NOT_FOUND,
            (
                "A requested component was not found, or was unable to be opened"
                " (Host: n1, Framework: smsc, Component: xpmem)"
            ),
        ),
        (
            NOT_MAPPED,
            (
                "Your job has requested more processes than the ppr for this topology can support"
                " (App: python, Number of procs: 3, PPR: 2:node); one process more than --kv-np"
                " is started, the coordinator, and needs a place too"
            ),
        ),
        (f"{SIGNAL}\n{UNKNOWN_INTERFACE}\n{ABORT}\n{EARLY}", None),
    ],
)
def test_the_reason_is_a_sentence(text: str, sentence: str | None) -> None:
    assert explanation(f"{NOISE}\n{text}\n{NOISE}".splitlines()) == sentence


# As MPICH 5.0.2 prints it for each rank.
STACK = """Abort(940160783): Fatal error in internal_Init_thread: Other MPI error, error stack:
internal_Init_thread(71)..: MPI_Init_thread(argc=(nil), argv=(nil), required=3) failed
MPII_Init_thread(209).....:
MPIDI_UCX_init_worker(86): ucx function returned with failed status (Shared memory error)"""


def test_the_innermost_line_of_mpichs_first_stack_is_its_reason() -> None:
    lines = f"starting\n{STACK}\n{STACK.replace('Shared memory', 'Other')}".splitlines()

    assert explanation(lines) == "ucx function returned with failed status (Shared memory error)"
    assert explanation(["Traceback (most recent call last):", "ValueError(3)"]) is None
