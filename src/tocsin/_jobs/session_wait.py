"""The wait for an outcome on the connection of a program without a store.

``sql/functions/jobs/session_waits.sql`` has the protocol. `SessionWait` says what to do
next, and its user does that with a blocking or an async connection. So both kinds of
connections share one implementation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from tocsin._durations import Duration, to_seconds
from tocsin._queue.process.outcome_lookup import OUTCOMES
from tocsin._queue.process.recheck import LONGEST, SHORTEST
from tocsin.errors import ConfigError, JobNotFound

from .job_info import JobInfo, read_row

LOOK_AGAIN: Final = 10.0
"""Seconds after which a wait looks without a notification, as a process does with its
heartbeat: for the outcomes that the protocol cannot announce."""


_AWAIT: Final = (
    "select pg_backend_pid() = %s, session_number, queue_id from (values (true)) v left join"
    " tocsin.await_job(case when pg_backend_pid() = %s then %s end) on true"
)
_POOLED: Final = (
    "it leads through a pooler, which may run each transaction in another session, and a wait for a"
    " job needs one session; wait on a direct connection, or ask info() from time to time"
)


class Statement(NamedTuple):
    """To do: run a statement in a transaction of its own; send its rows."""

    text: str
    parameters: Sequence[object]


class Listen(NamedTuple):
    """To do: wait for a notification, at most for this long."""

    seconds: float


Step: TypeAlias = Statement | Listen


class SessionWait:
    """The wait of one session for the outcome of one job."""

    def __init__(self, job_id: int, backend_pid: int, timeout: Duration | None) -> None:
        """Begin the time of the wait.

        Args:
            job_id: Id of the job.
            backend_pid: The server process of the connection, as it was told at its
                start. A pooler tells another one than that of the session.
            timeout: The longest wait in seconds; None: any time.
        """
        limit = math.inf if timeout is None else to_seconds(timeout, "timeout", zero=True)
        self._job_id = job_id
        self._backend_pid = backend_pid
        self._end = time.monotonic() + limit
        self._session: tuple[int, int] | None = None
        self._begun = False
        self._locked = False

    def steps(self) -> Generator[Step, Any, JobInfo]:
        """Yield what to do, until the job is finished; return its state.

        Raises:
            JobNotFound: There is no such job.
            ConfigError: The connection leads through a pooler.
            TimeoutError: The time is over.
        """
        info = yield from self._look()
        while self._session is None:
            if info.finished:
                return info
            self._check_time()
            self._begun = True
            ((own, number, queue_id),) = yield Statement(
                _AWAIT, [self._backend_pid, self._backend_pid, self._job_id]
            )
            if not own:
                self._begun = False
                raise ConfigError("connection", _POOLED)
            if number is not None:
                self._session = number, queue_id
            if self._session is None:
                info = yield from self._look()
        pause, safe = SHORTEST, False
        while not info.finished:
            if not safe:
                safe = not (yield from self._ask(self._session[1]))
                info = yield from self._look()
                if info.finished:
                    break
            yield Listen(min(self._check_time(), LOOK_AGAIN if safe else pause))
            pause = min(2 * pause, LONGEST)
            info = yield from self._look()
        return info

    def leaving(self) -> Statement | None:
        """Return what ends the wait on the server; None: there is nothing to end."""
        if not self._begun:
            return None
        number, queue_id = self._session or (None, None)
        return Statement("select tocsin.leave_job(%s, %s, %s)", [number, queue_id, self._locked])

    def _check_time(self) -> float:
        """Return how many seconds are left.

        Raises:
            TimeoutError: None are.
        """
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"job {self._job_id} is not finished yet; it goes on")
        return remaining

    def _look(self) -> Generator[Step, Any, JobInfo]:
        rows = yield Statement(OUTCOMES, [[self._job_id]])
        if not rows:
            raise JobNotFound(self._job_id)
        return read_row(rows[0])

    def _ask(self, queue_id: int) -> Generator[Step, Any, bool]:
        """Ask whether a transaction is open that has finished jobs of the queue."""
        function = "unannounced_outcomes" if self._locked else "begin_awaiting"
        self._locked = True
        ((unannounced,),) = yield Statement(
            f"select tocsin.{function}(%s::integer[])", [[queue_id]]
        )
        return bool(unannounced)
