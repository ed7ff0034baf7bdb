"""Confirmed diagnoses in bulk: each row judged on its own, in NDJSON and in CSV."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.v1.bulk import MAXIMUM_ROWS
from tests.api.pictures import png
from tests.api.service import Service

NDJSON, CSV = "application/x-ndjson", "text/csv; charset=utf-8"
READ = {"finding": "pneumonia", "evidence": "single_read", "ai_exposure": "blind", "reader": "radiologist-17"}


def submit(client: httpx.Client, line: str, external_id: str) -> int:
    form = {"line": line, "site": "north", "external_id": external_id}
    return int(client.post("/v1/cases", data=form, files={"image": png()}).json()["case_id"])


def upload(
    client: httpx.Client, line: str, body: str | bytes, *, media_type: str = NDJSON, key: str | None = None
) -> httpx.Response:
    headers = {"Content-Type": media_type, "Idempotency-Key": key or str(uuid4())}
    return client.post("/v1/confirmations", params={"line": line}, content=body, headers=headers)


def ndjson(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def slugs(answer: httpx.Response) -> list[str]:
    return [
        row["problem"]["type"].removeprefix("/problems/") if row["status"] == "rejected" else "accepted"
        for row in answer.json()["rows"]
    ]


def test_wrong_rows_are_named_and_right_ones_recorded(service: Service, submitter: httpx.Client, line: str) -> None:
    case, other = submit(submitter, line, "a"), submit(submitter, service.new_line(), "b")
    body = ndjson(
        READ | {"case_id": case},
        READ | {"external_id": "a", "confirmed_at": "2026-03-02T09:30:00Z"},
        READ | {"external_id": "b"},
        READ | {"case_id": other},
        READ | {"case_id": 999_999},
        READ | {"case_id": case, "external_id": "a"},
        READ,
        READ | {"case_id": case, "finding": "fracture"},
        READ | {"case_id": case, "confirmed_at": "2999-01-01T00:00:00Z"},
        READ | {"case_id": case, "reader": "a\0b"},
        "{not json",
        "[1, 2]",
        "",
        READ | {"case_id": case, "evidence": "pathology"},
    )
    answer = upload(submitter, line, body)
    assert answer.status_code == 200, answer.text
    assert slugs(answer) == [
        "accepted", "accepted", "not-found", "wrong-line", "not-found", "invalid-request", "invalid-request",
        "unknown-finding", "future-date", "invalid-request", "invalid-request", "invalid-request", "accepted",
    ]  # fmt: skip
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (3, 10)
    ids = [row["confirmation_id"] for row in answer.json()["rows"] if row["status"] == "accepted"]
    listed = submitter.get(f"/v1/cases/{case}/confirmations").json()
    assert [row["confirmation_id"] for row in listed] == ids
    assert submitter.get(f"/v1/cases/{other}/confirmations").json() == []


def test_csv_says_the_same_as_ndjson(submitter: httpx.Client, line: str) -> None:
    submit(submitter, line, "a")
    body = (
        "\ufeffexternal_id,finding,evidence,ai_exposure,reader,confirmed_at\r\n"
        'a,pneumonia,consensus,blind,"radiologist 17, north",2026-03-02T09:30:00Z\r\n'
        "a,normal,single_read,unknown,radiologist-18,\r\n"
        "a,fracture,single_read,unknown,radiologist-18,\r\n"
        "a,normal\r\n"
    )
    answer = upload(submitter, line, body.encode(), media_type=CSV)
    assert slugs(answer) == ["accepted", "accepted", "unknown-finding", "invalid-request"], answer.text
    cases = submitter.get("/v1/cases", params={"line": line, "confirmed": True}).json()
    listed = submitter.get(f"/v1/cases/{cases[0]['case_id']}/confirmations").json()
    assert [row["reader"] for row in listed] == ["radiologist 17, north", "radiologist-18"]


def test_a_repeated_upload_gets_the_first_answer(submitter: httpx.Client, line: str) -> None:
    case = submit(submitter, line, "a")
    body = ndjson(READ | {"case_id": case}, READ | {"case_id": case, "finding": "fracture"})
    first, again = (upload(submitter, line, body, key="bulk") for _ in range(2))
    assert first.status_code == 200
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert len(submitter.get(f"/v1/cases/{case}/confirmations").json()) == 1
    other = upload(submitter, line, body + "\n" + body, key="bulk")
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")


@pytest.mark.parametrize(
    ("body", "media_type", "status", "slug"),
    [
        ("x", "application/json", 415, "unsupported-media-type"),
        ("diagnosis,patient_name\nx,y\n", CSV, 422, "invalid-request"),
        ("", CSV, 422, "invalid-request"),
        (b"case_id,finding\n1,\xff\xfe\n", CSV, 422, "invalid-request"),
        ('case_id,finding\n1,"open', CSV, 422, "invalid-request"),
        ("{}\n" * (MAXIMUM_ROWS + 1), NDJSON, 413, "too-many-rows"),
    ],
)
def test_an_upload_that_cannot_be_read_is_refused_whole(
    *, submitter: httpx.Client, line: str, body: str | bytes, media_type: str, status: int, slug: str
) -> None:
    answer = upload(submitter, line, body, media_type=media_type)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}")


def test_an_upload_needs_a_key_and_a_line(submitter: httpx.Client, line: str) -> None:
    bare = submitter.post("/v1/confirmations", params={"line": line}, content="{}", headers={"Content-Type": NDJSON})
    assert (bare.status_code, bare.json()["type"]) == (400, "/problems/idempotency-key-missing")
    assert upload(submitter, "no-such-line", "{}").json()["type"] == "/problems/not-found"


def test_an_empty_upload_accepts_nothing(submitter: httpx.Client, line: str) -> None:
    assert upload(submitter, line, "").json() == {"accepted": 0, "rejected": 0, "rows": []}


def test_a_row_with_a_key_is_recorded_once_in_whatever_company(submitter: httpx.Client, line: str) -> None:
    case, other = submit(submitter, line, "a"), submit(submitter, line, "b")
    one, two = (READ | {"case_id": number, "idempotency_key": f"{line} {number}"} for number in (case, other))
    first = upload(submitter, line, ndjson(one)).json()["rows"][0]
    rows = upload(submitter, line, ndjson(two, one, two, READ | {"case_id": case})).json()["rows"]
    assert [row.get("replayed", False) for row in rows] == [False, True, True, False]
    assert rows[1]["confirmation_id"] == first["confirmation_id"]
    assert rows[0]["confirmation_id"] == rows[2]["confirmation_id"]
    assert len(submitter.get(f"/v1/cases/{case}/confirmations").json()) == 2
    assert len(submitter.get(f"/v1/cases/{other}/confirmations").json()) == 1


def test_a_key_of_a_row_stands_for_one_row_of_one_sender(service: Service, submitter: httpx.Client, line: str) -> None:
    case = submit(submitter, line, "a")
    keyed = READ | {"case_id": case, "idempotency_key": f"{line} 1"}
    assert slugs(upload(submitter, line, ndjson(keyed))) == ["accepted"]
    other = keyed | {"finding": "normal"}
    assert slugs(upload(submitter, line, ndjson(other, other))) == ["idempotency-key-reused"] * 2
    asked = {"idempotency_key": [f"{line} 1", f"{line} 2"]}
    assert [row["idempotency_key"] for row in submitter.get("/v1/confirmations", params=asked).json()] == [f"{line} 1"]
    with service.client("second-submitter") as second:
        assert second.get("/v1/confirmations", params=asked).json() == []
        assert slugs(upload(second, line, ndjson(other))) == ["accepted"]


def test_a_rejected_row_may_be_mended_under_its_old_key(submitter: httpx.Client, line: str) -> None:
    case = submit(submitter, line, "a")
    keyed = READ | {"case_id": case, "idempotency_key": f"{line} 1"}
    wrong = keyed | {"finding": "fracture"}
    assert slugs(upload(submitter, line, ndjson(wrong, keyed))) == ["unknown-finding", "idempotency-key-reused"]
    assert slugs(upload(submitter, line, ndjson(keyed))) == ["accepted"]


def test_uploads_that_overlap_and_race_record_a_row_once(service: Service, submitter: httpx.Client, line: str) -> None:
    cases = [submit(submitter, line, str(number)) for number in range(3)]
    rows = [READ | {"case_id": case, "idempotency_key": f"{line} {case}"} for case in cases]
    bodies = [ndjson(*rows[start:], *rows[:start]) for start in (0, 1, 2)] * 2
    with service.client("submitter") as client, ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: upload(client, line, body), bodies))
    assert [slugs(answer) for answer in answers] == [["accepted"] * 3] * len(bodies)
    for case in cases:
        assert len(submitter.get(f"/v1/cases/{case}/confirmations").json()) == 1
