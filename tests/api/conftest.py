"""The API as a client meets it: a real uvicorn process, a real inference process, a real PostgreSQL."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from registry import db, passwords, users
from tests.api.service import PASSWORD, ROLES, Service, free_port, start, start_api, wait_for
from tests.conftest import as_superuser


@pytest.fixture(scope="session")
def database_url(template: str) -> Iterator[str]:
    """URL of a migrated database that the processes share and the tests commit to."""
    known = str(conninfo_to_dict(template)["dbname"])
    name = f"api_{secrets.token_hex(4)}"  # tests of other folders share this fixture, each with a database of their own
    source, copy = sql.Identifier(known), sql.Identifier(name)
    with psycopg.connect(as_superuser(template), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(copy, source))
    yield template.replace(known, name)
    with psycopg.connect(as_superuser(template), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(copy))


@pytest.fixture(scope="session")
def environment(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings of both processes."""
    return {
        "OVERREAD_HOME": str(tmp_path_factory.mktemp("home")),
        "OVERREAD_DATABASE_URL": database_url,
        "OVERREAD_INFERENCE_TOKEN": secrets.token_hex(16),
        "OVERREAD_PATIENT_KEY": secrets.token_hex(32),
        "OVERREAD_INFERENCE_PORT": (port := str(free_port())),
        "OVERREAD_INFERENCE_URL": f"http://127.0.0.1:{port}",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def service(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """API and inference process, up for the whole session; tests take a line each."""
    logs = tmp_path_factory.mktemp("logs")
    port = free_port()
    with (logs / "inference.log").open("wb") as inference_log, (logs / "api.log").open("wb") as api_log:
        inference = start(["workers.inference"], environment=environment, log=inference_log)
        api = start_api(environment, port=port, log=api_log)
        try:
            wait_for(f"http://127.0.0.1:{port}/health/live", process=api, log=logs / "api.log")
            health = f"{environment['OVERREAD_INFERENCE_URL']}/health"
            wait_for(health, process=inference, log=logs / "inference.log")
            keys = _make_people(environment)
            yield Service(url=f"http://127.0.0.1:{port}", environment=environment, keys=keys, logs=logs)
        finally:
            for process in (api, inference):
                process.terminate()
            for process in (api, inference):
                process.wait(timeout=120)


def _make_people(environment: Mapping[str, str]) -> dict[str, str]:
    people = {role: (role,) for role in ROLES}
    people |= {"second-submitter": ("submitter",), "second-approver": ("approver",)}
    people |= {"requester": ("operator", "approver"), "nobody": ()}
    keys = {}
    with db.connect(environment["OVERREAD_DATABASE_URL"]) as connection:
        for name, roles in people.items():
            user = users.create_user(connection, name=name, printed_name=f"Dr {name.title()}", roles=roles)
            if "approver" in roles:
                passwords.set_password(connection, user=user, password=PASSWORD)
            keys[name] = users.create_api_key(connection, user_id=user.user_id)
        connection.commit()
    return keys


@pytest.fixture
def line(service: Service) -> str:
    """A line that no other test touches."""
    return service.new_line()


@pytest.fixture
def submitter(service: Service) -> Iterator[httpx.Client]:
    """The API as the submitter sees it."""
    with service.client("submitter") as client:
        yield client


@pytest.fixture
def people(service: Service) -> Iterator[dict[str, httpx.Client]]:
    """The API as each of the people sees it."""
    clients = {name: service.client(name) for name in service.keys}
    yield clients
    for client in clients.values():
        client.close()
