"""Whoever sees something of a patient is written down before they see it."""

from __future__ import annotations

from typing import Any

import httpx

from tests.api.pictures import png
from tests.api.service import Service
from tests.api.test_openapi import document

PURPOSE = {"Overread-Purpose": "tumour board"}


def reads_of(service: Service, case: int | None = None) -> list[dict[str, Any]]:
    return service.looks(**({"case_id": case} if case else {}))


def test_every_look_at_a_case_is_written_down_with_its_purpose(
    service: Service, submitter: httpx.Client, line: str
) -> None:
    made = submitter.post("/v1/cases", data={"line": line, "site": "n", "patient": "4711"}, files={"image": png()})
    case = made.json()["case_id"]
    assert reads_of(service, case) == []
    with service.client("reviewer") as reviewer:
        assert reviewer.get(f"/v1/cases/{case}", headers=PURPOSE).json()["patient"] is not None
        assert reviewer.get(f"/v1/cases/{case}/confirmations").status_code == 200
    first, second = reads_of(service, case)
    assert (first["reader"], first["action"], first["purpose"]) == ("reviewer", "case:read", "tumour board")
    assert (second["reader"], second["action"], second["purpose"]) == ("reviewer", "confirmation:list", None)


def test_a_list_of_cases_is_one_look_that_says_of_which(service: Service, submitter: httpx.Client, line: str) -> None:
    cases = [
        submitter.post("/v1/cases", data={"line": line, "site": "n"}, files={"image": png(shade)}).json()["case_id"]
        for shade in range(2)
    ]
    before = len(reads_of(service))
    assert len(submitter.get("/v1/cases", params={"line": line}, headers=PURPOSE).json()) == 2
    assert submitter.get("/v1/cases", params={"line": line, "after": cases[-1]}).json() == []
    (look,) = reads_of(service)[before:]
    assert (look["action"], look["case_id"], look["purpose"]) == ("case:list", None, "tumour board")
    assert look["details"] == {"first": cases[0], "last": cases[-1], "cases": 2}


def test_what_was_not_shown_was_not_seen(service: Service, submitter: httpx.Client, line: str) -> None:
    made = submitter.post("/v1/cases", data={"line": line, "site": "n"}, files={"image": png()})
    case = made.json()["case_id"]
    heat_map = submitter.get(f"/v1/cases/{case}/heat-map", params={"finding": "pneumonia"})
    assert heat_map.json()["type"] == "/problems/no-champion"
    assert submitter.post(f"/v1/cases/{case}/predictions").status_code == 409
    assert reads_of(service, case) == []


def test_a_purpose_is_a_sentence_not_a_novel(service: Service, submitter: httpx.Client, line: str) -> None:
    answer = submitter.get("/v1/cases", params={"line": line}, headers={"Overread-Purpose": "x" * 201})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "header.Overread-Purpose")


def test_every_operation_that_shows_something_of_a_patient_asks_what_for() -> None:
    showing = [
        operation
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
        if path.startswith("/v1/")
        and (("predictions" in path and not path.endswith("/rejection")) or (method == "get" and "case" in path))
    ]
    assert len(showing) >= 7
    for operation in showing:
        assert "Overread-Purpose" in {one["name"] for one in operation["parameters"]}, operation["operationId"]
