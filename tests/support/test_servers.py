from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support import servers


def test_every_database_is_new(database_factory: Callable[[], str]) -> None:
    for dsn in (database_factory(), database_factory()):
        with psycopg.connect(dsn) as connection:
            connection.execute("create table only_here ()")


def test_a_database_is_dropped_though_it_is_in_use(server: servers.Server) -> None:
    name = server.create_database()
    session = psycopg.connect(server.dsn(name))
    server.drop_database(name)
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    session.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(server.dsn(name))


def test_a_database_can_be_a_copy(server: servers.Server, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("create table copied ()")
        template = connection.info.dbname
    copy = server.create_database(template)
    try:
        with psycopg.connect(server.dsn(copy)) as connection:
            connection.execute("select from copied")
    finally:
        server.drop_database(copy)


def test_the_tcp_address_works(server: servers.Server, dsn: str) -> None:
    if server.host is None:
        pytest.skip("not known for this server")
    with psycopg.connect(make_conninfo(dsn, host=server.host, port=server.port)) as connection:
        assert connection.info.server_version == server.version_num
