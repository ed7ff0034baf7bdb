"""What to confirm next over HTTP, and blind cases that stay blind until they are confirmed."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from registry import lines, worklists
from tests.api.pictures import png
from tests.api.service import Service
from tests.api.test_predictions import crown, predict


def send(client: httpx.Client, line: str, seed: int, site: str = "north") -> int:
    answer = client.post("/v1/cases", data={"line": line, "site": site}, files={"image": png(seed)})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["case_id"])


def confirm(client: httpx.Client, case: int) -> None:
    read = {"finding": "normal", "evidence": "single_read", "ai_exposure": "blind", "reader": "r"}
    headers = {"Idempotency-Key": f"worklist-{case}"}
    assert client.post(f"/v1/cases/{case}/confirmations", json=read, headers=headers).status_code == 201


def rank(service: Service, line: str, cases: list[int], arms: list[str]) -> None:
    """Leave a ranking as a worker would."""
    with service.connect() as connection:
        row = lines.get_line(connection, line)
        last_case_id, last_confirmation_id = worklists.reach(connection, row.line_id)
        worklists.replace(
            connection,
            line_id=row.line_id,
            candidate_id=None,
            protocol_id=lines.current_protocol(connection, row.line_id).protocol_id,
            shares={"blind": 0.05, "random": 0.95},
            left_out=0,
            last_case_id=last_case_id,
            last_confirmation_id=last_confirmation_id,
            case_ids=cases,
            arms=arms,
            reasons=[f"because of {arm}" for arm in arms],
        )


@pytest.fixture
def reviewer(service: Service) -> Iterator[httpx.Client]:
    """The API as a reviewer sees it."""
    with service.client("reviewer") as client:
        yield client


def test_before_the_first_ranking_the_list_is_empty_and_says_so(reviewer: httpx.Client, line: str) -> None:
    shown = reviewer.get(f"/v1/lines/{line}/worklist").json()
    assert (shown["ranked_at"], shown["number"], shown["cases"]) == (None, None, [])


def test_the_list_is_given_out_in_its_order_by_site_and_reason_and_the_look_is_noted(
    service: Service, submitter: httpx.Client, reviewer: httpx.Client, line: str
) -> None:
    cases = [send(submitter, line, seed, site) for seed, site in enumerate(("north", "south", "north"), start=100)]
    order, arms = [cases[2], cases[0], cases[1]], ["uncertain", "blind", "random"]
    rank(service, line, order, arms)
    path = f"/v1/lines/{line}/worklist"
    shown = reviewer.get(path).json()
    assert [case["case_id"] for case in shown["cases"]] == order
    assert shown["cases"][0]["reason"] == "because of uncertain"
    assert (shown["ranked"], shown["shares"]) == (3, {"blind": 0.05, "random": 0.95})

    def ids(**asked: object) -> list[int]:
        return [case["case_id"] for case in reviewer.get(path, params=asked).json()["cases"]]  # type: ignore[arg-type]

    assert ids(site="north") == order[:2]
    assert ids(reason="random") == order[2:]
    assert ids(after=1, limit=1) == order[1:2]
    assert ids(site="west") == []
    assert reviewer.get(path, params={"reason": "gut feeling"}).status_code == 422
    confirm(submitter, order[0])
    assert ids() == order[1:]
    with service.connect() as connection:
        line_id = lines.get_line(connection, line).line_id
    looks = [look for look in service.looks() if (look["action"], look["line_id"]) == ("worklist:read", line_id)]
    assert {"cases": 3, "first": order[0]} in [look["details"] for look in looks]


def test_only_those_who_confirm_or_review_see_it(service: Service, line: str) -> None:
    for name, status in (("submitter", 200), ("reviewer", 200), ("auditor", 403), ("nobody", 403)):
        with service.client(name) as client:
            assert client.get(f"/v1/lines/{line}/worklist").status_code == status
    with service.client("reviewer") as client:
        assert client.get("/v1/lines/none/worklist").json()["type"] == "/problems/not-found"


@pytest.fixture(scope="module")
def blind_line(service: Service) -> str:
    """A line whose every case is to be read blind, with a champion that serves."""
    line = service.new_line(blind_fraction=1.0)
    crown(service, line)
    with service.client("submitter") as client:
        for _ in range(300):
            if (answer := predict(client, line, png(199))).status_code == 200:
                return line
    pytest.fail(answer.text)


def test_what_the_champion_says_of_a_blind_case_is_refused_until_it_is_confirmed(
    submitter: httpx.Client, blind_line: str
) -> None:
    case = send(submitter, blind_line, 200)
    asked = (
        submitter.post(f"/v1/cases/{case}/predictions"),
        submitter.get(f"/v1/cases/{case}/heat-map", params={"finding": "pneumonia"}),
        predict(submitter, blind_line, png(200)),  # the same image, as if it were another
        submitter.post(
            "/v1/predictions/heat-map",
            params={"line": blind_line, "finding": "pneumonia"},
            content=png(200),
            headers={"Content-Type": "image/png"},
        ),
    )
    assert [(answer.status_code, answer.json()["type"]) for answer in asked] == [(409, "/problems/blind-case")] * 4
    confirm(submitter, case)
    answer = submitter.post(f"/v1/cases/{case}/predictions")
    assert (answer.status_code, set(answer.json()["scores"])) == (200, {"normal", "pneumonia"})
    assert submitter.get(f"/v1/cases/{case}/heat-map", params={"finding": "pneumonia"}).status_code == 200


def test_a_prediction_of_a_blind_case_that_is_only_recorded_is_recorded_without_being_told(
    service: Service, submitter: httpx.Client, blind_line: str
) -> None:
    case = send(submitter, blind_line, 201)
    answer = submitter.post(f"/v1/cases/{case}/predictions", params={"shown": False})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["scores"], answer.json()["decision"]) == (None, None)
    with service.connect() as connection:
        logged = connection.execute("SELECT shown, scores FROM predictions WHERE case_id = %s", (case,)).fetchall()
    ((shown, scores),) = logged
    assert shown is False
    assert set(scores) == {"normal", "pneumonia"}
