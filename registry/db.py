"""Connections to the record, and the four ways the other modules talk to it.

Sessions run in UTC at READ COMMITTED with autocommit off. Functions of this package take a connection first and never
commit: whoever opens the transaction ends it, with `with transaction(pool) as conn: ...`.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from registry.errors import NotFound, RegistryError

Connection = psycopg.Connection[TupleRow]
Pool = ConnectionPool[Connection]
Row = TypeVar("Row")
Parameters = Sequence[Any] | Mapping[str, Any]

IDLE_SECONDS = 60.0
"""A pooled session that leaves a transaction open for so long is ended: a process that hangs gives up its locks."""

_AT_A_TIME = 5000
"""Rows that a streaming cursor fetches in one round trip."""

_SESSION: dict[str, Any] = {"options": "-c timezone=UTC", "application_name": "overread", "connect_timeout": 10}


def connect(url: str) -> Connection:
    """Open one connection: autocommit off, UTC. Raises psycopg.OperationalError when the server does not answer."""
    return psycopg.connect(url, **_SESSION)


def pool(
    url: str,
    *,
    minimum: int = 1,
    maximum: int = 10,
    timeout_seconds: float = 5.0,
    statement_seconds: float = 0.0,
    lock_seconds: float = 0.0,
) -> Pool:
    """Open a pool of connections; asking a full one for longer than `timeout_seconds` raises psycopg_pool.PoolTimeout.

    A statement that takes longer than `statement_seconds`, or waits longer than `lock_seconds` for a lock, is cancelled
    and raises psycopg.OperationalError; 0 lets it take its time.

    A connection that the server has left is replaced before it is handed out: a restarted server costs no request.
    """
    limits = (
        f"-c statement_timeout={statement_seconds}s -c lock_timeout={lock_seconds}s"
        f" -c idle_in_transaction_session_timeout={IDLE_SECONDS}s"
    )
    return ConnectionPool(
        url,
        min_size=minimum,
        max_size=maximum,
        timeout=timeout_seconds,
        kwargs={**_SESSION, "options": f"{_SESSION['options']} {limits}"},
        check=_check,
        open=True,
        name="record",
    )


@contextmanager
def transaction(pool: Pool, *, pipelined: bool = False) -> Iterator[Connection]:
    """Lend a connection for one transaction: committed at the end of the block, rolled back if it raises.

    Pipelined, a statement is sent with the next one whose result is read, or with COMMIT, and its error shows there:
    fewer round trips, but no COPY and no streaming.
    """
    with pool.connection() as conn:
        if not pipelined:
            yield conn
            sys.audit("overread.fault", "transaction.commit.before")
        else:
            with conn.pipeline():
                yield conn
                sys.audit("overread.fault", "transaction.commit.before")
                # By hand: psycopg's own `transaction` and `commit` make round trips of their own in a pipeline.
                commit = conn.execute("COMMIT", prepare=False)
            if commit.statusmessage != "COMMIT":  # an error was caught and passed over: PostgreSQL rolled back
                raise psycopg.errors.InFailedSqlTransaction("the transaction had failed before its end")
    sys.audit("overread.fault", "transaction.commit.after")


@contextmanager
def reading(pool: Pool) -> Iterator[Connection]:
    """Lend a connection for a single query, which needs no transaction around it: one round trip, not three."""
    with pool.connection() as conn:
        conn.autocommit = True
        try:
            yield conn
        finally:
            with suppress(psycopg.Error):  # a connection that broke is thrown away by the pool
                conn.autocommit = False


def row_of(cls: type[Row]) -> Callable[[psycopg.Cursor[Any]], Callable[[Sequence[Any]], Row]]:
    """Make rows into `cls`, a dataclass, by column name; columns it does not know are left out.

    Leaving them out lets a running process outlive a migration that adds a column.
    """
    wanted = {field.name.encode(): field.name for field in fields(cls)}  # type: ignore[arg-type]  # Row is a dataclass

    def _maker(cursor: psycopg.Cursor[Any]) -> Callable[[Sequence[Any]], Row]:
        result = (
            cursor.pgresult
        )  # its names are cheaper than `cursor.description`, which makes an object of each column
        names = [wanted.get(result.fname(place) or b"") for place in range(result.nfields)] if result else []
        known = [(place, name) for place, name in enumerate(names) if name is not None]
        return lambda values: cls(**{name: values[place] for place, name in known})

    return _maker


def fetch_one(conn: Connection, cls: type[Row], query: LiteralString, parameters: Parameters = ()) -> Row | None:
    """Run `query` and return its first row as `cls`, or None."""
    with conn.cursor(row_factory=row_of(cls)) as cursor:
        return cursor.execute(query, parameters).fetchone()


def fetch_known(conn: Connection, cls: type[Row], thing: LiteralString, number: int, *, lock: bool = False) -> Row:
    """Return the `thing` (`dataset_version`) of this id; with `lock` nobody else changes it in this transaction.

    Raises NotFound.
    """
    query: LiteralString = f"SELECT * FROM {thing}s WHERE {thing}_id = %s"  # noqa: S608 - a name in our own code
    found = fetch_one(conn, cls, query + " FOR NO KEY UPDATE" if lock else query, (number,))
    if found is None:
        raise NotFound(f"there is no {thing.replace('_', ' ')} {number}")
    return found


def fetch_all(conn: Connection, cls: type[Row], query: LiteralString, parameters: Parameters = ()) -> list[Row]:
    """Run `query` and return all its rows as `cls`."""
    with conn.cursor(row_factory=row_of(cls)) as cursor:
        return cursor.execute(query, parameters).fetchall()


def stream_all(conn: Connection, cls: type[Row], query: LiteralString, parameters: Parameters = ()) -> Iterator[Row]:
    """Run `query` and yield its rows as `cls`, a few thousand at a time, from a cursor that the server holds."""
    with conn.cursor(name=f"stream_{cls.__name__}", row_factory=row_of(cls)) as cursor:
        cursor.itersize = _AT_A_TIME
        yield from cursor.execute(query, parameters)


def fetch_value(conn: Connection, query: LiteralString, parameters: Parameters = ()) -> Any:
    """Run `query` and return the first column of its first row; None where there is no row."""
    row = conn.execute(query, parameters).fetchone()
    return None if row is None else row[0]


@contextmanager
def constraint_means(conn: Connection, **meanings: RegistryError) -> Iterator[None]:
    """Run a block under a savepoint; the violation of a constraint named in `meanings` raises that refusal instead.

    The savepoint leaves the transaction usable, so that one bad row of many can be reported and the rest go on.
    """
    if conn.info.transaction_status == TransactionStatus.IDLE:
        conn.execute("SELECT 1")  # begin, or the block below would be the whole transaction and commit
    try:
        with conn.transaction():
            yield
    except psycopg.IntegrityError as error:
        meaning = meanings.get(error.diag.constraint_name or "")
        if meaning is None:
            raise
        raise meaning from error


def lock_line(conn: Connection, line_id: int) -> None:
    """Wait for the turn to change who is champion of a line; held until the transaction ends."""
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('champion of line ' || %s::text, 0))", (line_id,))


def _check(conn: Connection) -> None:
    # An idle connection has nothing to read, unless the server said goodbye or is gone. Only then is it worth asking.
    silent = select.poll()
    silent.register(conn.fileno(), select.POLLIN)
    if silent.poll(0):
        ConnectionPool.check_connection(conn)
