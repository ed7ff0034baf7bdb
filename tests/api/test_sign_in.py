"""People sign in with a password, stay signed in for a while, and sign with the password once more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from api.auth import COOKIE
from registry import lines, passwords, users
from tests import factories
from tests.api.service import PASSWORD, ROOT, Service, slug
from tests.conftest import as_superuser

SIGN = {"decision": "approve", "reason": "I read the report"}
OURS = {"Sec-Fetch-Site": "same-origin"}


def sign_in(service: Service, name: str = "approver", password: str = PASSWORD, **headers: str) -> httpx.Response:
    with service.client(None) as client:
        return client.post("/v1/session", json={"name": name, "password": password}, headers=headers)


def token_of(answer: httpx.Response) -> str:
    assert answer.status_code == 201, answer.text
    found = re.match(rf"{COOKIE}=([^;]+);", answer.headers["set-cookie"])
    assert found
    return found[1]


def browser(service: Service, token: str, **headers: str) -> httpx.Client:
    """A client that sends the cookie; httpx keeps Secure cookies from plain HTTP, where browsers trust localhost."""
    return httpx.Client(base_url=service.url, headers={"Cookie": f"{COOKIE}={token}", **headers}, timeout=120)


def age(service: Service, token: str, seconds: int) -> None:
    """Let time pass for a session."""
    with psycopg.connect(as_superuser(service.environment["OVERREAD_DATABASE_URL"])) as connection:
        connection.execute(
            "UPDATE sessions SET started_at = started_at - make_interval(secs => %s)"
            " WHERE token_sha256 = sha256(%s::text::bytea)",
            (seconds, token),
        )


def gated(service: Service, line: str, **fields: Any) -> str:
    """The path of the signatures of a candidate that passed its gates."""
    with service.connect() as connection:
        made = factories.gated_candidate(connection, lines.get_line(connection, line), **fields)
    return f"/v1/candidates/{made.candidate_id}/approvals"


def test_a_person_signs_in_is_known_and_signs_out(service: Service) -> None:
    answer = sign_in(service)
    token = token_of(answer)
    assert answer.json()["printed_name"] == "Dr Approver"
    assert answer.headers["cache-control"] == "no-store"
    with browser(service, token) as person:
        assert person.get("/v1/session").json()["roles"] == ["approver"]
        assert person.get("/v1/lines").status_code == 200
        assert slug(person.get("/v1/audit")) == (403, "forbidden")
        left = person.delete("/v1/session", headers=OURS)
        assert left.status_code == 204
        assert f'{COOKIE}=""' in left.headers["set-cookie"]
        assert slug(person.get("/v1/session")) == (401, "unauthenticated")


def test_the_cookie_is_for_this_host_and_for_no_script(service: Service) -> None:
    parts = sign_in(service).headers["set-cookie"].split("; ")
    assert parts[0].startswith("__Host-")
    assert {"HttpOnly", "Secure", "SameSite=strict", "Path=/"} <= set(parts)
    assert not any(part.startswith("Domain") for part in parts)


def test_each_sign_in_has_a_new_token_and_ends_the_session_it_came_with(service: Service) -> None:
    planted = token_of(sign_in(service))
    token = token_of(sign_in(service, Cookie=f"{COOKIE}={planted}"))
    assert token != planted
    with browser(service, planted) as thief, browser(service, token) as person:
        assert (thief.get("/v1/session").status_code, person.get("/v1/session").status_code) == (401, 200)


def test_a_wrong_password_and_an_unknown_name_get_the_same_answer_and_are_written_down(service: Service) -> None:
    wrong, unknown = sign_in(service, password="not the password"), sign_in(service, name="nobody-at-all")
    assert slug(wrong) == slug(unknown) == (401, "sign-in-failed")
    assert wrong.json() == unknown.json()
    assert "set-cookie" not in wrong.headers
    events = service.trail()
    refused = [event for event in events if event["action"] == "session:refuse"]
    assert {event["subject"] for event in refused} >= {"user/unknown"}
    assert all(event["details"] == {"address": "127.0.0.1"} for event in refused)
    assert "nobody-at-all" not in str(events)


def test_a_user_without_a_password_cannot_sign_in(service: Service) -> None:
    assert slug(sign_in(service, name="auditor", password="")) == (422, "invalid-request")
    assert slug(sign_in(service, name="auditor", password="any at all, whatever")) == (401, "sign-in-failed")


def test_a_session_ends_hours_after_the_password_was_given(service: Service) -> None:
    token = token_of(sign_in(service))
    age(service, token, 8 * 3600 + 5)
    with browser(service, token) as person:
        assert slug(person.get("/v1/session")) == (401, "unauthenticated")


def test_a_refusal_never_repeats_the_password(service: Service) -> None:
    secret = "hunter2 " * 40
    with service.client(None) as client:
        for body in ({"name": "approver", "password": secret}, {"name": ["x"], "password": secret, "more": 1}):
            answer = client.post("/v1/session", json=body)
            assert slug(answer) == (422, "invalid-request")
            assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),  # a program
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),  # typed into the address bar
        ({"Sec-Fetch-Site": "same-site"}, False),  # another host of the hospital
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "surprise"}, False),
        ({"Origin": "{url}"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, False),
    ],
    ids=str,
)
def test_with_a_cookie_nothing_changes_for_a_page_of_another_site(
    service: Service, headers: dict[str, str], passes: bool
) -> None:
    sent = {name: value.format(url=service.url) for name, value in headers.items()}
    with browser(service, token_of(sign_in(service)), **sent) as person:
        assert person.get("/v1/session").status_code == 200, "reading is harmless: the page cannot see the answer"
        answer = person.post("/v1/candidates/999999/promotion", json={"expected_champion": None, "reason": "x"})
        assert slug(answer) == ((404, "not-found") if passes else (403, "cross-site-request"))
        signed_out = person.delete("/v1/session")
        assert signed_out.status_code == (204 if passes else 403)
    assert sign_in(service, **sent).status_code == (201 if passes else 403), "nor does it sign anyone in"


def test_an_api_key_is_not_led_by_other_peoples_pages(service: Service) -> None:
    with service.client("approver") as program:
        wish = {"expected_champion": None, "reason": "x"}
        foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example", "Cookie": f"{COOKIE}=planted"}
        assert slug(program.post("/v1/candidates/999999/promotion", json=wish, headers=foreign)) == (404, "not-found")


def test_a_key_alone_does_not_sign(service: Service, line: str) -> None:
    path = gated(service, line)
    with service.client("approver") as approver, service.client("auditor") as auditor:
        assert slug(approver.post(path, json=SIGN)) == (403, "sign-in-again")
        assert slug(approver.post(path, json=SIGN | {"password": "not the password"})) == (403, "sign-in-again")
        assert auditor.get(path).json() == []
        assert approver.post(path, json=SIGN | {"password": PASSWORD}).status_code == 201
        assert [one["printed_name"] for one in auditor.get(path).json()] == ["Dr Approver"]


def test_blanks_at_the_ends_of_a_password_are_part_of_it(service: Service, line: str) -> None:
    name, password = f"blank-{uuid4().hex[:8]}", "  four words do well "
    with service.connect() as connection:
        user = users.create_user(connection, name=name, printed_name="Blank", roles=("approver",))
        passwords.set_password(connection, user=user, password=password)
        service.keys[name] = users.create_api_key(connection, user_id=user.user_id)
    assert sign_in(service, name, password).status_code == 201
    assert sign_in(service, name, password.strip()).status_code == 401
    with service.client(name) as client:
        assert client.post(gated(service, line), json=SIGN | {"password": password}).status_code == 201


def test_a_password_of_somebody_else_does_not_sign(service: Service, line: str) -> None:
    name = f"other-{uuid4().hex[:8]}"
    with service.connect() as connection:
        other = users.create_user(connection, name=name, printed_name="Other", roles=("approver",))
        passwords.set_password(connection, user=other, password="quite another password")
        service.keys[name] = users.create_api_key(connection, user_id=other.user_id)
    path = gated(service, line)
    with service.client(name) as client:
        assert slug(client.post(path, json=SIGN | {"password": PASSWORD})) == (403, "sign-in-again")
        assert client.get(path).json() == []


def test_an_approver_without_a_password_is_told_how_to_get_one(service: Service, line: str) -> None:
    name = f"new-{uuid4().hex[:8]}"
    with service.connect() as connection:
        user = users.create_user(connection, name=name, printed_name="New", roles=("approver",))
        service.keys[name] = users.create_api_key(connection, user_id=user.user_id)
    path = gated(service, line)
    with service.client(name) as client:
        for body in (SIGN, SIGN | {"password": PASSWORD}):
            answer = client.post(path, json=body)
            assert slug(answer) == (403, "no-password")
            assert f"overread user password {name}" in answer.json()["detail"]


def test_whoever_just_signed_in_signs_and_a_minute_later_gives_the_password_again(service: Service, line: str) -> None:
    path, token = gated(service, line), token_of(sign_in(service))
    with browser(service, token, **OURS) as person:
        assert person.post(path, json=SIGN).status_code == 201
    second, token = gated(service, service.new_line()), token_of(sign_in(service))
    age(service, token, 61)
    with browser(service, token, **OURS) as person:
        assert slug(person.post(second, json=SIGN)) == (403, "sign-in-again")
        assert person.post(second, json=SIGN | {"password": PASSWORD}).status_code == 201


def test_no_set_of_roles_signs_twice_or_for_its_own_run(service: Service, line: str) -> None:
    name = f"everything-{uuid4().hex[:8]}"
    with service.connect() as connection:
        user = users.create_user(connection, name=name, printed_name="Everything", roles=users.ROLES)
        passwords.set_password(connection, user=user, password=PASSWORD)
        service.keys[name] = users.create_api_key(connection, user_id=user.user_id)
    path, own = gated(service, line), gated(service, service.new_line(), requested_by=user)
    body = SIGN | {"password": PASSWORD}
    with service.client(name) as client:
        assert slug(client.post(own, json=body)) == (409, "not-distinct-approver")
        assert client.post(path, json=body).status_code == 201
        assert slug(client.post(path, json=body)) == (409, "already-signed")
        promoted = client.post(path.replace("approvals", "promotion"), json={"expected_champion": None, "reason": "x"})
        assert slug(promoted) == (409, "approval-missing")


def test_the_command_line_signs_with_a_password_from_standard_input(service: Service, line: str) -> None:
    path = gated(service, line)
    settings = {"OVERREAD_API_URL": service.url, "OVERREAD_API_KEY": service.keys["approver"]}

    def approve(text: str) -> subprocess.CompletedProcess[str]:
        arguments = ["candidate", "approve", path.split("/")[3], "--reason", "I read the report", "--password-stdin"]
        return subprocess.run(
            [sys.executable, "-m", "api.cli", *arguments],
            cwd=ROOT, env=os.environ | settings, input=text, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    wrong, right = approve("not the password\n"), approve(f"{PASSWORD}\n")
    assert (wrong.returncode, "not the signer's password" in wrong.stderr) == (1, True)
    assert (right.returncode, "Dr Approver" in right.stdout) == (0, True)
