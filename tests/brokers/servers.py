"""Real brokers of a test's own, each in child processes with its own port and folder, to be killed, hung and wiped.

Redis and RabbitMQ are those of the machine (`make servers` installs them where apt-get can); the embedded broker is a
PostgreSQL of its own, apart from the record's, so that one may fail without the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import kombu
import psutil
import psycopg
import redis

from api.cli.health import accepts_connections
from api.cli.home import home_at
from api.cli.postgres import database_url, prepare_cluster
from api.cli.supervisor import as_user
from tests.api.service import free_port
from tests.waiting import until

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
KIND = "note"
"""A kind of job of the tests' own, done at once."""


class Missing(Exception):
    """This machine has no such server; the message says how to get it."""


class Broker(ABC):
    """A broker in a folder of its own."""

    url: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._servers: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def command(self) -> tuple[list[str], dict[str, Any]]:
        """What starts the server, and what subprocess has to be told besides."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it can be talked to."""

    @abstractmethod
    def wipe(self) -> int:
        """Throw away every message that waits; return how many there were."""

    def start(self) -> None:
        """Start it and return when it answers."""
        command, options = self.command()
        log = self.folder / "broker.log"
        with log.open("ab") as stream:
            server = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True, **options)
        self._servers.append(server)
        until(self.answers, what="an answer of the broker", log=log, process=server)

    def kill(self) -> None:
        """SIGKILL every process of it."""
        self._signal(signal.SIGKILL)
        self._servers[-1].wait()

    def hang(self) -> None:
        """Leave its connections open and answer nothing, as a host that lost its network does."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and everything it started."""
        for server in self._servers:
            if server.poll() is None:
                self._signal(signal.SIGKILL)
                server.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._servers[-1].pid)
            for process in (*parent.children(recursive=True), parent):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)


class Embedded(Broker):
    """The broker of `overread up`: PostgreSQL."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._cluster = prepare_cluster(home_at(folder))
        self._database = f"postgresql://postgres@/postgres?host={self._cluster.socket}"
        self.url = database_url("postgres", socket=self._cluster.socket, driver="sqla+postgresql+psycopg")

    def command(self) -> tuple[list[str], dict[str, Any]]:
        place = ["-D", str(self._cluster.data), "-k", str(self._cluster.socket), "-c", "listen_addresses="]
        return [str(self._cluster.program), *place], as_user(self._cluster.user)

    def answers(self) -> bool:
        return accepts_connections(self._database)

    def wipe(self) -> int:
        with psycopg.connect(self._database) as connection:
            return connection.execute("DELETE FROM kombu_message").rowcount


class Redis(Broker):
    """Redis, with an append-only file as in docker-compose.yml."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._program, self._port = _found("redis-server"), free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def command(self) -> tuple[list[str], dict[str, Any]]:
        place = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self.folder)]
        return [self._program, *place, "--appendonly", "yes", "--save", ""], {}

    def answers(self) -> bool:
        try:
            return bool(self._client().ping())
        except redis.RedisError:
            return False

    def wipe(self) -> int:
        client = self._client()
        waiting = sum(int(client.llen(key)) for key in client.scan_iter() if client.type(key) == b"list")
        client.flushall()
        return waiting

    def _client(self) -> Any:
        return redis.Redis(port=self._port, socket_timeout=10, socket_connect_timeout=10, retry=None)


class RabbitMQ(Broker):
    """RabbitMQ, with a port mapper (epmd) of its own, which would otherwise outlive it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if not RABBITMQ.exists():
            raise Missing(f"there is no {RABBITMQ}: `make servers`, or apt-get install rabbitmq-server")
        port, self._epmd_port, distribution = (str(free_port()) for _ in range(3))
        plugins = folder / "plugins"
        plugins.write_text("[].")
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "ERL_EPMD_PORT": self._epmd_port,
            "RABBITMQ_NODENAME": f"overread{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": port,
            "RABBITMQ_DIST_PORT": distribution,
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        }
        self._epmd: subprocess.Popen[bytes] | None = None
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"

    def command(self) -> tuple[list[str], dict[str, Any]]:
        return [str(RABBITMQ)], {"env": self._environment}

    def start(self) -> None:
        if self._epmd is None:
            command = [_found("epmd"), "-port", self._epmd_port, "-address", "127.0.0.1"]
            self._epmd = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        super().start()

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()

    def answers(self) -> bool:
        try:
            with kombu.Connection(self.url, connect_timeout=10) as connection:
                connection.connect()
        except OSError:
            return False
        return True

    def wipe(self) -> int:
        with kombu.Connection(self.url, connect_timeout=30) as connection:
            return int(connection.default_channel.queue_purge("overread"))


BROKERS: dict[str, type[Broker]] = {"embedded": Embedded, "redis": Redis, "rabbitmq": RabbitMQ}


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise Missing(f"there is no {program} on this machine: `make servers`, or apt-get install it")
    return path
