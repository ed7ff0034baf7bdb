"""Every door asks who is there: generated from the route table, so that a new route is tested the day it is made."""

from __future__ import annotations

import pytest

from api.app import create_app
from api.auth import ROLES_KEY, guarded_router
from api.settings import ApiSettings
from registry import users
from tests.api.service import ROLES, ROOT, Service

OPEN = {("GET", "/health/live"), ("GET", "/health/ready"), ("POST", "/v1/session")}


def operations() -> list[tuple[str, str, tuple[str, ...]]]:
    """Every operation of the API: method, path, roles."""
    settings = ApiSettings(
        database_url="", blob_root=ROOT, inference_url="http://127.0.0.1:9", inference_token="none", patient_key=b""
    )
    paths = create_app(settings).openapi()["paths"]
    return [
        (method.upper(), path, tuple(operation.get(ROLES_KEY, ())))
        for path, methods in paths.items()
        for method, operation in methods.items()
    ]


GUARDED = [operation for operation in operations() if operation[2]]


def filled(path: str) -> str:
    """A path with every place filled by something that does not exist."""
    for name in ("case_id", "confirmation_id", "run_id", "candidate_id", "job_id", "dataset_version_id"):
        path = path.replace(f"{{{name}}}", "999999")
    return path.replace("{line}", "no-such-line")


def test_only_health_and_signing_in_are_open() -> None:
    assert {(method, path) for method, path, roles in operations() if not roles} == OPEN


def test_a_route_that_does_not_say_who_may_use_it_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="does not say who may use it"):
        guarded_router(tag="Test").get("/anything")(lambda: None)


@pytest.mark.parametrize(("method", "path", "roles"), GUARDED, ids=str)
def test_a_route_refuses_without_a_key(service: Service, method: str, path: str, roles: tuple[str, ...]) -> None:
    with service.client(None) as nobody:
        for header in ({}, {"Authorization": "Bearer ovr_1_guess"}, {"Authorization": "Basic b3ZyOm92cg=="}):
            answer = nobody.request(method, filled(path), headers=header)
            assert answer.status_code == 401, answer.text
            assert answer.json()["type"] == "/problems/unauthenticated"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("method", "path", "roles"), GUARDED, ids=str)
def test_a_route_refuses_the_wrong_role_and_admits_the_right(
    service: Service, method: str, path: str, roles: tuple[str, ...]
) -> None:
    for role in (*ROLES, "nobody"):
        with service.client(role) as client:
            answer = client.request(method, filled(path))
            if role in roles:
                assert answer.status_code not in {401, 403}, f"{role}: {answer.text}"
            else:
                assert answer.status_code == 403, f"{role}: {answer.text}"
                assert answer.json()["type"] == "/problems/forbidden"


def test_the_wrong_role_is_refused_before_the_body_is_read(service: Service) -> None:
    with service.client("auditor") as auditor:
        answer = auditor.post(
            "/v1/cases/1/confirmations", content=b"{not json", headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 403


def test_a_revoked_key_and_a_disabled_user_are_refused_at_once(service: Service) -> None:
    with service.connect() as connection:
        user = users.create_user(connection, name="leaver", printed_name="Leaver", roles=("auditor",))
        first, second = (users.create_api_key(connection, user_id=user.user_id) for _ in range(2))
        connection.commit()
        service.keys |= {"first": first, "second": second}
        with service.client("first") as one, service.client("second") as two:
            assert (one.get("/v1/audit").status_code, two.get("/v1/audit").status_code) == (200, 200)
            users.revoke_api_key(connection, api_key_id=first.split("_")[1])
            connection.commit()
            assert (one.get("/v1/audit").status_code, two.get("/v1/audit").status_code) == (401, 200)
            users.disable_user(connection, user_id=user.user_id)
            connection.commit()
            assert two.get("/v1/audit").status_code == 401
