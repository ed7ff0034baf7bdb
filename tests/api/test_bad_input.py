"""What cannot be right is refused by name, and leaves nothing behind: not a row, not a file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from registry import users
from tests.api.pictures import png
from tests.api.service import Service

READ = {"finding": "pneumonia", "evidence": "single_read", "ai_exposure": "blind", "reader": "r-17"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A line with two cases, the first confirmed; the requests go out as `client`."""

    service: Service
    client: httpx.Client
    line: str
    case: int
    other_case: int
    confirmation: int
    key: str

    def confirm(self, case: int | None = None, *, key: str | None = None, **changes: Any) -> httpx.Response:
        """Send a confirmation, right but for `changes`."""
        path = f"/v1/cases/{self.case if case is None else case}/confirmations"
        return self.client.post(path, json=READ | changes, headers={"Idempotency-Key": key or str(uuid4())})

    def submit(self, image: bytes, **form: str) -> httpx.Response:
        """Send an image."""
        form = {"line": self.line, "site": "north", **form}
        return self.client.post("/v1/cases", data=form, files={"image": image})

    def as_leaver(self, leave: Callable[[Any, users.User, str], None]) -> httpx.Response:
        """Send a confirmation as a submitter who has just left."""
        with self.service.connect() as connection:
            user = users.create_user(connection, name=f"x-{uuid4().hex}", printed_name="X", roles=("submitter",))
            key = users.create_api_key(connection, user_id=user.user_id)
            leave(connection, user, key)
        before = self.service.fingerprints()
        headers = {"Idempotency-Key": str(uuid4()), "Authorization": f"Bearer {key}"}
        answer = self.client.post(f"/v1/cases/{self.case}/confirmations", json=READ, headers=headers)
        assert self.service.fingerprints() == before
        return answer


@pytest.fixture(scope="module")
def scene(service: Service) -> Any:
    """The scene, kept for all rows of the table: none of them may change it."""
    line = service.new_line()
    with service.client("submitter") as client:
        form = {"line": line, "site": "north"}
        cases = [
            client.post("/v1/cases", data=form | {"external_id": f"id-{n}"}, files={"image": png(n)}).json()["case_id"]
            for n in range(2)
        ]
        key = str(uuid4())
        made = client.post(f"/v1/cases/{cases[0]}/confirmations", json=READ, headers={"Idempotency-Key": key})
        yield Scene(
            service=service, client=client, line=line, case=cases[0], other_case=cases[1],
            confirmation=made.json()["confirmation_id"], key=key,
        )  # fmt: skip


