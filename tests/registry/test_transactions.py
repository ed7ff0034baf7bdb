"""Transactions lent by the pool: all or nothing, in few round trips, through a server that went away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import psycopg
import pytest

from registry import db
from tests.conftest import as_superuser

ADD = "INSERT INTO blobs (digest, size_bytes, media_type) VALUES (repeat(%s, 64), %s, 'text/plain')"


@pytest.fixture
def pool(fresh_database: str) -> Iterator[db.Pool]:
    """A pool of one connection."""
    with db.pool(fresh_database, maximum=1) as made:
        yield made


def count(pool: db.Pool) -> int:
    with db.transaction(pool) as connection:
        return int(db.fetch_value(connection, "SELECT count(*) FROM blobs"))


def add(pool: db.Pool, *rows: tuple[str, int], pipelined: bool, then: Callable[[db.Connection], object] = str) -> None:
    with db.transaction(pool, pipelined=pipelined) as connection:
        for row in rows:
            connection.execute(ADD, row)
        then(connection)


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_block_is_committed_at_its_end_or_not_at_all(pool: db.Pool, *, pipelined: bool) -> None:
    add(pool, ("a", 1), pipelined=pipelined)
    assert count(pool) == 1
    with pytest.raises(ZeroDivisionError):
        add(pool, ("b", 1), pipelined=pipelined, then=lambda _: 1 / 0)
    assert count(pool) == 1


@pytest.mark.parametrize("pipelined", [False, True])
def test_an_error_in_the_last_statement_is_raised_and_nothing_is_kept(pool: db.Pool, *, pipelined: bool) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        add(pool, ("a", 1), ("b", -1), pipelined=pipelined)
    assert count(pool) == 0


def test_a_transaction_whose_error_was_passed_over_is_not_taken_for_committed(pool: db.Pool) -> None:
    def pass_over(connection: db.Connection) -> None:
        with suppress(psycopg.errors.CheckViolation), connection.pipeline():
            connection.execute(ADD, ("b", -1))

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        add(pool, ("a", 1), pipelined=True, then=pass_over)
    assert count(pool) == 0


def test_a_pipelined_transaction_makes_a_round_trip_only_for_what_is_read(pool: db.Pool) -> None:
    with db.transaction(pool, pipelined=True) as connection:
        connection.execute(ADD, ("a", 1))
        status = connection.info.transaction_status
        assert status == psycopg.pq.TransactionStatus.ACTIVE, "sent, and not waited for"
        assert db.fetch_value(connection, "SELECT count(*) FROM blobs") == 1


def test_a_query_alone_leaves_no_transaction_behind(pool: db.Pool) -> None:
    with db.reading(pool) as connection:
        assert db.fetch_value(connection, "SELECT 1") == 1
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    with pytest.raises(psycopg.errors.UndefinedTable), db.reading(pool) as connection:
        connection.execute("SELECT FROM nowhere")
    with db.transaction(pool) as connection:
        connection.execute(ADD, ("a", 1))
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


def test_a_connection_that_the_server_ended_costs_no_request(pool: db.Pool, fresh_database: str) -> None:
    assert count(pool) == 0
    with db.connect(as_superuser(fresh_database)) as administrator:
        administrator.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE application_name = 'overread' AND pid <> pg_backend_pid() AND datname = current_database()"
        )
        administrator.commit()
    for lend in (db.reading, db.transaction):
        with lend(pool) as connection:
            assert db.fetch_value(connection, "SELECT 1") == 1
