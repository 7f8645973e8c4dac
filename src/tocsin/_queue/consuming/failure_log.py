"""Log records of failed deliveries.

A record has the error, and says whether the message comes back and when.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import groupby

from tocsin._queue.message import Message, task_of

from .failure import Failure

logger = logging.getLogger("tocsin.handler")

UNANSWERED = "the database has not answered; it is delivered again when its lease ends"
"""The outcome when the run ends before the database has told one."""

SETTLED_ELSEWHERE = "a transaction of the handler has settled it"
"""The outcome when the handler has settled the message before it failed."""


def log_outcomes(
    name: str,
    failed: Sequence[tuple[Message, Failure]],
    outcomes: Sequence[float | str | None],
    *,
    batches: bool = False,
) -> None:
    """Log failures and their outcomes, in one line for each call of the handler.

    Args:
        name: The handler's name.
        failed: Messages with their failures; those of one call stand together.
        outcomes: As ``tocsin.fail`` returns them, or texts.
        batches: Whether the handler takes a list of messages.
    """
    for _, group in groupby(zip(failed, outcomes, strict=True), key=lambda item: id(item[0][1])):
        members = list(group)
        (_, failure), _ = members[0]
        log_failure(
            name,
            failure,
            [m for (m, _), _ in members],
            _summarize([o for _, o in members]),
            batches=batches,
        )


def log_failure(
    name: str, failure: Failure, messages: Sequence[Message], outcome: str, *, batches: bool = False
) -> None:
    """Log the failure of one call of the handler of this name, and its outcome."""
    first = messages[0]
    name = name_handler(name, messages)
    fields: dict[str, object] = {"queue": first.queue}
    if batches:
        what = f"messages {', '.join(str(m.id) for m in messages)}"
    else:
        what = f"message {first.id}, delivery {first.read_ct}"
        fields |= {"message_id": first.id, "delivery": first.read_ct}
    match failure.verdict:
        case "snoozed":
            logger.info("%s snoozed %s; %s", name, what, outcome, extra=fields)
        case "rejected":
            logger.warning(
                "%s rejected %s: %s; %s", name, what, failure.text, outcome, extra=fields
            )
        case "handler_failed" | "timed_out":
            said = "%s failed with %s: %s; %s"
            logger.warning(
                said, name, what, failure.text, outcome, exc_info=failure.loggable, extra=fields
            )


def name_handler(name: str, messages: Sequence[Message]) -> str:
    """Return how the log names the handler of these messages: for a job, by its task.

    Args:
        name: The handler's own name.
        messages: The messages of one call; none before the first call.
    """
    return (task_of(messages[0]) if messages else None) or name


def _summarize(outcomes: Sequence[float | str | None]) -> str:
    if len(outcomes) == 1:
        return _describe(outcomes[0])
    delays = sorted(o for o in outcomes if isinstance(o, float) and math.isfinite(o))
    dead, gone = outcomes.count(math.inf), outcomes.count(None)
    cancelled = outcomes.count(-math.inf)
    parts = [o for o in outcomes[:1] if isinstance(o, str)]
    if delays:
        parts.append(f"{len(delays)} are delivered again in {delays[0]:.1f} to {delays[-1]:.1f} s")
    if dead:
        parts.append(f"{dead} are dead letters now")
    if cancelled:
        parts.append(f"{cancelled} were cancelled")
    if gone:
        parts.append(f"{gone} had lost their leases, and are already requeued")
    return ", ".join(parts)


def _describe(outcome: float | str | None) -> str:
    if isinstance(outcome, str):
        return outcome
    if outcome is None:
        return "its lease was lost, and it is already requeued"
    if outcome == math.inf:
        return "it is a dead letter now"
    if outcome == -math.inf:
        return "it was cancelled"
    return (
        f"it is delivered again in {outcome:.1f} s" if outcome else "it is delivered again at once"
    )
