"""The file that settings are read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_file(table: dict[str, Any], path: Path | None = None) -> Path:
    path = path or Path("pyproject.toml")
    lines = [
        f"{key} = {value if isinstance(value, int | float) else repr(value)}"
        for key, value in table.items()
    ]
    path.write_text("\n".join(["[project]", "name = 'mine'", "[tool.tocsin]", *lines]))
    return path.absolute()
