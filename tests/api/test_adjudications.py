"""Discordant cases over HTTP: the queue, who decides, and what is taken back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from registry import passwords, users
from tests.api.pictures import png
from tests.api.service import PASSWORD, Service
from tests.api.test_confirmations import confirm
from tests.cli.test_commands import overread

DECISION = {"finding": "pneumonia", "ai_exposure": "blind", "reason": "The lateral view shows it."}


@pytest.fixture
def rita(service: Service) -> Iterator[httpx.Client]:
    """The API as a reviewer sees it who has a password."""
    if "rita" not in service.keys:
        with service.connect() as connection:
            user = users.create_user(connection, name="rita", printed_name="Dr Rita", roles=("reviewer",))
            passwords.set_password(connection, user=user, password=PASSWORD)
            service.keys["rita"] = users.create_api_key(connection, user_id=user.user_id)
            connection.commit()
    with service.client("rita") as client:
        yield client


@pytest.fixture
def case(submitter: httpx.Client, line: str) -> int:
    """A case of which two readers say different things."""
    answer = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": png()})
    number = int(answer.json()["case_id"])
    for finding, reader in (("normal", "radiologist-4"), ("pneumonia", "radiologist-17")):
        assert confirm(submitter, number, finding=finding, reader=reader).status_code == 201
    return number


def newest(client: httpx.Client, case: int) -> int:
    return int(client.get(f"/v1/cases/{case}/confirmations").json()[-1]["confirmation_id"])


def adjudicate(client: httpx.Client, case: int, *, key: str | None = None, **changes: Any) -> httpx.Response:
    decision = DECISION | {"last_seen": newest(client, case)} | changes
    headers = {"Idempotency-Key": key or str(uuid4())}
    return client.post(f"/v1/cases/{case}/adjudications", json=decision, headers=headers)


def retract(client: httpx.Client, confirmation: int, *, key: str | None = None, reason: str = "why") -> httpx.Response:
    headers = {"Idempotency-Key": key or str(uuid4())}
    return client.post(f"/v1/confirmations/{confirmation}/retraction", json={"reason": reason}, headers=headers)


def test_a_discordant_case_waits_in_the_queue_until_a_reviewer_decides(
    service: Service, rita: httpx.Client, line: str, case: int
) -> None:
    (waiting,) = rita.get(f"/v1/lines/{line}/discordances").json()
    assert waiting["case_id"] == case
    said = [(row["reader"], row["finding"]) for row in waiting["standing"]]
    assert said == [("radiologist-4", "normal"), ("radiologist-17", "pneumonia")]
    answer = adjudicate(rita, case, last_seen=waiting["last_confirmation"])
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["kind"], made["finding"], made["reader"]) == ("adjudication", "pneumonia", "rita")
    assert (made["reason"], made["superseded_by"]) == (DECISION["reason"], None)
    assert rita.get(f"/v1/lines/{line}/discordances").json() == []
    assert rita.get(f"/v1/cases/{case}").json()["confirmations"][-1] == made
    assert any((look["action"], look["reader"]) == ("discordance:list", "rita") for look in service.looks())


def test_a_repeated_decision_is_one_decision(rita: httpx.Client, case: int) -> None:
    last = newest(rita, case)
    first, again = (adjudicate(rita, case, key=f"once-{case}", last_seen=last) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = adjudicate(rita, case, key=f"once-{case}", last_seen=last, finding="normal")
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")
    assert len(rita.get(f"/v1/cases/{case}/confirmations").json()) == 3


def test_nobody_decides_over_what_they_have_not_seen(submitter: httpx.Client, rita: httpx.Client, case: int) -> None:
    seen = newest(rita, case)
    confirm(submitter, case, reader="radiologist-9")
    answer = adjudicate(rita, case, last_seen=seen)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/record-moved")
    assert answer.json()["last_confirmation"] == newest(rita, case)
    assert adjudicate(rita, case).status_code == 201


@pytest.mark.parametrize(
    ("changes", "status", "slug"),
    [
        ({"finding": "fracture"}, 422, "unknown-finding"),
        ({"last_seen": 999_999}, 422, "wrong-line"),
        ({"last_seen": 0}, 422, "invalid-request"),
        ({"reason": "  "}, 422, "invalid-request"),
        ({"ai_exposure": "perhaps"}, 422, "invalid-request"),
        ({"reader": "somebody-else"}, 422, "invalid-request"),
    ],
)
def test_a_decision_that_cannot_be_right_is_refused_by_name(
    rita: httpx.Client, case: int, changes: dict[str, Any], status: int, slug: str
) -> None:
    answer = adjudicate(rita, case, **changes)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}")
    assert len(rita.get(f"/v1/cases/{case}/confirmations").json()) == 2


def test_a_finding_left_out_is_not_the_same_as_none(rita: httpx.Client, case: int) -> None:
    silent = DECISION | {"last_seen": newest(rita, case)}
    del silent["finding"]
    path, headers = f"/v1/cases/{case}/adjudications", {"Idempotency-Key": str(uuid4())}
    assert rita.post(path, json=silent, headers=headers).status_code == 422
    assert rita.post(path, json=silent | {"finding": None}, headers=headers).json()["finding"] is None
    assert rita.post(path, json=silent).json()["type"] == "/problems/idempotency-key-missing"


def test_a_key_of_a_reviewer_without_a_password_does_not_decide(service: Service, case: int) -> None:
    with service.client("reviewer") as machine:
        answer = adjudicate(machine, case)
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")
    assert "overread user password reviewer" in answer.json()["detail"]


def test_what_was_taken_back_no_longer_counts(submitter: httpx.Client, line: str, case: int) -> None:
    wrong = newest(submitter, case)
    first, again = (retract(submitter, wrong, key=f"back-{case}") for _ in range(2))
    assert (first.status_code, again.json()) == (201, first.json())
    assert (first.json()["kind"], first.json()["finding"], first.json()["supersedes"]) == ("retraction", None, wrong)
    assert submitter.get(f"/v1/lines/{line}/discordances").json() == []
    assert retract(submitter, wrong).json()["type"] == "/problems/already-superseded"
    assert retract(submitter, first.json()["confirmation_id"]).json()["type"] == "/problems/invalid"
    assert retract(submitter, 999_999).json()["type"] == "/problems/not-found"
    corrected = confirm(submitter, case, supersedes=first.json()["confirmation_id"])
    assert corrected.status_code == 201


def test_somebody_elses_word_is_taken_back_by_a_reviewer_only(service: Service, case: int) -> None:
    with service.client("second-submitter") as stranger, service.client("reviewer") as reviewer:
        number = newest(stranger, case)
        answer = retract(stranger, number)
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")
        assert retract(reviewer, number).status_code == 201


def test_the_queue_is_paged(submitter: httpx.Client, line: str, case: int) -> None:
    answer = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": png(1)})
    other = int(answer.json()["case_id"])
    for finding in ("normal", "pneumonia"):
        confirm(submitter, other, finding=finding, reader=f"reader-{finding}")
    path = f"/v1/lines/{line}/discordances"
    (first,) = submitter.get(path, params={"limit": 1}).json()
    (second,) = submitter.get(path, params={"limit": 1, "after": first["since"]}).json()
    assert (first["case_id"], second["case_id"]) == (case, other)
    assert submitter.get(path, params={"after": second["since"]}).json() == []
    assert submitter.get("/v1/lines/no-such-line/discordances").status_code == 404


@pytest.mark.usefixtures("rita")
def test_a_reviewer_lists_decides_and_takes_back_from_the_command_line(
    *, service: Service, submitter: httpx.Client, line: str, case: int, tmp_path: Path
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        key = {"OVERREAD_API_KEY": service.keys["rita"], "OVERREAD_API_URL": service.url}
        return overread("case", *arguments, home=tmp_path, **key)

    listed = run("discordant", "--line", line)
    assert listed.returncode == 0, listed.stderr
    assert f"{case} " in listed.stdout
    assert "normal (single_read, radiologist-4, blind)" in listed.stdout
    last = newest(submitter, case)
    decided = ("adjudicate", str(case), "--last-seen", str(last), "--reason", "The lateral view shows it", "--json")
    neither = run(*decided)
    assert neither.returncode != 0
    assert "give --finding or --no-answer" in neither.stderr
    made = run(*decided, "--finding", "pneumonia")
    assert made.returncode == 0, made.stderr
    adjudication = json.loads(made.stdout)
    assert (adjudication["kind"], adjudication["reader"]) == ("adjudication", "rita")
    assert "No readers disagree." in run("discordant", "--line", line).stderr
    again = run(*decided, "--no-answer")
    assert again.returncode != 0
    assert "has come in since" in again.stderr
    back = run("retract", str(adjudication["confirmation_id"]), "--reason", "Of another case", "--json")
    assert json.loads(back.stdout)["supersedes"] == adjudication["confirmation_id"]
    (waiting,) = json.loads(run("discordant", "--line", line, "--json").stdout)
    assert waiting["case_id"] == case
