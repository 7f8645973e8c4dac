"""Jobs: messages that a worker answers by calling a function."""
