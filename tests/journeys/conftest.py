"""The whole service for the journeys: real processes, started once, each journey on a line of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from api.cli.doors import Credentials, make_people
from api.cli.stack import Stack
from api.cli.story import Story, Xray, find_xrays

PROTOCOL = Path(__file__).parents[2] / "pipelines" / "protocols" / "cxr-pneumonia.yaml"


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Every process of the service, embedded, with short leases so that recovery is seen in seconds."""
    with tempfile.TemporaryDirectory(prefix="ovr-", ignore_cleanup_errors=True) as folder:
        hurry = {"OVERREAD_LEASE_SECONDS": "6", "OVERREAD_HEARTBEAT_SECONDS": "1", "OVERREAD_TRIGGER_SECONDS": "1"}
        hurry["OVERREAD_MIRROR_NICENESS"] = "0"  # the journeys wait for it, beside others that hold the processors
        any_port = {f"OVERREAD_{service}_PORT": "0" for service in ("API", "INFERENCE", "MLFLOW")}
        with Stack(Path(folder), settings=hurry | any_port, report=print) as running:
            yield running


@pytest.fixture(scope="session")
def people(stack: Stack) -> dict[str, Credentials]:
    """Keys and passwords by user name."""
    return make_people(stack)


@pytest.fixture(scope="session")
def xrays(stack: Stack) -> list[Xray]:
    """Chest X-rays, real ones where they are at hand."""
    return find_xrays(stack.home / "xrays", count=1900)[0]


@pytest.fixture
def tell(stack: Stack, people: dict[str, Credentials], xrays: list[Xray]) -> Iterator[Callable[..., Story]]:
    """Make a story on a new line; keyword arguments change fields of the example protocol."""
    told: list[Story] = []

    def make(line: str, **changes: object) -> Story:
        document = yaml.safe_load(PROTOCOL.read_text(encoding="utf-8")) | {"line": line} | changes
        story = Story(stack, people=people, xrays=xrays, screen=Console(stderr=True), line=line)
        told.append(story)
        story.create_line(yaml.safe_dump(document))
        return story

    yield make
    for story in told:
        story.close()
