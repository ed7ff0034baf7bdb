"""Whether a process of the table is healthy, by asking it from outside.

Each question ends within seconds, whatever is at the other end.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import assert_never

from api.cli.processes import AcceptsConnections, Answers, Exits, Health, Lives, Logs


def is_healthy(health: Health, *, seconds: float, log: Path, log_offset: int) -> bool:
    """Say whether a process that began `seconds` ago, and writes to `log` from `log_offset` on, is healthy by now."""
    match health:
        case Answers():
            return answers(health.url)
        case AcceptsConnections():
            return accepts_connections(health.url)
        case Logs():
            with log.open("rb") as file:
                file.seek(log_offset)
                return re.search(health.pattern, file.read().decode(errors="replace")) is not None
        case Lives():
            return seconds >= health.seconds
        case Exits():
            return False
        case _:
            assert_never(health)


def answers(url: str, *, timeout_seconds: float = 1.0) -> bool:
    """Say whether a GET of `url` answers 200."""
    from urllib.error import URLError  # noqa: PLC0415 - the command line must answer --help at once
    from urllib.request import ProxyHandler, build_opener  # noqa: PLC0415

    try:  # loopback never goes through a proxy
        with build_opener(ProxyHandler({})).open(url, timeout=timeout_seconds) as response:
            return bool(response.status == 200)
    except (URLError, OSError, ValueError):
        return False


def accepts_connections(url: str) -> bool:
    """Say whether PostgreSQL answers on `url`."""
    import psycopg  # noqa: PLC0415 - the command line must answer --help at once

    try:
        with psycopg.connect(url, connect_timeout=2, autocommit=True) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True
