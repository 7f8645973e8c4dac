"""Programs that write the files in ``sql/`` which an installation determines."""
