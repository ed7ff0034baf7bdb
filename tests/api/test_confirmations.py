"""Confirmed diagnoses, one at a time: recorded once, corrected by superseding, refused by name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.pictures import png
from tests.api.service import Service

READ = {"finding": "pneumonia", "evidence": "single_read", "ai_exposure": "blind", "reader": "radiologist-17"}


@pytest.fixture
def case(submitter: httpx.Client, line: str) -> int:
    """A case that waits for its diagnosis."""
    answer = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": png()})
    return int(answer.json()["case_id"])


def confirm(client: httpx.Client, case: int, *, key: str | None = None, **changes: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key or str(uuid4())}
    return client.post(f"/v1/cases/{case}/confirmations", json=READ | changes, headers=headers)


def test_a_confirmation_is_recorded_with_its_evidence(service: Service, submitter: httpx.Client, case: int) -> None:
    answer = confirm(submitter, case, confirmed_at="2026-03-02T09:30:00+01:00")
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert {name: body[name] for name in READ} == READ
    assert datetime.fromisoformat(body["confirmed_at"]) == datetime(2026, 3, 2, 8, 30, tzinfo=UTC)
    assert submitter.get(f"/v1/cases/{case}").json()["confirmations"] == [body]
    assert submitter.get(f"/v1/cases/{case}/confirmations").json() == [body]
    (event,) = [event for event in service.trail() if event["details"].get("confirmation") == body["confirmation_id"]]
    assert (event["actor"], event["action"]) == ("submitter", "confirmation:add")


def test_a_confirmation_without_a_key_is_refused(submitter: httpx.Client, case: int) -> None:
    for headers in ({}, {"Idempotency-Key": ""}, {"Idempotency-Key": "x" * 201}):
        answer = submitter.post(f"/v1/cases/{case}/confirmations", json=READ, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["type"] == "/problems/idempotency-key-missing"


def test_a_repeat_gets_the_first_answer_and_records_nothing(submitter: httpx.Client, case: int) -> None:
    first, again = confirm(submitter, case, key="once"), confirm(submitter, case, key="once")
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert len(submitter.get(f"/v1/cases/{case}/confirmations").json()) == 1


def test_a_key_does_not_carry_another_request(service: Service, submitter: httpx.Client, case: int) -> None:
    assert confirm(submitter, case, key="mine").status_code == 201
    for other in (confirm(submitter, case, key="mine", finding="normal"), confirm(submitter, case + 1, key="mine")):
        assert other.status_code == 422
        assert other.json()["type"] == "/problems/idempotency-key-reused"
    with service.client("second-submitter") as somebody_else:
        assert confirm(somebody_else, case, key="mine").status_code == 201


def test_a_refused_request_leaves_its_key_free(submitter: httpx.Client, case: int) -> None:
    assert confirm(submitter, case, key="mended", finding="fracture").status_code == 422
    assert confirm(submitter, case, key="mended", finding="normal").status_code == 201


def test_a_storm_of_repeats_records_one_confirmation(service: Service, case: int) -> None:
    def send(_: int) -> int:
        with service.client("submitter") as client:
            return confirm(client, case, key="storm").status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(send, range(24)))
    assert 201 in statuses
    assert statuses <= {201, 409}
    with service.client("submitter") as client:
        assert len(client.get(f"/v1/cases/{case}/confirmations").json()) == 1


@pytest.mark.parametrize(
    ("changes", "status", "slug"),
    [
        ({"finding": "fracture"}, 422, "unknown-finding"),
        ({"confirmed_at": (datetime.now(UTC) + timedelta(days=3)).isoformat()}, 422, "future-date"),
        ({"confirmed_at": "2026-03-02T09:30:00"}, 422, "invalid-request"),
        ({"evidence": "gut_feeling"}, 422, "invalid-request"),
        ({"ai_exposure": "perhaps"}, 422, "invalid-request"),
        ({"reader": ""}, 422, "invalid-request"),
        ({"reader": "a\0b"}, 422, "invalid-request"),
        ({"comment": "a field nobody knows"}, 422, "invalid-request"),
        ({"supersedes": 999_999}, 404, "not-found"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(
    submitter: httpx.Client, case: int, changes: dict[str, Any], status: int, slug: str
) -> None:
    answer = confirm(submitter, case, **changes)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}")
    assert submitter.get(f"/v1/cases/{case}/confirmations").json() == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe"])
def test_a_body_that_is_not_json_is_refused(submitter: httpx.Client, case: int, body: bytes) -> None:
    headers = {"Idempotency-Key": "any", "Content-Type": "application/json"}
    answer = submitter.post(f"/v1/cases/{case}/confirmations", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-request"
    assert answer.json()["errors"]


def test_an_unknown_case_is_not_found(submitter: httpx.Client) -> None:
    for case in (999_999, 2**62):
        assert confirm(submitter, case).json()["type"] == "/problems/not-found"
    assert confirm(submitter, 2**70).status_code == 422


def test_a_correction_supersedes_once_and_only_on_its_case(
    submitter: httpx.Client, service: Service, line: str, case: int
) -> None:
    first = confirm(submitter, case).json()["confirmation_id"]
    second = confirm(submitter, case, finding="normal", supersedes=first)
    assert second.status_code == 201
    again = confirm(submitter, case, supersedes=first)
    assert (again.status_code, again.json()["type"]) == (409, "/problems/already-superseded")
    listed = submitter.get(f"/v1/cases/{case}/confirmations").json()
    assert [row["superseded_by"] for row in listed] == [second.json()["confirmation_id"], None]
    answer = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": png(1)})
    other = confirm(submitter, answer.json()["case_id"], supersedes=second.json()["confirmation_id"])
    assert (other.status_code, other.json()["type"]) == (422, "/problems/wrong-line")
    with service.client("second-submitter") as stranger:
        foreign = confirm(stranger, case, supersedes=second.json()["confirmation_id"])
        assert (foreign.status_code, foreign.json()["type"]) == (403, "/problems/forbidden")
