"""What holds at every door, walked through from the OpenAPI document: headers, and that looking changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from api.auth import ROLES_KEY
from registry import lines
from tests import factories
from tests.api.pictures import png
from tests.api.service import Service
from tests.api.test_access import filled
from tests.api.test_openapi import DOCUMENT

OPERATIONS = [
    pytest.param(method.upper(), path, operation, id=f"{method.upper()} {path}")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
PAGES = [pytest.param("GET", path, {}, id=path) for path in ("/", "/docs", "/openapi.json", "/v1/none", "/none")]


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS + PAGES)
def test_every_answer_carries_the_headers_of_the_house(
    service: Service, method: str, path: str, operation: dict[str, Any]
) -> None:
    for user in (None, *operation.get(ROLES_KEY, ())[:1]):
        with service.client(user) as client:
            headers = client.request(method, filled(path)).headers
        rules = {
            rule.partition(" ")[0]: rule.partition(" ")[2] for rule in headers["content-security-policy"].split("; ")
        }
        assert (rules["default-src"], rules["frame-ancestors"], rules["base-uri"]) == ("'none'",) * 3
        assert "script-src" not in rules
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
        if path.startswith("/v1/"):
            assert headers["cache-control"] == "no-store"


def test_looking_changes_nothing_but_the_log_of_looks(service: Service, line: str) -> None:
    with service.client("submitter") as submitter:
        case = submitter.post("/v1/cases", data={"line": line, "site": "n"}, files={"image": png()}).json()["case_id"]
    with service.client("reviewer") as reviewer:
        run = reviewer.post(f"/v1/lines/{service.new_line()}/runs", json={"reason": "x"}).json()["run_id"]
    with service.connect() as connection:
        made = factories.gated_candidate(connection, lines.get_line(connection, line))
        proposed = factories.amendment(connection, lines.get_line(connection, line), title="Pneumonia, seen again")
        job = connection.execute("SELECT max(job_id) FROM jobs").fetchone()
        assert job is not None
    known = {
        "case_id": case, "run_id": run, "job_id": job[0], "line": line,
        "candidate_id": made.candidate_id, "dataset_version_id": made.dataset_version_id,
        "protocol_id": made.protocol_id, "amendment_id": proposed.amendment_id,
    }  # fmt: skip
    before = service.fingerprints(but={"reads"})
    seen = 0
    for path, methods in DOCUMENT["paths"].items():
        operation = methods.get("get")
        if operation is None or not path.startswith("/v1/"):
            continue
        needed = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "query" and one["required"]}
        parameters = {name: {"line": line, "finding": "normal", "idempotency_key": "k"}[name] for name in needed}
        with service.client(operation[ROLES_KEY][-1]) as client:
            answer = client.get(path.format(**known), params=parameters)
        expected = 409 if path.endswith("heat-map") else 200  # no champion yet
        assert answer.status_code == expected, f"{path}: {answer.text}"
        seen += 1
    assert seen >= 20
    assert service.fingerprints(but={"reads"}) == before


def test_only_safe_methods_and_those_that_change_something_are_offered() -> None:
    assert {method for _, methods in DOCUMENT["paths"].items() for method in methods} <= {
        "get",
        "post",
        "put",
        "delete",
    }
