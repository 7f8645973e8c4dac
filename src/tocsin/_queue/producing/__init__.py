"""Enqueueing: from a producer, a store, or a connection of the caller's."""
