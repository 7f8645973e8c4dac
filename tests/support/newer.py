"""A later version of the SQL contract, made from a copy of ``sql/``."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tocsin
from tocsin._database import schema as schemas
from tocsin._database.catalog import read_catalog, write_definitions

SQL = Path(__file__).parents[2] / "sql"

RING_EARLY = "ring_early boolean default false, remark text default null"
IS_ACTIVE = "tocsin._is_active(worker_id bigint, remark text default null)"


LATER = f"migrations/{schemas.migrations()[-1].number + 1:04}_later.sql"
"""A migration behind the last one."""


class Folder:
    """A copy of ``sql/`` that a test changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(SQL, path)

    @classmethod
    def of_next_version(cls, path: Path) -> Folder:
        """Return one with a migration, and with other parameters of an entry point and
        of an internal function."""
        folder = cls(path)
        folder.replace("enqueue.sql", "ring_early boolean default false", RING_EARLY)
        folder.replace("enqueue.sql", "tocsin._is_active(worker_id bigint)", IS_ACTIVE)
        folder.add(LATER, "alter table tocsin.queues add remark text;\n")
        folder.raise_version(serves=schemas.ours().version)
        return folder

    def replace(self, file: str, old: str, new: str) -> None:
        """Replace the one place of a file, found by its name, that has this text."""
        (path,) = self.path.rglob(file)
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, (file, old)
        path.write_text(text.replace(old, new), encoding="utf-8")

    def add(self, file: str, text: str) -> None:
        """Append to a file, or write a new one."""
        with (self.path / file).open("a", encoding="utf-8") as out:
            out.write(text)

    def raise_version(self, *, serves: int) -> None:
        """Make it the version after the checkout's."""
        contract = self.path / "contract.toml"
        text = contract.read_text(encoding="utf-8")
        last = max(int(path.name[:4]) for path in (self.path / "migrations").iterdir())
        version = schemas.ours().version + 1
        text = re.sub(r"^version = .*$", f"version = {version}", text, flags=re.MULTILINE)
        text = re.sub(r"^serves = .*$", f"serves = {serves}", text, flags=re.MULTILINE)
        text = text.removesuffix(f"{version} = {last - 1}\n").removesuffix(f"{version} = {last}\n")
        contract.write_text(f"{text}{version} = {last}\n", encoding="utf-8")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have this process be a package that brings this folder."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schemas, "_directory", lambda: self.path)
            _forget()
            try:
                yield
            finally:
                _forget()

    async def write_catalog(self, dsn: str) -> None:
        """Write what a fresh installation holds, which takes an empty database."""
        with self.in_use():
            async with tocsin.connect(dsn) as store:
                await store.install()
                async with store.transaction() as connection:
                    definitions = await read_catalog(connection, schemas.Schema("tocsin"))
        for name, text in write_definitions(definitions).items():
            (self.path / "catalog" / name).write_text(text, encoding="utf-8")


def _forget() -> None:
    for cached in (schemas.migrations, schemas.load, schemas.functions, schemas.ours):
        cached.cache_clear()
