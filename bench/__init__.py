"""Benchmarks: ``python -m bench``, with ratios to a floor of the same run as figures.

A time by itself says more about a machine, and about what else it did just then, than
about Tocsin. So each time is compared with the same thing done by hand: psycopg, a few
lines of SQL, nothing between them (``floor.py``). Floor and subject take turns, so that
a machine that becomes slower does so for both. What is recorded, and compared with the
record, is the ratio.

One file is one scenario: an async function that takes a `Bench` and returns each
`Result`. ``scenarios.py`` has their names, ``frame.py`` what they share, ``child.py``
the processes that take part in them, ``results.py`` what becomes of the figures.
"""
