"""The database as the rest of Tocsin sees it.

These are connections, sessions, errors, and the installed schema.
"""
