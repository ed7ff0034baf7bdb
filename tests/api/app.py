"""The API in a thread of the test's process, on a database of the test's own: for settings that only one test has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import uvicorn

from api.app import create_app
from api.settings import ApiSettings


@contextmanager
def app_on(database_url: str, folder: Path, **settings: Any) -> Iterator[httpx.Client]:
    """A client of the application with some settings of its own; nobody answers where inference should be."""
    values: dict[str, Any] = {
        "database_url": database_url,
        "blob_root": folder / "blobs",
        "inference_url": "http://127.0.0.1:9",
        "inference_token": "none",
        "patient_key": bytes(32),
        "pool_size": 4,
    }
    app = create_app(ApiSettings(**{**values, **settings}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2))
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the API did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
