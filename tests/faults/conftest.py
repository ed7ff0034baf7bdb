"""What the fault tests share: a zygote for killing, an inference process, a home for each attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before they are imported: their assertions are those of the tests.
pytest.register_assert_rewrite(*(f"tests.faults.{name}" for name in ("doors", "glue", "science", "whole")))

from tests.api.service import free_port, start, wait_for  # noqa: E402
from tests.faults.places import TOKEN  # noqa: E402
from tests.faults.zygote import Zygote  # noqa: E402


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Does scenarios in children that may be killed."""
    made = Zygote.start(tmp_path_factory.mktemp("zygote"))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def inference_url(shared_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An inference process, for its decoder: it serves no line of the scenarios."""
    home, port = tmp_path_factory.mktemp("inference"), free_port()
    environment = {
        "OVERREAD_HOME": str(home),
        "OVERREAD_DATABASE_URL": shared_database,
        "OVERREAD_INFERENCE_TOKEN": TOKEN,
        "OVERREAD_INFERENCE_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    with (home / "log").open("wb") as log:
        process = start(["workers.inference"], environment=environment, log=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process=process, log=home / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=120)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where scenarios keep what takes long to make and is only copied."""
    return tmp_path_factory.mktemp("shared")


MakePlace = Callable[[], dict[str, Any]]


@pytest.fixture
def make_place(
    fresh_database: str,
    empty_database: str,
    inference_url: str,
    shared_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> MakePlace:
    """Make places with a home that nobody has been to, on the databases of the test."""

    def make() -> dict[str, Any]:
        return {
            "database_url": fresh_database,
            "empty_url": empty_database,
            "home": str(tmp_path_factory.mktemp("home")),
            "shared": str(shared_folder),
            "inference_url": inference_url,
        }

    return make
