"""Structured concurrency on trio: nurseries, locks, backoff.

Nothing here knows of Tocsin.
"""
