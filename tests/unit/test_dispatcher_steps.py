"""Which step a run's loop takes next."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tocsin._queue.consuming.steps import State, Step, next_step

BUSY: dict[str, Any] = {"calling": True, "prefetched": True}
ROOM: dict[str, Any] = {"capacity": 1}
RUNG: dict[str, Any] = {**ROOM, "wake_pending": True}


@pytest.mark.parametrize(
    ("state", "step"),
    [
        # Nothing to do.
        (State(), Step.WAIT),
        (State(**BUSY), Step.WAIT),
        (State(**ROOM), Step.WAIT),
        (State(wake_pending=True), Step.WAIT),  # no room
        # Claiming.
        (State(**RUNG), Step.CLAIM),
        (State(**RUNG, **BUSY), Step.CLAIM),
        # One statement archives and claims; without a claim it archives alone.
        (State(**RUNG, to_archive=True), Step.CLAIM),
        (State(**ROOM, to_archive=True), Step.ARCHIVE),
        (State(to_archive=True), Step.ARCHIVE),
        (State(may_claim=False, to_archive=True), Step.ARCHIVE),
        (State(**RUNG, archive_refused=True, to_archive=True), Step.ARCHIVE_ONE_BY_ONE),
        # Failing: after each claim, and when nothing else is to do.
        (State(to_fail=True), Step.FAIL),
        (State(**RUNG, to_fail=True), Step.CLAIM),
        (State(to_archive=True, to_fail=True), Step.ARCHIVE),
        (State(**RUNG, to_fail=True, fail_next=True), Step.FAIL),
        (State(to_archive=True, to_fail=True, fail_next=True), Step.FAIL),
        (State(**RUNG, fail_next=True), Step.CLAIM),
        # In order, a message has failed before the next one is claimed.
        (State(**RUNG, to_fail=True, ordered=True), Step.FAIL),
        # Requeueing.
        (State(**RUNG, to_release=True), Step.RELEASE_UNCOUNTED),
        (State(**RUNG, prefetched=True, prefetched_too_long=True), Step.RELEASE_UNCOUNTED),
        (State(may_claim=False, prefetched=True), Step.RELEASE_UNCOUNTED),
        # Locks, and transactions of handlers.
        (State(**RUNG, to_archive=True, lock_timeout=True), Step.RESOLVE_LOCK_TIMEOUT),
        (State(**RUNG, locked=True, check_locked=True), Step.CHECK_LOCKED),
        (State(**RUNG, locked=True), Step.CLAIM),
        (State(**RUNG, transactions=True, check_transactions=True), Step.CHECK_TRANSACTIONS),
        (State(**RUNG, transactions=True), Step.CLAIM),
        # The end of a run.
        (State(ending=True, may_claim=False), Step.FINISH),
        (State(ending=True, may_claim=False, calling=True), Step.WAIT),
        (State(ending=True, may_claim=False, to_archive=True), Step.ARCHIVE),
        (State(ending=True, may_claim=False, to_fail=True), Step.FAIL),
        (State(ending=True, may_claim=False, prefetched=True), Step.RELEASE_UNCOUNTED),
        (State(ending=True, may_claim=False, locked=True), Step.WAIT),
        (State(ending=True, may_claim=False, transactions=True), Step.WAIT),
        (
            State(ending=True, may_claim=False, transactions=True, check_transactions=True),
            Step.CHECK_TRANSACTIONS,
        ),
        (
            State(ending=True, may_claim=False, transactions=True, transactions_overdue=True),
            Step.FINISH,
        ),
        (
            State(
                ending=True,
                may_claim=False,
                to_archive=True,
                transactions=True,
                transactions_overdue=True,
            ),
            Step.ARCHIVE,
        ),
        # A run that ends when nothing is left to do.
        (State(**ROOM, once=True), Step.CLAIM_AGAIN),
        (State(**RUNG, once=True), Step.CLAIM),
        (State(**RUNG, once=True, found_nothing=True), Step.CLAIM),
        (State(**ROOM, once=True, found_nothing=True), Step.END),
        (State(once=True, found_nothing=True, may_claim=False), Step.WAIT),  # paused
        (State(**ROOM, once=True, found_nothing=True, calling=True), Step.WAIT),
        (State(**ROOM, once=True, found_nothing=True, locked=True), Step.WAIT),
        (State(**ROOM, once=True, found_nothing=True, transactions=True), Step.WAIT),
        (State(**ROOM, once=True, ordered=True, held_up=True), Step.WAIT),
        (State(**ROOM, once=True, found_nothing=True, to_fail=True), Step.FAIL),
    ],
    ids=lambda value: (
        "-".join(
            f.name
            for f in attrs.fields(State)
            if getattr(value, f.name) not in (False, 0) and f.name != "may_claim"
        )
        if isinstance(value, State)
        else value.name
    ),
)
def test_the_next_step(state: State, step: Step) -> None:
    assert next_step(state) is step


@pytest.mark.parametrize("field", [f.name for f in attrs.fields(State) if f.default is False])
def test_a_run_that_is_to_end_never_claims(field: str) -> None:
    ending = State(ending=True, may_claim=False, wake_pending=True)
    step = next_step(attrs.evolve(ending, **{field: True, "may_claim": False}))
    assert step not in (Step.CLAIM, Step.CLAIM_AGAIN)
