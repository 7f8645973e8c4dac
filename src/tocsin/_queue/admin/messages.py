"""Messages in any state: reading and listing them."""

from __future__ import annotations

from typing import get_args

from tocsin._arguments import check_count, check_id, check_queue
from tocsin.errors import MessageNotFound

from .message_values import MessageInfo, MessageState
from .waiting_messages import WaitingMessages


class Messages(WaitingMessages):
    """The messages of a store: `Store.messages`."""

    async def get(self, message_id: int) -> MessageInfo:
        """Return a message.

        Raises:
            MessageNotFound: There is no message of this id.
            ConnectionLost: The database did not answer.

        Cancellation:
            Changes nothing.
        """
        rows = await self._database.fetch(
            "select * from tocsin.get_message(%s)", [check_id(message_id, "message_id")]
        )
        if not rows:
            raise MessageNotFound(f"message {message_id} does not exist", message_id=message_id)
        return MessageInfo(*rows[0])

    async def list(
        self,
        queue: str,
        *,
        state: MessageState | None = None,
        worker: int | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> list[MessageInfo]:
        """Return messages of a queue, by id.

        It returns those in one ``state``, or all unfinished ones: ready, delayed,
        held and leased.

        Args:
            worker: Return only messages that the consumer of this id holds. They
                include messages whose lease has expired and that no consumer has
                claimed again.
            limit: The most messages to return.
            after: The last id of the page before.

        Raises:
            QueueNotFound: The queue does not exist.
            ValueError: An argument is out of its range.

        Cancellation:
            Changes nothing.
        """
        if state is not None and state not in get_args(MessageState):
            raise ValueError(
                f"state must be one of {', '.join(get_args(MessageState))}, not {state!r}"
            )
        if worker is not None and state not in (None, "leased"):
            raise ValueError(f"worker= chooses among leased messages, not {state} ones")
        rows = await self._database.fetch(
            "select * from tocsin.list_messages(%s, %s, %s, %s, %s)",
            [
                check_queue(queue),
                state,
                None if worker is None else check_id(worker, "worker"),
                check_count(limit, "limit"),
                None if after is None else check_id(after, "after"),
            ],
        )
        return [MessageInfo(*row) for row in rows]