def lying_png(columns: int, rows: int) -> bytes:
    """A PNG whose header promises so many pixels, and whose data holds none of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def bulk(
    scene: Scene, content: bytes, media_type: str = "application/x-ndjson", line: str | None = None
) -> httpx.Response:
    headers = {"Content-Type": media_type, "Idempotency-Key": str(uuid4())}
    return scene.client.post("/v1/confirmations", params={"line": line or scene.line}, content=content, headers=headers)


def soon(**ahead: int) -> str:
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


TABLE: dict[str, tuple[Callable[[Scene], httpx.Response], int, str]] = {
    "unknown finding": (lambda s: s.confirm(finding="fracture"), 422, "unknown-finding"),
    "superseding another case's confirmation": (
        lambda s: s.confirm(s.other_case, supersedes=s.confirmation), 422, "wrong-line",
    ),
    "future date": (lambda s: s.confirm(confirmed_at=soon(days=3)), 422, "future-date"),
    "a date that no calendar has": (lambda s: s.confirm(confirmed_at="2026-02-30T10:00:00Z"), 422, "invalid-request"),
    "a date without an offset": (lambda s: s.confirm(confirmed_at="2026-03-02T09:30:00"), 422, "invalid-request"),
    "unknown case": (lambda s: s.confirm(999_999), 404, "not-found"),
    "a case number beyond all numbers": (lambda s: s.confirm(2**70), 422, "invalid-request"),
    "superseding what is not there": (lambda s: s.confirm(supersedes=999_999), 404, "not-found"),
    "a NUL in a text": (lambda s: s.confirm(reader="a\0b"), 422, "invalid-request"),
    "half a character": (lambda s: s.client.post(
        f"/v1/cases/{s.case}/confirmations", headers={"Idempotency-Key": "k", "Content-Type": "application/json"},
        content=b'{"finding":"normal","evidence":"single_read","ai_exposure":"blind","reader":"\\ud800"}',
    ), 422, "invalid-request"),
    "a field nobody knows": (lambda s: s.confirm(comment="x"), 422, "invalid-request"),
    "a replayed key with another payload": (
        lambda s: s.confirm(key=s.key, finding="normal"), 422, "idempotency-key-reused",
    ),
    "no key": (
        lambda s: s.client.post(f"/v1/cases/{s.case}/confirmations", json=READ), 400, "idempotency-key-missing",
    ),
    "a body over the cap": (lambda s: s.confirm(reader="x" * 1_100_000), 413, "body-too-large"),
    "an image with more pixels than are taken": (lambda s: s.submit(lying_png(65535, 65535)), 422, "image-refused"),
    "an image that promises what it does not hold": (lambda s: s.submit(lying_png(512, 512)), 422, "image-refused"),
    "an image that is none": (lambda s: s.submit(b"GIF89a" + bytes(500)), 422, "image-refused"),
    "another image under a known external_id": (
        lambda s: s.submit(png(9), external_id="id-0"), 409, "already-exists",
    ),
    "an age that is no band": (lambda s: s.submit(png(), age_band="old"), 422, "invalid-request"),
    "a line nobody knows": (lambda s: s.submit(png(), line="nowhere"), 404, "not-found"),
    "bulk for a line nobody knows": (lambda s: bulk(s, b"{}", line="nowhere"), 404, "not-found"),
    "bulk that is no text": (lambda s: bulk(s, b"\xff\xfe\x00"), 422, "invalid-request"),
    "bulk of another kind": (lambda s: bulk(s, b"<xml/>", "application/xml"), 415, "unsupported-media-type"),
    "a role that may not": (
        lambda s: s.client.post(f"/v1/lines/{s.line}/runs", json={"reason": "x"}), 403, "forbidden",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TABLE)
def test_what_cannot_be_right_is_refused_by_name_and_leaves_nothing_behind(scene: Scene, what: str) -> None:
    send, status, slug = TABLE[what]
    before = scene.service.fingerprints()
    answer = send(scene)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert scene.service.fingerprints() == before


def test_a_revoked_key_and_a_user_who_was_shut_out_leave_nothing_behind(scene: Scene) -> None:
    def revoke(connection: Any, _user: users.User, key: str) -> None:
        users.revoke_api_key(connection, api_key_id=key.split("_")[1])

    def disable(connection: Any, user: users.User, _key: str) -> None:
        users.disable_user(connection, user_id=user.user_id)

    for leave in (revoke, disable):
        answer = scene.as_leaver(leave)
        assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthenticated")


def test_a_bulk_upload_of_wrong_rows_records_only_its_answer(scene: Scene) -> None:
    elsewhere = scene.service.new_line()
    before = scene.service.fingerprints(but={"idempotency_keys"})
    rows = f'{{"case_id": {scene.case}, "finding": "normal"}}\n{{"case_id": 999999}}\nnot json\n'
    answer = bulk(scene, rows.encode(), line=elsewhere)
    assert (answer.status_code, answer.json()["accepted"], answer.json()["rejected"]) == (200, 0, 3)
    right = (
        f'{{"case_id": {scene.case}, "finding": "normal", "evidence": "single_read", "ai_exposure": "blind",'
        ' "reader": "r"}'
    )
    (row,) = bulk(scene, right.encode(), line=elsewhere).json()["rows"]
    assert row["problem"]["type"] == "/problems/wrong-line"
    assert scene.service.fingerprints(but={"idempotency_keys"}) == before
