from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.engine.requests import InFlightRequest, Timers
from tests.factories import ask

DUE_NS = st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=30)


def filled(due_ns: list[tuple[int, bool]]) -> Timers:
    """Timers of answers (True) and of requests to come, whose user is their number."""
    timers = Timers()
    for number, (due, answers) in enumerate(due_ns):
        request = ask(number, "a")
        inflight = InFlightRequest(request, 0) if answers else None
        timers.add(due, inflight=inflight, request=None if answers else request)
    return timers


def taken(timers: Timers, now_ns: int) -> list[tuple[int, int]]:
    """What is due, with the numbers."""
    found = []
    while (timer := timers.pop_due(now_ns)) is not None:
        request = timer.request or (timer.inflight and timer.inflight.request)
        assert request
        found.append((timer.due_ns, request.user))
    return found


@given(due_ns=DUE_NS, now_ns=st.integers(0, 9))
def test_what_is_due_comes_in_its_order_and_the_rest_stays(
    due_ns: list[tuple[int, bool]], now_ns: int
) -> None:
    timers = filled(due_ns)
    in_order = sorted((due, number) for number, (due, _answers) in enumerate(due_ns))
    assert timers.first_ns == (in_order[0][0] if in_order else None)
    assert taken(timers, now_ns) == [one for one in in_order if one[0] <= now_ns]
    assert len(timers) == sum(due > now_ns for due, _answers in due_ns)
    assert taken(timers, 9) == [one for one in in_order if one[0] > now_ns]


@given(due_ns=DUE_NS)
def test_answers_are_kept_in_their_order_when_nothing_is_to_come(
    due_ns: list[tuple[int, bool]],
) -> None:
    timers = filled(due_ns)
    timers.keep_answers()
    answers = [(due, number) for number, (due, answer) in enumerate(due_ns) if answer]
    assert taken(timers, 9) == sorted(answers)
