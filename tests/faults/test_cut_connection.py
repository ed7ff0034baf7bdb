"""Fault matrix row 26: the connection to PostgreSQL is cut after COMMIT, before anybody heard that it was done."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from registry import confirmations
from registry.db import connect
from tests.faults.conftest import MakePlace
from tests.faults.places import READ
from tests.faults.scenarios import SCENARIOS
from tests.faults.test_full_disk import api_of


@dataclass(kw_only=True)
class Cutter:
    """Carries bytes to PostgreSQL and back; once armed, it cuts a connection when the COMMIT of a diagnosis is done."""

    server: Path
    listener: socket.socket
    armed: threading.Event = field(default_factory=threading.Event)
    cut: threading.Event = field(default_factory=threading.Event)

    def serve(self) -> None:
        """Take connections until the listener is closed."""
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self.server))
        doomed = threading.Event()
        back = threading.Thread(target=self._back, args=(server, client, doomed), daemon=True)
        back.start()
        writes = False
        while data := _received(client):
            writes = writes or b"INSERT INTO confirmations" in data
            if writes and b"COMMIT" in data and self.armed.is_set():
                doomed.set()
            server.sendall(data)
        _close(server)

    def _back(self, server: socket.socket, client: socket.socket, doomed: threading.Event) -> None:
        while data := _received(server):
            if doomed.is_set():
                if b"COMMIT\x00" not in data:  # the tag of CommandComplete: it is done
                    continue
                self.armed.clear()
                self.cut.set()
                break
            client.sendall(data)
        _close(client)


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(65536)
    except OSError:
        return b""


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was quicker
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@pytest.fixture
def cutter(fresh_database: str) -> Iterator[Cutter]:
    """A cutter before the tests' own server."""
    folder = parse_qs(urlsplit(fresh_database).query)["host"][0]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Cutter(server=next(Path(folder).glob(".s.PGSQL.*[0-9]")), listener=listener)
        threading.Thread(target=made.serve, daemon=True).start()
        yield made


def test_a_repeat_after_the_cut_gets_the_answer_that_was_stored(make_place: MakePlace, cutter: Cutter) -> None:
    place = make_place()
    with connect(place["database_url"]) as conn:
        place.update(SCENARIOS["a confirmation"].prepare(conn, place))
    parts = urlsplit(place["database_url"])
    port = cutter.listener.getsockname()[1]
    through = f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}?sslmode=disable&gssencmode=disable"
    path, key = f"/v1/cases/{place['cases'][0]}/confirmations", {"Idempotency-Key": "once"}
    with api_of({**place, "database_url": through}) as client:
        cutter.armed.set()
        lost = client.post(path, json=READ, headers=key)
        assert cutter.cut.is_set(), "COMMIT was never seen: the test cut nothing"
        assert (lost.status_code, lost.json()["type"]) == (503, "/problems/record-unavailable")
        assert "Idempotency-Key" in lost.json()["detail"], "the refusal says how to find out"
        again = client.post(path, json=READ, headers=key)
        assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    with connect(place["database_url"]) as conn:
        (one,) = confirmations.list_for_case(conn, place["cases"][0])
        assert one.confirmation_id == again.json()["confirmation_id"]
