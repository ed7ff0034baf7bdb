"""PostgreSQL as the broker: Kombu's SQL transport, made fit for a service that runs for years.

Invariant: a message is delivered once and then gone. Kombu's own transport keeps each delivered message for ever, asks
once a second, lets consumers wait for each other's row locks, and fails when two processes create its tables at once.
Losing a message is harmless: it only carries the number of a job, and the relay sends it again.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, sqlalchemy
from kombu.transport.sqlalchemy.models import metadata
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import IntegrityError

POLL_SECONDS = 0.2

_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('overread broker'))")


class Channel(sqlalchemy.Channel):  # type: ignore[misc] # Kombu is untyped
    """Kombu's channel, with delivery that deletes."""

    def _engine_from_config(self) -> Engine:
        engine = create_engine(self.connection.client.hostname, pool_pre_ping=True)
        with engine.begin() as connection:
            connection.execute(_LOCK)
            metadata.create_all(connection)
        return engine

    def _get_or_create(self, queue: str) -> Any:
        try:
            return super()._get_or_create(queue)
        except IntegrityError:  # another process was faster
            self.session.rollback()
            return super()._get_or_create(queue)

    def _get(self, queue: str) -> Any:
        wanted = self._get_or_create(queue).id
        try:
            message = (
                self.session.query(self.message_cls)
                .filter(self.message_cls.queue_id == wanted, self.message_cls.visible)
                .order_by(self.message_cls.id)
                .with_for_update(skip_locked=True)
                .limit(1)
                .first()
            )
            if message is None:
                raise sqlalchemy.Empty
            payload = message.payload
            self.session.delete(message)
            return loads(bytes_to_str(payload))
        finally:
            self.session.commit()


class Transport(sqlalchemy.Transport):  # type: ignore[misc] # Kombu is untyped
    """What `sqla+postgresql+psycopg://` means here."""

    Channel = Channel
    polling_interval = POLL_SECONDS


def install() -> None:
    """Make Kombu use this transport for broker URLs that begin with `sqla+`."""
    TRANSPORT_ALIASES["sqla"] = f"{__name__}:{Transport.__name__}"
