"""Programs that generate files in ``sql/`` from an installation."""
