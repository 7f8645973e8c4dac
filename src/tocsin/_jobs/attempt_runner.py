"""The attempts of a task's jobs: calls of its function with the arguments of a message.

Each attempt ends in one of these ways. The function has returned: its result is
archived with the message. It has raised, or has taken too long: the task's retry policy
says when the next attempt is, or that there is none. It has raised `Retry`, `Snooze` or
`Reject`: they mean what they mean to a handler. The worker ends: the function is
cancelled, and the attempt does not count. The lease was lost: the function is
cancelled, and what it does has no effect on the job.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import trio

from tocsin._queue.consuming.calls import CallScope
from tocsin._queue.consuming.failure import Escaped, find_leaves, split
from tocsin._queue.consuming.handlers import check_that_it_ran
from tocsin._queue.consuming.verdicts import AttemptFailed, Reject, Verdict
from tocsin._queue.message import Message, options_of
from tocsin.errors import ArgumentsInvalid, ResultInvalid

from .completion import BeginTransaction, Completion
from .current import CurrentJob, Running
from .function_callers import FunctionCallers
from .packing import Packing, run_packing
from .process_function import WrittenResult
from .progress import Reporter
from .retry_delay import find_retry_delay
from .task import Task


class AttemptRunner:
    """Runs the attempts of one task's jobs."""

    def __init__(
        self, task: Task[..., Any], callers: FunctionCallers, begin_transaction: BeginTransaction
    ) -> None:
        self._task = task
        self._call_function = callers.caller_for(task)
        self._limiter = callers.limiter_for(task)
        self._begin_transaction = begin_transaction

    async def run(self, message: Message, call: CallScope, state: Any) -> None:
        """Run an attempt of the job of a message.

        Its time begins when a thread or process for it is free.

        Args:
            message: The message.
            call: The call of the worker's handler, which is cancelled when the time of
                the attempt is over.
            state: The value of the worker's lifespan.

        Raises:
            Verdict: The attempt has failed, or decides itself what becomes of the job.

        Cancellation:
            The function is cancelled.
        """
        definition = self._task.definition
        packing = definition.packing
        payload = message.payload
        if packing is not None:
            payload = await self._unpack(packing, message, call)
        try:
            arguments = definition.signature.read_arguments(payload)
        except ArgumentsInvalid as invalid:
            raise Reject(str(invalid)) from invalid
        completion = Completion(message, definition, self._begin_transaction)
        try:
            if self._limiter is None:
                returned = await self._call(call, completion, state, payload, arguments)
            else:
                async with self._limiter:
                    returned = await self._call(call, completion, state, payload, arguments)
        except BaseException as raised:
            self._judge(raised, message, call)
        finally:
            call.unlimit()
        if completion.result is not None:
            completion.warn_of_another(returned)
            return
        try:
            text = (
                returned.text
                if isinstance(returned, WrittenResult)
                else definition.signature.write_result(returned)
            )
        except ResultInvalid as invalid:
            raise AttemptFailed("handler_failed", math.inf) from invalid
        if packing is not None:
            text = await self._pack(packing, message, call, text)
        message.keep_result(text)

    async def _call(
        self,
        call: CallScope,
        completion: Completion,
        state: Any,
        payload: object,
        arguments: dict[str, Any],
    ) -> object:
        task, message = self._task, completion.message
        timeout: float | None = options_of(message).get("timeout", task.options.timeout)
        deadline = math.inf
        if timeout is not None:
            deadline = call.limit(timeout)
        current = CurrentJob(
            message, task.name, timeout, deadline, state, completion, Reporter(message)
        )
        with Running(current):
            returned = await self._call_function(current, payload, arguments)
        check_that_it_ran(returned, task.name)
        return returned

    async def _unpack(self, packing: Packing, message: Message, call: CallScope) -> object:
        """Return the arguments from what is stored; an attempt without them fails."""
        try:
            return await run_packing(packing, packing.unpack, self._task.name, message.payload)
        except BaseException as raised:
            self._judge(raised, message, call)

    async def _pack(self, packing: Packing, message: Message, call: CallScope, text: str) -> str:
        """Return what is stored of a result; an attempt without it fails."""
        try:
            return await run_packing(packing, packing.pack, text)
        except BaseException as raised:
            # Also the cancellation of a call whose function has returned too late.
            self._judge(raised, message, call)

    def _judge(self, raised: BaseException, message: Message, call: CallScope) -> NoReturn:
        """Raise what an attempt raises that has ended with this error."""
        if isinstance(raised, Escaped):
            raised = raised.error
        else:
            own, outer = split(raised)
            if call.late and outer and all(isinstance(e, trio.Cancelled) for e in outer):
                late = trio.TooSlowError(f"the attempt has taken longer than {call.seconds:g} s")
                if own:  # what the function raised while it was cancelled
                    late.__cause__ = own[0] if len(own) == 1 else BaseExceptionGroup("", own)
                raise AttemptFailed("timed_out", self._find_delay(message, late)) from late
            if outer and not all(map(_is_own_interrupt, outer)):
                raise raised
        leaves = find_leaves(raised)
        if len(leaves) == 1 and isinstance(leaves[0], Verdict):
            raise raised
        raise AttemptFailed("handler_failed", self._find_delay(message, raised)) from raised

    def _find_delay(self, message: Message, error: BaseException) -> float:
        return find_retry_delay(self._task, message.read_ct, error)


def _is_own_interrupt(error: BaseException) -> bool:
    """Return whether the function has raised this `KeyboardInterrupt`.

    Otherwise trio's signal handler has.
    """
    if not isinstance(error, KeyboardInterrupt):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or trace.tb_frame.f_globals.get("__name__") != "trio._core._ki"
