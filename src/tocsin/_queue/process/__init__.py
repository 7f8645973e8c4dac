"""This process as the database sees it.

Its parts are its registration, its LISTEN connection, its heartbeat, and the waking of
its tasks.
"""
