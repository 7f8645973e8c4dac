"""The settlement of a run's failed messages: together, or one by one after a refusal.

The module also logs each failure with its outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from tocsin._database.error_mapping import is_refusal
from tocsin._queue.message import Message

from .failure import Failure
from .failure_log import log_failure, log_outcomes
from .handlers import HandlerOptions
from .leases import Leases
from .settlement import Settler
from .unsettled import Unsettled


class FailureSettler:
    """The settlement of a run's messages that have failed, been rejected or snoozed."""

    def __init__(
        self, settler: Settler, leases: Leases, unsettled: Unsettled, options: HandlerOptions
    ) -> None:
        self._settler = settler
        self._leases = leases
        self._unsettled = unsettled
        self._options = options

    async def fail(self) -> None:
        """Settle the messages that have failed.

        They are settled one by one when the database refuses one of them.
        """
        while failed := self._unsettled.to_fail[:]:
            try:
                await self._fail(failed)
            except psycopg.Error as error:
                if not is_refusal(error):
                    raise
                for one in failed:  # the database refuses one of the messages
                    try:
                        await self._fail([one])
                    except psycopg.Error as refused:
                        if not is_refusal(refused):
                            raise
                        self._give_up(one, refused)

    async def _fail(self, failed: Sequence[tuple[Message, Failure]]) -> None:
        outcomes = await self._settler.fail(
            [m for m, _ in failed], [f for _, f in failed], keep_place=self._options.ordered
        )
        del self._unsettled.to_fail[: len(failed)]
        self.log(failed, outcomes)

    def _give_up(self, failed: tuple[Message, Failure], refused: psycopg.Error) -> None:
        self._leases.drop(failed[0])
        del self._unsettled.to_fail[0]
        outcome = (
            f"it can neither be archived nor put back ({refused}), and will be when its lease ends"
        )
        self.log([failed], [outcome])

    def log(
        self, failed: Sequence[tuple[Message, Failure]], outcomes: Sequence[float | str | None]
    ) -> None:
        """Log the failures and their outcomes."""
        log_outcomes(self._options.name, failed, outcomes, batches=self._options.batches)

    def log_unsettled(self, failure: Failure, messages: Sequence[Message]) -> None:
        """Log the failure of a call that has no messages left to settle."""
        log_failure(
            self._options.name,
            failure,
            messages,
            "nothing was left to settle",
            batches=self._options.batches,
        )
