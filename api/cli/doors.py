"""The people of the demo, and the doors of the service as each of them sees it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import httpx

from registry import db, passwords, users

PEOPLE = (
    ("pacs-north", "PACS, Hospital North", ("submitter",)),
    ("pacs-south", "PACS, Hospital South", ("submitter",)),
    ("pacs-east", "PACS, Hospital East", ("submitter",)),
    ("clara", "Dr Clara Clinician, radiology", ("submitter",)),
    ("otto", "Otto Operator", ("operator", "auditor")),
    ("rita", "Rita Reviewer, ML engineer", ("reviewer",)),
    ("anna", "Dr Anna Approver, clinical safety", ("approver",)),
    ("ben", "Dr Ben Approver, radiology", ("approver",)),
)
PATIENCE_SECONDS = 60.0
COME_BACK = {429, 503}


class StoryStopped(Exception):
    """The story could not go on; the message says at which step and where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How one of the demo's people comes in; people have a password, machines an empty one."""

    key: str = field(repr=False)
    password: str = field(default="", repr=False)


class Running(Protocol):
    """A service that runs, here or in another process: where its API answers, its home folder, its settings."""

    @property
    def url(self) -> str: ...
    @property
    def home(self) -> Path: ...
    @property
    def environment(self) -> Mapping[str, str]: ...


class Door:
    """The HTTP API as one person sees it: raises StoryStopped with the problem's own words."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._password = credentials.password
        bearer = {"Authorization": f"Bearer {credentials.key}"}
        self._client = httpx.Client(base_url=url, headers=bearer, timeout=60)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return the response, whatever its status.

        As a hospital's client does, it asks again where nobody answers or the service cannot just now, under the same
        Idempotency-Key: what it asks for is done once.
        """
        headers = {"Idempotency-Key": str(uuid4()), **options.pop("headers", {})}
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                response = self._client.request(method, path, headers=headers, **options)
                if response.status_code not in COME_BACK or time.monotonic() > until:
                    return response
            except httpx.TransportError as error:
                if time.monotonic() > until:
                    raise StoryStopped(f"nobody answers {method} {path}: {error}") from error
            time.sleep(0.5)

    def get(self, path: str, **parameters: Any) -> Any:
        """Read a resource."""
        return self._accepted(self.request("GET", path, params=parameters))

    def post(self, path: str, **options: Any) -> Any:
        """Change something that must be accepted."""
        return self._accepted(self.request("POST", path, **options))

    def approve(self, candidate_id: int, *, reason: str) -> httpx.Response:
        """Sign for a candidate, with this person's password, and return the response, whatever its status."""
        signature = {"decision": "approve", "reason": reason, "password": self._password}
        return self.request("POST", f"/v1/candidates/{candidate_id}/approvals", json=signature)

    def _accepted(self, response: httpx.Response) -> Any:
        if response.is_error:
            raise StoryStopped(
                f"{response.request.method} {response.request.url.path} was refused: {problem(response)}"
            )
        return response.json()


def problem(response: httpx.Response) -> str:
    """The words of an RFC 9457 problem, or the body where there is none."""
    try:
        document = response.json()
    except ValueError:
        return response.text[:300]
    return str(document.get("detail") or document.get("title") or document)


def make_people(stack: Running) -> dict[str, Credentials]:
    """Create the demo's users in the record; return their credentials by name, also kept in the home (mode 0600)."""
    people = {}
    with db.connect(stack.environment["OVERREAD_DATABASE_URL"]) as connection:
        for name, printed_name, roles in PEOPLE:
            user = users.create_user(connection, name=name, printed_name=printed_name, roles=roles)
            made = Credentials(key=users.create_api_key(connection, user_id=user.user_id))
            if not name.startswith("pacs-"):  # nobody signs, adjudicates or types a name at the console without
                made = replace(made, password=secrets.token_urlsafe(16))
                passwords.set_password(connection, user=user, password=made.password)
            people[name] = made
    path = stack.home / "demo-people.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({name: asdict(made) for name, made in people.items()}, indent=2) + "\n")
    return people
