"""In with a password or with a link that works once; out, and then nothing is to be seen any more."""

from __future__ import annotations

import httpx
from playwright.sync_api import expect

from registry import sign_in_links, users
from tests.api.service import PASSWORD, Service
from tests.console.conftest import Enter
from tests.console.scene import Scene


def test_a_person_signs_in_where_they_wanted_to_go_and_signing_out_ends_it(scene: Scene, enter: Enter) -> None:
    page = enter(None, f"/console/lines/{scene.line}/worklist?site=north")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("Name").fill("clara")
    page.get_by_label("Password").fill("not the password")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Not signed in")
    expect(page.get_by_label("Name")).to_have_value("clara")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/console/lines/{scene.line}/worklist?site=north")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.go_back()
    expect(page.get_by_text(f"{scene.line}-")).to_have_count(0)
    page.goto(f"/console/cases/{scene.worklist[0]}")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_link_works_once_and_proves_no_password(service: Service, scene: Scene, enter: Enter) -> None:
    with service.connect() as connection:
        token = sign_in_links.make(connection, user=users.by_name(connection, "anna"), seconds=60)
        connection.commit()
    page = enter(None, f"/console/link/{token}")
    page.reload()  # looking does not use it up
    page.get_by_role("button", name="Sign in as Dr Anna Approver").click()
    expect(page.get_by_role("heading", name="Good to see you, Dr Anna Approver")).to_be_visible()
    cookie = next(one for one in page.context.cookies() if one["name"].startswith("__Host-"))
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    again = httpx.get(f"{service.url}/console/link/{token}", timeout=120)
    assert (again.status_code, "was used, or ran out" in again.text) == (404, True)
    signed = httpx.post(
        f"{service.url}/v1/candidates/{scene.candidate.candidate_id}/approvals",
        json={"decision": "approve", "reason": "within a minute of the link"},
        headers={"Cookie": f"{cookie['name']}={cookie['value']}"},
        timeout=120,
    )
    assert (signed.status_code, signed.json()["type"]) == (403, "/problems/sign-in-again")


def test_a_link_that_ran_out_or_of_somebody_shut_out_opens_nothing(service: Service, staff: None) -> None:
    with service.connect() as connection:
        late = sign_in_links.make(connection, user=users.by_name(connection, "clara"), seconds=-1)
        gone = users.create_user(connection, name="gone", printed_name="Gone", roles=("reviewer",))
        shut = sign_in_links.make(connection, user=gone, seconds=60)
        users.disable_user(connection, user_id=gone.user_id)
        connection.commit()
    for token in (late, shut, "guess"):
        for method in ("GET", "POST"):
            assert httpx.request(method, f"{service.url}/console/link/{token}", timeout=120).status_code == 404


def test_signing_in_leads_nowhere_outside(service: Service, staff: None) -> None:
    for back in ("https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere.example", "/docs", "javascript:1"):
        answer = httpx.post(
            f"{service.url}/console/sign-in",
            data={"name": "clara", "password": PASSWORD, "back": back},
            timeout=120,
        )
        assert (answer.status_code, answer.headers["location"]) == (303, "/console")
