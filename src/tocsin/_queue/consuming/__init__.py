"""Consuming: claims, leases, runs, handlers and settlement."""
