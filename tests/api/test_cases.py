"""Images in: what is taken, what is kept, what is refused."""

from __future__ import annotations

import hashlib
import select
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from registry import blobs
from tests.api.pictures import dicom, npy, png
from tests.api.service import Service


def send(client: httpx.Client, line: str, image: bytes, **form: str) -> httpx.Response:
    return client.post(
        "/v1/cases", data={"line": line, "site": "north", **form}, files={"image": ("DOE^JANE.png", image)}
    )


def test_png_npy_and_dicom_become_cases_of_the_same_pixels(submitter: httpx.Client, line: str) -> None:
    answers = [send(submitter, line, image) for image in (png(1), npy(1), dicom(1))]
    assert [answer.status_code for answer in answers] == [201, 201, 201], [answer.text for answer in answers]
    cases = [answer.json() for answer in answers]
    assert {case["image_digest"] for case in cases} == {hashlib.sha256(npy(1)).hexdigest()}
    assert len({case["case_id"] for case in cases}) == 3


def test_of_a_dicom_header_only_the_allow_list_survives(service: Service, submitter: httpx.Client, line: str) -> None:
    case = send(
        submitter, line, dicom(2, PatientName="CANARY^NAME", PatientID="CANARYID", PatientSex="F", PatientAge="034Y")
    ).json()
    assert (case["sex"], case["age_band"]) == ("female", "30-39")
    assert case["attributes"]["Modality"] == "DX"
    with service.connect() as connection:
        row = connection.execute("SELECT cases::text FROM cases WHERE case_id = %s", (case["case_id"],)).fetchone()
    assert row is not None
    assert "CANARY" not in str(row)
    assert b"CANARY" not in blobs.read(service.blob_root, case["image_digest"])


def test_the_name_of_a_patient_or_a_file_is_not_kept(service: Service, submitter: httpx.Client, line: str) -> None:
    case = send(submitter, line, png(3), patient="MRN-0012345").json()
    again = send(submitter, line, png(4), patient=" MRN-0012345 ").json()
    other = send(submitter, line, png(5), patient="MRN-0012346").json()
    assert len(case["patient"]) == 64
    assert case["patient"] == again["patient"] != other["patient"]
    assert case["patient"] != hashlib.sha256(b"MRN-0012345").hexdigest(), "an unkeyed hash can be guessed"
    with service.connect() as connection:
        rows = connection.execute(
            "SELECT cases::text FROM cases UNION ALL SELECT audit_events::text FROM audit_events"
        ).fetchall()
    assert not [row for row in rows if "MRN-0012345" in str(row) or "JANE" in str(row)]


@pytest.mark.parametrize("garbage", [b"", b"hello", png(6)[:60], npy(6)[:100], b"\x89PNG\r\n\x1a\n" + b"\0" * 500])
def test_garbage_is_refused_with_a_reason(submitter: httpx.Client, line: str, garbage: bytes) -> None:
    answer = send(submitter, line, garbage)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["type"] == "/problems/image-refused"
    assert problem["reason"]
    assert problem["detail"]


def test_the_same_external_id_gives_the_same_case(submitter: httpx.Client, line: str) -> None:
    first = send(submitter, line, png(7), external_id="acc-1")
    again = send(submitter, line, png(7), external_id="acc-1")
    other = send(submitter, line, png(8), external_id="acc-1")
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert first.json() == again.json()
    assert other.json()["type"] == "/problems/already-exists"


def test_external_ids_belong_to_their_submitter(service: Service, submitter: httpx.Client, line: str) -> None:
    with service.client("second-submitter") as other:
        assert send(submitter, line, png(9), external_id="acc-2").status_code == 201
        assert send(other, line, png(10), external_id="acc-2").status_code == 201


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"sex": "F"}, "sex"),
        ({"age_band": "34"}, "age_band"),
        ({"site": ""}, "site"),
        ({"external_id": "x" * 201}, "external_id"),
    ],
)
def test_a_wrong_field_is_named(submitter: httpx.Client, line: str, form: dict[str, str], field: str) -> None:
    answer = send(submitter, line, png(11), **form)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["type"] == "/problems/invalid-request"
    assert [field in error["field"] for error in problem["errors"]] == [True]


def test_unknown_lines_and_cases_are_not_found(submitter: httpx.Client) -> None:
    for answer in (
        send(submitter, "no-such-line", png()),
        submitter.get("/v1/cases/999999"),
        submitter.get("/v1/cases?line=none"),
    ):
        assert answer.status_code == 404
        assert answer.json()["type"] == "/problems/not-found"


def test_cases_are_listed_in_pages(submitter: httpx.Client, line: str) -> None:
    sent = [send(submitter, line, png(seed)).json()["case_id"] for seed in range(3)]
    page = submitter.get("/v1/cases", params={"line": line, "limit": 2}).json()
    rest = submitter.get("/v1/cases", params={"line": line, "after": page[-1]["case_id"]}).json()
    assert [case["case_id"] for case in page + rest] == sent
    assert submitter.get("/v1/cases", params={"line": line, "confirmed": True}).json() == []


def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(service: Service) -> None:
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=120) as connection:
        head = f"POST /v1/cases HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['submitter']}\r\n"
        connection.sendall(f"{head}Content-Length: {10 * 1024**3}\r\n\r\n".encode())
        answer = connection.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert "application/problem+json" in answer
    assert "connection: close" in answer.lower()


def test_a_body_that_grows_too_large_is_cut_off_without_gathering_it(service: Service) -> None:
    address = urlsplit(service.url)
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    sent, answer = 0, b""
    with socket.create_connection((address.hostname, address.port), timeout=120) as connection:
        head = f"POST /v1/lines HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['operator']}\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            while sent < 256 * 1024**2:
                connection.sendall(chunk)
                sent += 0x10000
                if select.select([connection], [], [], 0)[0]:
                    answer = connection.recv(4096)
                    break
        except OSError:  # the server hung up on us
            pass
    assert sent < 16 * 1024**2, "the server read far more than the cap of 1 MiB"
    assert not answer or answer.startswith(b"HTTP/1.1 413"), answer
