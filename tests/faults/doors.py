"""What is killed at the doors: confirming, submitting, starting a run, signing, promoting, amending."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from api.app import create_app
from api.settings import ApiSettings
from registry import amendments, approvals, candidates, db, jobs, lines, promotions, runs, users, verify
from registry.db import Connection
from registry.users import User
from tests import factories
from tests.api.pictures import png
from tests.faults.places import READ, TOKEN, Place, Scenario, blob_root


def _person(conn: Connection, *roles: str) -> tuple[User, str]:
    person = factories.user(conn, *roles)
    return person, users.create_api_key(conn, user_id=person.user_id)


def _ask(place: Place, path: str, **request: Any) -> tuple[int, Any]:
    """Send one request to the API, in this process, as long as its answer is that the first try is still under way."""
    settings = ApiSettings(
        database_url=place["database_url"],
        blob_root=blob_root(place),
        inference_url=place.get("inference_url", "http://127.0.0.1:9"),
        inference_token=TOKEN,
        patient_key=bytes(32),
        pool_size=2,
    )
    own = {"Authorization": f"Bearer {place['key']}", "Idempotency-Key": "once"}
    headers = {**own, **request.pop("headers", {})}
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def ask() -> tuple[int, Any]:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client,
        ):
            while True:
                answer = await client.post(path, **request)
                if answer.status_code != 409 or answer.json()["type"] != "/problems/idempotency-in-flight":
                    return answer.status_code, answer.json()
                await asyncio.sleep(0.05)  # the server has not noticed yet that the first client is dead

    return asyncio.run(ask())


def _prepare_cases(conn: Connection, place: Place) -> Place:
    person, key = _person(conn, "submitter", "reviewer", "operator")
    line = factories.line(conn)
    made = [factories.case(conn, line, actor=person).case_id for _ in range(2)]
    return {"key": key, "line": line.name, "line_id": line.line_id, "cases": made}


def _confirm(place: Place) -> Any:
    path = f"/v1/cases/{place['cases'][0]}/confirmations"
    return _ask(place, path, json=READ)


def _one_each(conn: Connection, place: Place, cases: list[int]) -> None:
    query = "SELECT case_id FROM confirmations WHERE line_id = %s ORDER BY case_id"
    assert [row[0] for row in conn.execute(query, (place["line_id"],)).fetchall()] == cases


def _check_confirmed(conn: Connection, place: Place, answer: Any) -> None:
    assert answer[0] == 201, answer
    _one_each(conn, place, place["cases"][:1])
    again = _confirm(place)
    assert again[1] == answer[1], "the repeat was given another answer"


def _confirm_many(place: Place) -> Any:
    rows = "".join(f"{case},pneumonia,single_read,blind,r\n" for case in place["cases"])
    text = "case_id,finding,evidence,ai_exposure,reader\n" + rows
    path = f"/v1/confirmations?line={place['line']}"
    return _ask(place, path, content=text, headers={"Content-Type": "text/csv"})


def _check_bulk(conn: Connection, place: Place, answer: Any) -> None:
    assert (answer[0], answer[1]["accepted"]) == (200, len(place["cases"])), answer
    _one_each(conn, place, place["cases"])


def _submit(place: Place) -> Any:
    form = {"line": place["line"], "site": "north", "external_id": "x-1", "patient": "p"}
    return _ask(place, "/v1/cases", data=form, files={"image": png(place["cases"][0])})


def _check_submitted(conn: Connection, place: Place, answer: Any) -> None:
    assert answer[0] in {200, 201}, answer
    query = "SELECT case_id FROM cases WHERE external_id = 'x-1' AND line_id = %s"
    found = conn.execute(query, (place["line_id"],)).fetchall()
    assert found == [(answer[1]["case_id"],)]


def _start_run(place: Place) -> Any:
    return _ask(place, f"/v1/lines/{place['line']}/runs", json={"reason": "enough new cases"})


def _check_run(conn: Connection, place: Place, answer: Any) -> None:
    assert answer[0] == 201, answer
    (run,) = runs.list_runs(conn, place["line_id"])
    assert [job.payload for job in jobs.list_jobs(conn, line_id=place["line_id"])] == [{"run_id": run.run_id}]


def _prepare_champion(conn: Connection, place: Place) -> Place:
    person, key = _person(conn, "approver")
    line = factories.line(conn)
    first = factories.champion(conn, line)
    second = factories.approved_candidate(conn, line)
    names = {"key": key, "line": line.name, "line_id": line.line_id, "person": person.user_id}
    return {**names, "first": first.candidate_id, "second": second.candidate_id}


def _promote(place: Place) -> Any:
    wish = {"expected_champion": place["first"], "reason": "it is better"}
    return _ask(place, f"/v1/candidates/{place['second']}/promotion", json=wish)


def _check_champion(conn: Connection, place: Place, candidate_id: int) -> None:
    champion = promotions.champion(conn, place["line_id"])
    assert champion is not None
    assert champion.candidate_id == candidate_id


def _check_promoted(conn: Connection, place: Place, answer: Any) -> None:
    assert (answer[0], answer[1]["candidate_id"]) == (201, place["second"]), answer
    _check_champion(conn, place, place["second"])
    assert len(promotions.history(conn, place["line_id"])) == 2


def _prepare_roll_back(conn: Connection, place: Place) -> Place:
    made = _prepare_champion(conn, place)
    factories.promotion(conn, candidates.get(conn, made["second"]))
    return made


def _roll_back(place: Place) -> Any:
    wish = {"expected_champion": place["second"], "reason": "misses small infiltrates"}
    return _ask(place, f"/v1/lines/{place['line']}/roll-back", json=wish)


def _check_rolled_back(conn: Connection, place: Place, answer: Any) -> None:
    assert (answer[0], answer[1]["candidate_id"]) == (201, place["first"]), answer
    _check_champion(conn, place, place["first"])
    assert len(promotions.history(conn, place["line_id"])) == 3


def _prepare_signature(conn: Connection, place: Place) -> Place:
    person, _ = _person(conn, "approver")
    candidate = factories.gated_candidate(conn, factories.line(conn))
    return {"person": person.user_id, "candidate": candidate.candidate_id}


def _sign(place: Place) -> Any:
    with db.pool(place["database_url"], maximum=2) as pool, db.transaction(pool) as conn:
        person = users.get_user(conn, place["person"])
        if any(one.approver_id == person.user_id for one in approvals.standing(conn, place["candidate"])):
            return "signed already"
        approvals.sign(
            conn, candidate_id=place["candidate"], approver=person, decision="approve", reason="I read the report"
        )
        return "signed"


def _check_signed(conn: Connection, place: Place, _answer: Any) -> None:
    (signature,) = approvals.standing(conn, place["candidate"])
    assert signature.approver_id == place["person"]


def _prepare_amendment(conn: Connection, place: Place) -> Place:
    line = factories.line(conn)
    proposed = factories.amendment(conn, line, title="Pneumonia, more strictly")
    people = [_person(conn, "approver")[0].user_id for _ in range(2)]
    return {"line_id": line.line_id, "amendment": proposed.amendment_id, "people": people}


def _amend(place: Place) -> Any:
    with db.pool(place["database_url"], maximum=2) as pool:
        for number in place["people"]:
            with db.transaction(pool) as conn:
                signed = amendments.signatures(conn, place["amendment"])
                if number not in {one.approver_id for one in signed}:
                    amendments.sign(
                        conn,
                        amendment_id=place["amendment"],
                        approver=users.get_user(conn, number),
                        decision="approve",
                        reason="I read what changes",
                    )
    return "signed"


def _check_amended(conn: Connection, place: Place, _answer: Any) -> None:
    protocol = lines.current_protocol(conn, place["line_id"])
    assert (protocol.version, protocol.amendment_id) == (2, place["amendment"])
    assert verify.check_protocols(conn).state == "fine"


DOOR = ("transaction", "idempotency")
SCENARIOS = {
    "a confirmation": Scenario(prepare=_prepare_cases, act=_confirm, check=_check_confirmed, subjects=DOOR),
    "confirmations in bulk": Scenario(prepare=_prepare_cases, act=_confirm_many, check=_check_bulk, subjects=DOOR),
    "an image": Scenario(prepare=_prepare_cases, act=_submit, check=_check_submitted, subjects=("transaction", "blob")),
    "the wish for a run": Scenario(prepare=_prepare_cases, act=_start_run, check=_check_run, subjects=DOOR),
    "a signature": Scenario(prepare=_prepare_signature, act=_sign, check=_check_signed, subjects=("transaction",)),
    "a promotion": Scenario(
        prepare=_prepare_champion, act=_promote, check=_check_promoted, subjects=(*DOOR, "promotion")
    ),
    "a roll back": Scenario(
        prepare=_prepare_roll_back, act=_roll_back, check=_check_rolled_back, subjects=(*DOOR, "promotion")
    ),
    "an amendment": Scenario(
        prepare=_prepare_amendment, act=_amend, check=_check_amended, subjects=("transaction", "amendment")
    ),
}
