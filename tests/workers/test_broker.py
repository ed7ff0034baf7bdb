"""PostgreSQL as a broker, whose sessions may end amid any exchange."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kombu
import psycopg
import pytest
from celery import Celery
from sqlalchemy import Engine, event

from tests.conftest import as_superuser
from workers import broker

QUEUE = "overread"
Connect = Callable[[], kombu.Connection]


@pytest.fixture
def connect(fresh_database: str) -> Iterator[Connect]:
    """Connections to one queue in a database of the test's own, made as a worker makes them."""
    url = as_superuser(fresh_database).replace("postgresql://", "sqla+postgresql+psycopg://")
    celery = Celery("test", set_as_current=False)
    broker.connect_through(celery, url=url)
    made: list[kombu.Connection] = []

    def one() -> kombu.Connection:
        made.append(celery.amqp.Connection(url))
        return made[-1]

    yield one
    for connection in made:
        connection.release()


def send(channel: Any) -> None:
    channel._put(QUEUE, {"job_id": 7})


def receive(channel: Any) -> None:
    assert channel._get(QUEUE) == {"job_id": 7}


@contextmanager
def ended_at(number: int, *, database: str, engine: Engine) -> Iterator[list[str]]:
    """Let the server end the session right before its statement of this number; yields where that was."""
    statements, ended = itertools.count(1), list[str]()

    def end(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if next(statements) == number:
            with psycopg.connect(as_superuser(database), autocommit=True) as server:
                pid = connection.connection.dbapi_connection.info.backend_pid
                server.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            ended.append(statement)

    event.listen(engine, "before_cursor_execute", end)
    try:
        yield ended
    finally:
        event.remove(engine, "before_cursor_execute", end)


@pytest.mark.parametrize("exchange", [send, receive])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_session_that_ends_amid_an_exchange_is_a_lost_connection_and_the_next_one_works(
    connect: Connect, fresh_database: str, exchange: Callable[[Any], None], number: int
) -> None:
    connection = connect()
    channel = connection.channel()
    send(channel)
    with ended_at(number, database=fresh_database, engine=channel.session.get_bind()) as ended:
        try:
            exchange(channel)
        except connection.connection_errors:
            assert ended, "no session ended, and yet it failed"
    if exchange is receive or number < 3:
        assert ended, "the exchange has fewer statements than this"
    channel._purge(QUEUE)
    send(channel)
    receive(channel)


def test_a_message_is_gone_with_its_delivery(connect: Connect) -> None:
    one, other = connect().channel(), connect().channel()
    send(one)
    receive(other)
    with pytest.raises(broker.sqlalchemy.Empty):
        one._get(QUEUE)
