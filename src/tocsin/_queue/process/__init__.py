"""This process as the database sees it: its registration, LISTEN connection, heartbeat,
and the waking of its tasks."""
