"""Connections to a broker that give up in seconds and come back in seconds, and PostgreSQL as a broker.

Invariant: whichever broker it is, one that is down or deaf is noticed within `PATIENCE_SECONDS` by whoever sends,
within a minute by whoever listens, and asked again each second. By default Redis is waited for without end, RabbitMQ is
believed to have taken what was only written to a socket, and a lost broker is asked again half a minute later.

On PostgreSQL a message is delivered once and then gone. Kombu's own transport keeps each delivered message for ever,
asks once a second, lets consumers wait for each other's row locks, and fails when two processes create its tables at
once. Losing a message is harmless: it only carries the number of a job, and the relay sends it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu
from amqp import RecoverableConnectionError
from celery import Celery
from kombu.transport import TRANSPORT_ALIASES, sqlalchemy
from kombu.transport.sqlalchemy.models import metadata
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

PATIENCE_SECONDS = 5.0
"""The longest that one exchange with a broker may take."""
HEARTBEAT_SECONDS = 10.0
RECONNECT_SECONDS = 1.0
POLL_SECONDS = 0.2

_SESSION = {
    "connect_timeout": int(PATIENCE_SECONDS),
    "options": f"-c statement_timeout={PATIENCE_SECONDS}s -c idle_in_transaction_session_timeout={HEARTBEAT_SECONDS}s",
    "keepalives_idle": int(HEARTBEAT_SECONDS),
    "tcp_user_timeout": int(HEARTBEAT_SECONDS * 1000),
}
_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('overread broker'))")


class Connection(kombu.Connection):  # type: ignore[misc] # Kombu is untyped
    """Kombu's connection, which asks a broker that is away again each second."""

    def _ensure_connection(
        self,
        errback: Any = None,
        max_retries: int | None = None,
        interval_start: float = 0,  # Kombu gives these by position as well as by name
        interval_step: float = 0,
        interval_max: float = 0,
        **options: Any,
    ) -> Any:
        del interval_start, interval_step, interval_max
        steady = {"interval_start": RECONNECT_SECONDS, "interval_step": 0, "interval_max": RECONNECT_SECONDS}
        return super()._ensure_connection(errback, max_retries, **steady, **options)


def transport_options(url: str) -> dict[str, Any]:
    """What Kombu has to be told about the broker at this URL, so that nobody waits for it without end."""
    match url.partition("://")[0].partition("+")[0]:
        case "redis" | "rediss":
            return {
                "socket_timeout": PATIENCE_SECONDS,
                "socket_connect_timeout": PATIENCE_SECONDS,
                "socket_keepalive": True,
                "health_check_interval": HEARTBEAT_SECONDS,
            }
        case "amqp" | "amqps" | "pyamqp":
            return {"confirm_publish": True, "read_timeout": PATIENCE_SECONDS, "write_timeout": PATIENCE_SECONDS}
        case _:
            return {}


class Channel(sqlalchemy.Channel):  # type: ignore[misc] # Kombu is untyped
    """Kombu's channel, with delivery that deletes."""

    def _engine_from_config(self) -> Engine:
        engine = create_engine(self.connection.client.hostname, pool_pre_ping=True, connect_args=_SESSION)
        with engine.begin() as connection:
            connection.execute(_LOCK)
            metadata.create_all(connection)
        return engine

    def _get_or_create(self, queue: str) -> Any:
        with self._exchange():
            try:
                return super()._get_or_create(queue)
            except IntegrityError:  # another process was faster
                self.session.rollback()
                return super()._get_or_create(queue)

    def _get(self, queue: str) -> Any:
        with self._exchange():
            wanted = self._get_or_create(queue).id
            message = (
                self.session.query(self.message_cls)
                .filter(self.message_cls.queue_id == wanted, self.message_cls.visible)
                .order_by(self.message_cls.id)
                .with_for_update(skip_locked=True)
                .limit(1)
                .first()
            )
            payload = None if message is None else message.payload
            if message is not None:
                self.session.delete(message)
            self.session.commit()
        if payload is None:
            raise sqlalchemy.Empty
        return loads(bytes_to_str(payload))

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        # A session that lost its server amid a transaction says `PendingRollbackError` until it is rolled back, which
        # nobody takes for a lost connection: the worker would end.
        try:
            yield
        except SQLAlchemyError:
            self.session.rollback()
            raise


class Transport(sqlalchemy.Transport):  # type: ignore[misc] # Kombu is untyped
    """What `sqla+postgresql+psycopg://` means here."""

    Channel = Channel
    polling_interval = POLL_SECONDS
    # Kombu says so of a channel that an outage closed; taken for something else, whoever sends never connects again.
    connection_errors = (*sqlalchemy.Transport.connection_errors, RecoverableConnectionError)


def connect_through(celery: Celery, *, url: str) -> None:
    """Make a Celery application reach the broker at this URL as this module says."""
    TRANSPORT_ALIASES["sqla"] = f"{__name__}:{Transport.__name__}"
    celery.amqp.Connection = Connection
    celery.conf.update(
        broker_url=url,
        broker_transport_options=transport_options(url),
        broker_connection_timeout=PATIENCE_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_heartbeat=HEARTBEAT_SECONDS,
    )
