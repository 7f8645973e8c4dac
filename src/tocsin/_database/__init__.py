"""The database as the rest of Tocsin sees it: connections, sessions, errors, and the
installed schema."""
