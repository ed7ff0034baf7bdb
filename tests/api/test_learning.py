"""Lines, runs, signatures and promotions over HTTP: every refusal an operator or approver can meet."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import yaml

from registry import jobs, lines, runs, users
from registry.candidates import Candidate
from tests import factories
from tests.api.pictures import png
from tests.api.service import PASSWORD, PROTOCOL, Service, slug

SIGN = {"decision": "approve", "reason": "I read the report", "password": PASSWORD}


def gated(service: Service, line: str, *, verdict: str = "pass", **fields: Any) -> Candidate:
    """A candidate of a line with its gate report, as the workers would have left it."""
    with service.connect() as connection:
        if name := fields.pop("requested_by", None):
            fields["requested_by"] = users.by_name(connection, name)
        return factories.gated_candidate(connection, lines.get_line(connection, line), verdict=verdict, **fields)


def promote(client: httpx.Client, candidate: Candidate, expected: int | None) -> httpx.Response:
    wish = {"expected_champion": expected, "reason": "it is better"}
    return client.post(f"/v1/candidates/{candidate.candidate_id}/promotion", json=wish)


def crown(people: dict[str, httpx.Client], candidate: Candidate, expected: int | None) -> None:
    for name in ("approver", "second-approver"):
        answer = people[name].post(f"/v1/candidates/{candidate.candidate_id}/approvals", json=SIGN)
        assert answer.status_code == 201, answer.text
    answer = promote(people["approver"], candidate, expected)
    assert answer.status_code == 201, answer.text


def test_a_line_shows_its_protocol_counts_and_next_trigger(
    service: Service, submitter: httpx.Client, people: dict[str, httpx.Client]
) -> None:
    line = service.new_line(triggers={"new_confirmations": 3, "every_hours": 168})
    case = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": png()}).json()["case_id"]
    read = {"finding": "normal", "evidence": "single_read", "ai_exposure": "blind", "reader": "r"}
    submitter.post(f"/v1/cases/{case}/confirmations", json=read, headers={"Idempotency-Key": f"{line}-1"})
    shown = people["auditor"].get(f"/v1/lines/{line}").json()
    assert shown["protocol"]["document"]["classes"] == PROTOCOL["classes"]
    assert shown["champion"] is None
    assert shown["counts"] == {"cases": 1, "confirmed_cases": 1, "confirmations": 1, "dataset_versions": 0}
    assert shown["next_trigger"] == {"new_confirmations": 1, "needed": 3, "every_hours": 168}
    assert shown in people["auditor"].get("/v1/lines").json()


def test_a_line_shows_what_was_seen_of_its_champion_in_use(service: Service, people: dict[str, httpx.Client]) -> None:
    line = service.new_line(monitoring={"sample": "every_case"})
    assert people["auditor"].get(f"/v1/lines/{line}").json()["monitoring"] is None
    with service.connect() as connection:
        found = lines.get_line(connection, line)
        champion = factories.champion(connection, found)
        for changes in ({"verdict": "in_order", "raised_at": None}, {}):
            factories.watch(connection, champion, **changes)
    newest, before = people["auditor"].get(f"/v1/lines/{line}/monitoring").json()
    assert (newest["verdict"], before["verdict"]) == ("alarm", "in_order")
    assert f"overread roll-back --line {line}" in newest["what_to_do"]
    assert (newest["cases_to_see"], before["what_to_do"]) == ([9, 7], None)
    assert people["auditor"].get(f"/v1/lines/{line}").json()["monitoring"] == newest
    assert slug(people["auditor"].get("/v1/lines/no-such-line/monitoring")) == (404, "not-found")


def test_what_was_seen_of_a_challenger_is_for_who_decides_on_it_and_did_not_ask_for_it(
    service: Service, people: dict[str, httpx.Client]
) -> None:
    line = service.new_line(monitoring={"sample": "every_case", "shadow_margin": 0.05})
    with service.connect() as connection:
        champion = factories.champion(connection, lines.get_line(connection, line))
    challenger = gated(service, line, requested_by="requester")
    with service.connect() as connection:
        factories.watch(connection, champion, shadow={"candidate_id": challenger.candidate_id, "n": 96})
    for name in ("submitter", "operator", "requester", "reviewer", "approver", "auditor"):
        (look,) = people[name].get(f"/v1/lines/{line}/monitoring").json()
        may = name in {"reviewer", "approver", "auditor"}
        assert look["shadow"] == ({"candidate_id": challenger.candidate_id, "n": 96} if may else None), name
        assert people[name].get(f"/v1/lines/{line}").json()["monitoring"] == look


def test_a_wrong_protocol_is_refused_field_by_field(people: dict[str, httpx.Client]) -> None:
    wrong = {"line": "bad", **PROTOCOL, "classes": ["one"], "gates": {"auroc": {"floor": 1.5}}, "surprise": 1}
    answer = people["operator"].post("/v1/lines", content=yaml.safe_dump(wrong))
    assert slug(answer) == (422, "protocol-invalid")
    fields = {error["field"] for error in answer.json()["errors"]}
    assert {"classes", "gates.auroc.floor", "gates.auroc.margin", "surprise"} <= fields
    for text in (b"{", b"", b"- a list", b"\xff\xfe\x00"):
        assert slug(people["operator"].post("/v1/lines", content=text)) == (422, "protocol-invalid")


def test_a_line_is_created_once(service: Service, line: str, people: dict[str, httpx.Client]) -> None:
    again = people["operator"].post("/v1/lines", content=yaml.safe_dump({"line": line, **PROTOCOL}))
    assert slug(again) == (409, "already-exists")


def test_a_run_is_asked_for_and_watched_and_a_second_refused(
    service: Service, line: str, people: dict[str, httpx.Client]
) -> None:
    answer = people["reviewer"].post(f"/v1/lines/{line}/runs", json={"reason": "enough new cases"})
    assert answer.status_code == 201, answer.text
    run = answer.json()
    assert (run["state"], run["strategy"]) == ("freezing", "full")
    assert people["auditor"].get(f"/v1/runs/{run['run_id']}").json() == run
    assert people["auditor"].get(f"/v1/lines/{line}/runs").json() == [run]
    (job,) = people["operator"].get("/v1/jobs", params={"line": line}).json()
    assert (job["kind"], job["state"]) == ("freeze_dataset", "queued")
    assert people["operator"].get(f"/v1/jobs/{job['job_id']}").json() == job

    second = people["operator"].post(f"/v1/lines/{line}/runs", json={"reason": "impatience"})
    assert slug(second) == (409, "run-in-progress")
    cancelled = people["reviewer"].post(f"/v1/runs/{run['run_id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert slug(people["reviewer"].post(f"/v1/runs/{run['run_id']}/cancel")) == (409, "state-moved")
    with service.connect() as connection:
        assert runs.get(connection, run["run_id"]).state == "cancelled"
        assert jobs.get_job(connection, job["job_id"]).state == "cancelled"


@pytest.mark.parametrize(
    "wish", [{}, {"reason": " "}, {"reason": "x", "strategy": "magic"}, {"reason": "x", "force": 1}]
)
def test_a_run_needs_a_reason_and_a_known_strategy(
    line: str, people: dict[str, httpx.Client], wish: dict[str, Any]
) -> None:
    assert slug(people["reviewer"].post(f"/v1/lines/{line}/runs", json=wish)) == (422, "invalid-request")


def test_a_gate_report_is_json_or_text(service: Service, line: str, people: dict[str, httpx.Client]) -> None:
    candidate = gated(service, line)
    path = f"/v1/candidates/{candidate.candidate_id}/gate-report"
    report = people["reviewer"].get(path).json()
    assert (report["verdict"], report["document"]["candidate_digest"]) == ("pass", candidate.weights_digest)
    text = people["reviewer"].get(path, headers={"Accept": "text/plain"})
    assert (text.headers["content-type"], text.text) == ("text/plain; charset=utf-8", report["text"])
    with service.connect() as connection:
        waiting = factories.candidate(connection, lines.get_line(connection, service.new_line()))
    assert slug(people["reviewer"].get(f"/v1/candidates/{waiting.candidate_id}/gate-report")) == (404, "not-found")


def test_candidates_and_dataset_versions_are_shown(
    service: Service, line: str, people: dict[str, httpx.Client]
) -> None:
    made = gated(service, line)
    (candidate,) = people["reviewer"].get(f"/v1/lines/{line}/candidates").json()
    assert candidate == people["reviewer"].get(f"/v1/candidates/{made.candidate_id}").json()
    assert (candidate["number"], candidate["dataset_version"], candidate["state"]) == (1, 1, "gates_passed")
    (version,) = people["reviewer"].get(f"/v1/lines/{line}/dataset-versions").json()
    assert version["dataset_version_id"] == candidate["dataset_version_id"]
    assert version == people["reviewer"].get(f"/v1/dataset-versions/{version['dataset_version_id']}").json()


def test_two_people_sign_and_one_promotes(service: Service, line: str, people: dict[str, httpx.Client]) -> None:
    candidate = gated(service, line)
    path = f"/v1/candidates/{candidate.candidate_id}"
    assert slug(promote(people["approver"], candidate, None)) == (409, "approval-missing")
    assert people["approver"].post(f"{path}/approvals", json=SIGN).status_code == 201
    assert slug(people["approver"].post(f"{path}/approvals", json=SIGN)) == (409, "already-signed")
    one_missing = promote(people["approver"], candidate, None)
    assert slug(one_missing) == (409, "approval-missing")
    assert (one_missing.json()["given"], one_missing.json()["required"]) == (1, 2)
    assert people["second-approver"].post(f"{path}/approvals", json=SIGN).status_code == 201
    assert slug(promote(people["approver"], candidate, 999_999)) == (409, "champion-moved")
    answer = promote(people["approver"], candidate, None)
    assert (answer.status_code, answer.json()["kind"]) == (201, "promotion")
    assert slug(promote(people["approver"], candidate, None)) == (409, "champion-moved")
    signed = people["auditor"].get(f"{path}/approvals").json()
    assert [approval["printed_name"] for approval in signed] == ["Dr Approver", "Dr Second-Approver"]
    assert {approval["bound_digest"] for approval in signed} == {answer.json()["bound_digest"]}
    assert people["auditor"].get(f"/v1/lines/{line}").json()["champion"]["candidate_id"] == candidate.candidate_id
    assert people["auditor"].get(f"/v1/lines/{line}/promotions").json() == [answer.json()]


def test_whoever_lost_the_answer_to_a_promotion_asks_again_and_gets_it(
    service: Service, line: str, people: dict[str, httpx.Client]
) -> None:
    candidate = gated(service, line)
    for name in ("approver", "second-approver"):
        people[name].post(f"/v1/candidates/{candidate.candidate_id}/approvals", json=SIGN)
    path, wish = f"/v1/candidates/{candidate.candidate_id}/promotion", {"expected_champion": None, "reason": "signed"}
    key = {"Idempotency-Key": f"promote-{candidate.candidate_id}"}
    first, again = (people["approver"].post(path, json=wish, headers=key) for _ in range(2))
    assert (again.status_code, again.json()) == (first.status_code, first.json()) == (201, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert slug(people["approver"].post(path, json=wish | {"reason": "else"}, headers=key))[0] == 422
    assert slug(people["approver"].post(path, json=wish)) == (409, "champion-moved")
    assert len(people["auditor"].get(f"/v1/lines/{line}/promotions").json()) == 1


@pytest.mark.parametrize("verdict", ["fail", "insufficient"])
def test_what_the_gates_stopped_cannot_be_signed_or_promoted(
    service: Service, line: str, people: dict[str, httpx.Client], verdict: str
) -> None:
    candidate = gated(service, line, verdict=verdict)
    path = f"/v1/candidates/{candidate.candidate_id}"
    assert slug(people["approver"].post(f"{path}/approvals", json=SIGN)) == (409, "gate-not-passed")
    assert slug(promote(people["approver"], candidate, None)) == (409, "gate-not-passed")


def test_whoever_asked_for_a_run_cannot_sign_for_it(
    service: Service, line: str, people: dict[str, httpx.Client]
) -> None:
    candidate = gated(service, line, requested_by="requester")
    answer = people["requester"].post(f"/v1/candidates/{candidate.candidate_id}/approvals", json=SIGN)
    assert slug(answer) == (409, "not-distinct-approver")


def test_a_rejection_ends_a_candidate(service: Service, line: str, people: dict[str, httpx.Client]) -> None:
    path = f"/v1/candidates/{gated(service, line).candidate_id}/approvals"
    no = SIGN | {"decision": "reject", "reason": "the flips are all of one ward"}
    assert people["approver"].post(path, json=no).status_code == 201
    assert slug(people["second-approver"].post(path, json=SIGN)) == (409, "state-moved")
    assert people["approver"].get(path).json() == []


@pytest.mark.parametrize(
    "wish", [{"decision": "approve"}, {"decision": "perhaps", "reason": "x"}, SIGN | {"as": "ben"}]
)
def test_a_signature_needs_a_decision_and_a_reason(
    service: Service, line: str, people: dict[str, httpx.Client], wish: dict[str, str]
) -> None:
    path = f"/v1/candidates/{gated(service, line).candidate_id}/approvals"
    assert slug(people["approver"].post(path, json=wish)) == (422, "invalid-request")


def test_a_roll_back_brings_the_earlier_champion_back(
    service: Service, line: str, people: dict[str, httpx.Client]
) -> None:
    first = gated(service, line)
    crown(people, first, None)
    path = f"/v1/lines/{line}/roll-back"
    too_early = people["approver"].post(path, json={"expected_champion": first.candidate_id, "reason": "r"})
    assert slug(too_early) == (409, "nothing-to-roll-back-to")
    second = gated(service, line)
    crown(people, second, first.candidate_id)
    stale = people["approver"].post(path, json={"expected_champion": first.candidate_id, "reason": "r"})
    assert slug(stale) == (409, "champion-moved")
    assert stale.json()["champion"] == second.candidate_id
    answer = people["operator"].post(path, json={"expected_champion": second.candidate_id, "reason": "alarm"})
    assert (answer.status_code, answer.json()["candidate_id"]) == (201, first.candidate_id)
    kinds = [promotion["kind"] for promotion in people["auditor"].get(f"/v1/lines/{line}/promotions").json()]
    assert kinds == ["roll_back", "promotion", "promotion"]


def test_the_audit_trail_is_read_in_pages(people: dict[str, httpx.Client], line: str) -> None:
    first = people["auditor"].get("/v1/audit", params={"limit": 2}).json()
    second = people["auditor"].get("/v1/audit", params={"limit": 1, "after": first[-1]["audit_event_id"]}).json()
    assert [event["audit_event_id"] for event in first + second] == [1, 2, 3]
    assert second[0]["previous_digest"] == first[1]["digest"]
