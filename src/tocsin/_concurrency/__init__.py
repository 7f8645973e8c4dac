"""Structured concurrency on trio that knows nothing of Tocsin: nurseries, locks,
backoff."""
