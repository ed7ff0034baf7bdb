"""Every page asks who is there and takes nothing from other sites: generated from the table of routes."""

from __future__ import annotations

import re

import httpx
import pytest

from api.auth import COOKIE
from api.console.pages import ROUTERS
from api.console.route import PageRoute, pages_router
from tests.api.service import PASSWORD, ROLES, Service
from tests.console.table import Entry, entries

ALL = entries()
GUARDED = [entry for entry in ALL if entry.roles]
CHANGING = [entry for entry in ALL if entry.method == "POST"]
OPEN = {
    ("GET", "/console/sign-in"), ("POST", "/console/sign-in"), ("GET", "/console/link/{token}"),
    ("POST", "/console/link/{token}"), ("GET", "/console/static/{name}"),
}  # fmt: skip


def session(service: Service, name: str) -> str:
    """The cookie of somebody who signed in."""
    answer = httpx.post(f"{service.url}/console/sign-in", data={"name": name, "password": PASSWORD}, timeout=120)
    found = re.match(rf"{COOKIE}=([^;]+);", answer.headers["set-cookie"])
    assert found
    return f"{COOKIE}={found[1]}"


def test_only_signing_in_and_the_files_of_a_page_are_open() -> None:
    assert {(entry.method, entry.path) for entry in ALL if not entry.roles} == OPEN
    assert len(GUARDED) > 25


def test_every_route_of_the_console_is_a_page_that_says_who_may_see_it() -> None:
    assert all(isinstance(route, PageRoute) for router in ROUTERS for route in router.routes)
    with pytest.raises(TypeError, match="does not say who may see it"):
        pages_router().get("/anything")(lambda: None)


def test_looking_is_a_get_and_changing_a_post() -> None:
    assert {entry.method for entry in ALL} == {"GET", "POST"}


@pytest.mark.parametrize("entry", GUARDED, ids=str)
def test_a_page_leads_a_stranger_to_sign_in(service: Service, entry: Entry) -> None:
    for headers in ({}, {"Cookie": f"{COOKIE}=guess"}):
        answer = httpx.request(entry.method, service.url + entry.filled(), headers=headers, timeout=120)
        assert answer.status_code == 303, answer.text
        assert answer.headers["location"].startswith("/console/sign-in")


@pytest.mark.parametrize("entry", GUARDED, ids=str)
def test_a_page_refuses_the_wrong_role_and_admits_the_right(service: Service, entry: Entry) -> None:
    for role in (*ROLES, "nobody"):
        with service.client(role) as client:
            answer = client.request(entry.method, entry.filled())
        if role in entry.roles:
            assert answer.status_code not in {303, 401, 403, 500}, f"{role}: {answer.text}"
        else:
            assert answer.status_code == 403, f"{role}: {answer.text}"
            assert "this needs the role" in answer.text
        assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("entry", CHANGING, ids=str)
def test_nothing_is_changed_for_a_page_of_another_site(service: Service, staff: None, entry: Entry) -> None:
    cookies = [session(service, name) for name in ("rita", "anna", "otto", "clara")] if entry.roles else [""]
    before = service.fingerprints(but={"sessions"})
    for cookie in cookies:
        for headers in (
            {"Origin": "https://elsewhere.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ):
            sent = {**headers, **({"Cookie": cookie} if cookie else {})}
            answer = httpx.post(
                service.url + entry.filled(), headers=sent, data={"key": "k", "reason": "x"}, timeout=120
            )
            assert answer.status_code == 403, answer.text
            assert "this service&#39;s own pages" in answer.text
            assert "set-cookie" not in answer.headers
    assert service.fingerprints(but={"sessions"}) == before


@pytest.mark.parametrize("entry", [entry for entry in ALL if entry.method == "GET"], ids=str)
def test_every_page_runs_nothing_but_the_consoles_own_scripts(service: Service, entry: Entry) -> None:
    with service.client(entry.roles[0] if entry.roles else None) as client:
        headers = client.get(entry.filled()).headers
    rules = dict(rule.partition(" ")[::2] for rule in headers["content-security-policy"].split("; "))
    if headers["content-type"].startswith("text/html"):
        assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["form-action"] == "'self'"
        assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
