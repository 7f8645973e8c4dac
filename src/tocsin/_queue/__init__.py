"""The queue: messages, and the five stations of their way."""
