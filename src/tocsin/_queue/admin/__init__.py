"""Looking at queues, messages and dead letters, and changing them."""
