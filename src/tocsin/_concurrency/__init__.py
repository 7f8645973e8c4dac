"""Structured concurrency on trio: nurseries, locks, backoff, deadlines of cleanups.

Nothing here knows of Tocsin.
"""
