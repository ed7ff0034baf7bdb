"""Amending a protocol over HTTP and at the command line: proposed by one, signed by others, each refusal in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml

from registry import audit, candidates, lines
from tests import factories
from tests.api.service import PASSWORD, PROTOCOL, Service, slug
from tests.api.test_report_page import DOCUMENT

SIGN = {"decision": "approve", "reason": "I read what changes", "password": PASSWORD}


def amended(line: str, **changes: Any) -> str:
    return yaml.safe_dump({"line": line, **PROTOCOL, **changes})


def propose(client: httpx.Client, line: str, *, key: str | None = None, **changes: Any) -> httpx.Response:
    wish = {"protocol": amended(line, **changes), "reason": "we can ask for more"}
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(f"/v1/lines/{line}/amendments", json=wish, headers=headers)


def sign(client: httpx.Client, amendment_id: int, **changes: Any) -> httpx.Response:
    return client.post(f"/v1/amendments/{amendment_id}/approvals", json={**SIGN, **changes})


def test_an_amendment_shows_what_it_changes_and_is_in_force_once_two_others_have_signed(
    line: str, people: dict[str, httpx.Client]
) -> None:
    before = people["auditor"].get(f"/v1/lines/{line}").json()["protocol"]
    answer = propose(people["requester"], line, gates={"alpha": 0.1, "minimum_cases_per_class": 30})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["state"], made["required"], made["proposer"]) == ("proposed", 2, "requester")
    assert made["changes"] == [
        "gates.alpha: 0.05 -> 0.1  (asks for less evidence)",
        "gates.minimum_cases_per_class: 20 -> 30",
    ]
    number = made["amendment_id"]
    assert slug(sign(people["requester"], number)) == (409, "not-distinct-approver")
    first = sign(people["approver"], number).json()
    assert (first["state"], len(first["approvals"])) == ("proposed", 1)
    assert slug(sign(people["approver"], number)) == (409, "already-signed")
    assert people["auditor"].get(f"/v1/lines/{line}").json()["protocol"] == before
    last = sign(people["second-approver"], number)
    assert (last.status_code, last.json()["state"]) == (201, "adopted")
    now = people["auditor"].get(f"/v1/lines/{line}").json()["protocol"]
    assert (now["version"], now["digest"]) == (2, made["digest"])
    assert now["document"]["gates"]["minimum_cases_per_class"] == 30
    assert people["auditor"].get(f"/v1/protocols/{before['protocol_id']}").json() == before
    assert people["auditor"].get(f"/v1/protocols/{now['protocol_id']}").json() == now
    assert slug(sign(people["second-approver"], number)) == (409, "state-moved")
    (listed,) = people["auditor"].get(f"/v1/lines/{line}/amendments").json()
    assert listed == people["auditor"].get(f"/v1/amendments/{number}").json() == last.json()


def test_a_proposal_is_made_once_however_often_it_is_sent(line: str, people: dict[str, httpx.Client]) -> None:
    first, again = (propose(people["operator"], line, key=f"{line}-1", title="Another one") for _ in range(2))
    assert (first.status_code, again.headers.get("idempotent-replayed")) == (201, "true")
    assert first.json() == again.json()
    assert len(people["auditor"].get(f"/v1/lines/{line}/amendments").json()) == 1


def test_what_was_proposed_to_an_earlier_protocol_is_refused(line: str, people: dict[str, httpx.Client]) -> None:
    late = propose(people["operator"], line, title="For adults").json()["amendment_id"]
    quick = propose(people["reviewer"], line, title="For children").json()["amendment_id"]
    for name in ("approver", "second-approver"):
        assert sign(people[name], quick).status_code == 201
    assert slug(sign(people["approver"], late)) == (409, "protocol-moved")
    assert people["auditor"].get(f"/v1/amendments/{late}").json()["state"] == "outdated"


def test_a_signature_needs_the_password_and_a_rejection_ends_it(line: str, people: dict[str, httpx.Client]) -> None:
    number = propose(people["operator"], line, title="Another one").json()["amendment_id"]
    assert slug(sign(people["approver"], number, password=None)) == (403, "sign-in-again")
    assert slug(sign(people["approver"], number, password="not it")) == (403, "sign-in-again")
    assert slug(sign(people["reviewer"], number)) == (403, "forbidden")
    assert sign(people["approver"], number, decision="reject").json()["state"] == "rejected"
    assert slug(sign(people["second-approver"], number)) == (409, "state-moved")


def test_a_proposal_that_cannot_be_right_is_refused_with_the_field_or_the_reason(
    line: str, people: dict[str, httpx.Client]
) -> None:
    assert slug(propose(people["submitter"], line, title="Another one")) == (403, "forbidden")
    assert slug(propose(people["operator"], line)) == (422, "invalid")
    wrong = propose(people["operator"], line, gates={"alpha": 2.0})
    assert (slug(wrong), wrong.json()["errors"][0]["field"]) == ((422, "protocol-invalid"), "gates.alpha")
    wish = {"protocol": amended("another-line"), "reason": "a slip"}
    assert slug(people["operator"].post(f"/v1/lines/{line}/amendments", json=wish)) == (422, "wrong-line")
    assert slug(propose(people["operator"], "no-such-line")) == (404, "not-found")
    for text in ("", "{", "- a list"):
        wish = {"protocol": text, "reason": "a slip"}
        assert people["operator"].post(f"/v1/lines/{line}/amendments", json=wish).status_code == 422
    assert slug(sign(people["approver"], 2**40)) == (404, "not-found")


def overread(service: Service, user: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"OVERREAD_API_URL": service.url, "OVERREAD_API_KEY": service.keys[user], "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments],
        env={**os.environ, **service.environment, **environment},
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_command_shows_the_difference_and_how_to_go_on(service: Service, line: str, tmp_path: Path) -> None:
    file = tmp_path / "amended.yaml"
    file.write_text(amended(line, approvals={"required": 3}, blind_fraction=0.1))
    why = ("--reason", "a third pair of eyes")
    made = overread(service, "operator", "protocol", "amend", str(file), "--line", line, *why)
    assert made.returncode == 0, made.stderr
    assert made.stdout == "approvals.required: 2 -> 3\nblind_fraction: 0.0 -> 0.1\n"
    assert "2 others have to sign it" in made.stderr
    number = made.stderr.partition("amendment ")[2].split()[0]
    first = overread(service, "approver", "protocol", "approve", number, *why, "--password-stdin", given=PASSWORD)
    assert "1 more people have to sign" in first.stderr, first.stderr
    assert "approvals.required: 2 -> 3" in first.stdout
    second = ("protocol", "approve", number, *why, "--password-stdin")
    assert f"amendment {number} is in force" in overread(service, "second-approver", *second, given=PASSWORD).stderr
    listed = overread(service, "auditor", "protocol", "amendments", "--line", line)
    assert "adopted" in listed.stdout
    assert "Dr Second-Approver (approve)" in listed.stdout
    late = overread(service, "approver", "protocol", "reject", number, *why, "--password-stdin", given=PASSWORD)
    assert late.returncode != 0
    assert "is adopted" in late.stderr


def test_the_facts_of_a_model_are_those_of_the_protocol_it_was_made_under(
    service: Service, line: str, people: dict[str, httpx.Client]
) -> None:
    before = people["auditor"].get(f"/v1/lines/{line}").json()["protocol"]
    with service.connect() as connection:
        candidate = factories.candidate(connection, lines.get_line(connection, line))
        values = factories.gate_report_values(connection, candidate)
        whole = {**DOCUMENT, **values["document"], "line": line, "results": DOCUMENT["results"]}
        values |= {"document": whole, "digest": audit.digest_of(whole)}
        candidates.record_gate_report(connection, **values)
    intended = "Second reader for adults, which this model was never meant for or measured on."
    number = propose(people["operator"], line, intended_use=intended).json()["amendment_id"]
    for name in ("approver", "second-approver"):
        sign(people[name], number)
    told = overread(service, "reviewer", "candidate", "facts", str(candidate.candidate_id))
    assert told.returncode == 0, told.stderr
    assert PROTOCOL["intended_use"] in told.stdout
    assert intended not in told.stdout
    assert before["digest"] in told.stdout
    assert people["auditor"].get(f"/v1/lines/{line}").json()["protocol"]["version"] == 2
