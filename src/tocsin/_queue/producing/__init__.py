"""Enqueueing: from a producer, a store, or the caller's connection."""
