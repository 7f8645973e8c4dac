"""A type checker sees the types of the public names, which are imported lazily."""

from __future__ import annotations

import re
from pathlib import Path

import mypy.api

PROGRAM = """
import tocsin

async def main() -> None:
    async with tocsin.connect() as store, store.consumer("q") as consumer:
        reveal_type(await store.produce("q", 1))
        reveal_type(await consumer.dequeue())
    reveal_type(tocsin.settings.load())
    reveal_type(tocsin.driver.open_pool)
    tocsin.connects
"""


def test_the_names_have_types_and_a_misspelled_one_is_an_error(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, "utf-8")
    output, _, _ = mypy.api.run(["--strict", "--config-file=", str(program)])
    revealed = re.findall(r'Revealed type is "(.*)"', output)
    assert revealed[:3] == [
        "int",
        "list[tocsin._queue.message.Message]",
        "tocsin.settings.Settings",
    ]
    assert revealed[3].startswith("def "), revealed[3]
    assert re.findall(r":(\d+): error: (.*)  \[attr-defined\]", output) == [
        ("10", 'Module has no attribute "connects"; maybe "connect"?')
    ]
