"""Benchmarks: ``python -m bench``. Each figure has a ratio to a floor of the same run.

An absolute time depends on the machine and on its other load more than on Tocsin. So
each scenario also measures a *floor*: the same work done by hand with psycopg and a few
lines of SQL (``floor.py``). The floor and Tocsin take turns, so that a slower machine
affects both. The ratio of the two is recorded, and compared with the recorded ratio.

Each scenario is a module with an async function that takes a `Bench` and returns each
`Result`. ``scenarios.py`` has the names of the scenarios, ``frame.py`` their common
parts, ``child.py`` their processes, and ``results.py`` the handling of the figures.
"""
