"""A duration is a number of seconds, also across a change of the clocks in the
session's time zone."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

import tocsin
from tests.support import move_clock, open_connection
from tests.support.sweeps import sweep
from tocsin._database.schema import functions
from tocsin.driver import TrioConnection

DAYS = 60
LENGTHS = [f"interval '{DAYS} days'", "interval '2 months'", f"interval '{DAYS * 24} hours'"]
START = "timestamptz '2027-{:02}-01 00:00+00'"


@pytest.fixture(params=[2, 9], ids=["spring", "autumn"])
async def berlin(
    request: pytest.FixtureRequest, store: tocsin.Store, store_dsn: str
) -> AsyncIterator[TrioConnection[Any]]:
    """A session in a time zone whose clocks change within the next sixty days."""
    await store.queues.create("q")
    async with open_connection(store_dsn) as connection:
        cursor = await connection.execute(
            f"select extract(epoch from {START.format(request.param)} - now())::float8".encode()
        )
        ((ahead,),) = await cursor.fetchall()
        await move_clock(store_dsn, ahead)
        await connection.execute("set timezone = 'Europe/Berlin'")
        cursor = await connection.execute(
            "select (tocsin._clock() + interval '60 days') - tocsin._clock() = interval '60 days'"
        )
        assert await cursor.fetchall() == [(False,)]  # the operator goes by the calendar
        yield connection


async def off(connection: TrioConnection[Any], times: str, start: str = "tocsin._clock()") -> float:
    """By how many seconds the time that a statement gives differs from sixty days after
    ``start``."""
    cursor = await connection.execute(
        (
            f"select extract(epoch from x.at - {start})::float8 - {DAYS * 86400}"
            f" from ({times}) x (at)"
        ).encode()
    )
    ((seconds,),) = await cursor.fetchall()
    return abs(float(seconds))


SOON = 600.0  # much longer than a test takes, and much shorter than the hour by which clocks change


@sweep("length", LENGTHS, quick=1)
async def test_a_message_is_due_and_expires_after_a_number_of_seconds(
    berlin: TrioConnection[Any], length: str
) -> None:
    for enqueue in (
        f"select tocsin.enqueue('q', '1', delay => {length}, expires_in => {length})",
        f"select tocsin.enqueue_many('q', '[1]', delay => {length}, expires_in => {length})",
        (
            "select tocsin.enqueue_each('q', jsonb_build_array(jsonb_build_object('payload', 1,"
            f" 'delay', {length}, 'expires_in', {length})))"
        ),
    ):
        await berlin.execute("delete from tocsin.messages")
        await berlin.execute(enqueue.encode())
        assert await off(berlin, "select due from tocsin.messages") < SOON
        assert await off(berlin, "select expires_at from tocsin.messages") < SOON
    await berlin.execute(
        f"select tocsin.reschedule(id, delay => {length}) from tocsin.messages".encode()
    )
    assert await off(berlin, "select due from tocsin.messages") < SOON


@sweep("length", LENGTHS, quick=1)
async def test_a_lease_lasts_a_number_of_seconds(berlin: TrioConnection[Any], length: str) -> None:
    await berlin.execute(
        "create temp table w as select * from tocsin.register_worker('q', 'consumer', 'w', null,"
        " 'h', 1, '0')"
    )
    await berlin.execute("select tocsin.enqueue('q', '1')")
    await berlin.execute(
        "create temp table m as select c.* from w, tocsin.claim(w.id, w.registration, 1,"
        f" {length}) c".encode()
    )
    assert await off(berlin, "select vt from tocsin.messages") < SOON
    await berlin.execute(f"select tocsin.extend(array[id], array[lease], {length}) from m".encode())
    assert await off(berlin, "select vt from tocsin.messages") < SOON
    await berlin.execute(
        f"select tocsin.release(array[id], array[lease], {length}) from m".encode()
    )
    assert await off(berlin, "select due from tocsin.messages") < SOON
    # The queue's own.
    await berlin.execute(f"select tocsin.update_queue('q', vt => {length})".encode())
    await berlin.execute("update tocsin.messages set state = 'ready', due = tocsin._clock()")
    await berlin.execute("select c.* from w, tocsin.claim(w.id, w.registration, 1) c")
    assert await off(berlin, "select vt from tocsin.messages") < SOON


@sweep("length", LENGTHS, quick=1)
async def test_a_retention_lasts_a_number_of_seconds(
    berlin: TrioConnection[Any], length: str
) -> None:
    await berlin.execute(
        (
            f"select tocsin.update_queue('q', retention => {length},"
            f" dead_letter_retention => {length})"
        ).encode()
    )
    await berlin.execute(
        "create temp table w as select * from tocsin.register_worker('q', 'consumer', 'w', null,"
        " 'h', 1, '0')"
    )
    await berlin.execute("select tocsin.enqueue('q', '1')")
    await berlin.execute(
        "create temp table m as select c.* from w, tocsin.claim(w.id, w.registration, 1) c"
    )
    await berlin.execute("select tocsin.archive(array[id], array[lease]) from m")
    assert await off(berlin, "select keep_until from tocsin.archive") < SOON
    assert await off(berlin, "select tocsin._clock()", f"tocsin._cutoff({length})") < SOON
    # Dead letters that are ten minutes younger, and ten minutes older.
    for age in (DAYS * 86400 - SOON, DAYS * 86400 + SOON):
        await berlin.execute(
            b"insert into tocsin.dead_letters (id, queue_id, priority, read_ct, enqueued_at,"
            b" died_at, payload, reason) select nextval('tocsin.registrations'), q.id, 0, 1, now(),"
            b" tocsin._clock() - make_interval(secs => %s), '1', 'r' from tocsin.queues q",
            [age],
        )
    cursor = await berlin.execute("select tocsin._purge_expired_dead_letters(10)")
    assert await cursor.fetchall() == [(1,)]
    await berlin.execute(f"select tocsin.replay(queue => 'q', delay => {length})".encode())
    assert await off(berlin, "select due from tocsin.messages") < SOON


def test_no_function_adds_an_interval_of_days_by_the_operator() -> None:
    """What a caller or a setting gives goes through tocsin._later; the operator is for
    constants of hours, minutes and seconds."""
    code = "\n".join(line.split("--")[0] for line in functions().splitlines())
    lengths = (
        r"(\w+\.)?(delay|vt|retention|dead_letter_retention|expires_in|older_than|lease_length"
        r"|every|grace|max_age|heartbeat)\b"
    )
    assert re.findall(rf"[+-] {lengths}", code) == []
    assert re.findall(r"[+-] interval '[^']*(?:day|week|month|year)", code) == []
