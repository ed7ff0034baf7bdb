"""Reviewing, signing with two people, promoting, rolling back; and buttons that say why they are blocked."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from playwright.sync_api import Page, expect

from registry import approvals, comments, lines, promotions, reads, users
from tests.api.service import PASSWORD, Service
from tests.console.conftest import Enter
from tests.console.scene import Scene


def sign(page: Page, *, password: str = PASSWORD, reason: str = "I read the report and the checks") -> None:
    page.get_by_label("approve that this candidate becomes the champion").check()
    page.get_by_role("region", name="Sign").get_by_label("Why").fill(reason)
    page.get_by_label("Your password, once more").fill(password)
    page.get_by_role("button", name="Sign as").click()


def test_two_people_sign_one_promotes_and_it_is_rolled_back(service: Service, scene: Scene, enter: Enter) -> None:
    here = f"/console/candidates/{scene.candidate.candidate_id}"
    first = enter("anna")
    first.get_by_role("region", name="Pneumonia").filter(has_text=scene.line).get_by_role(
        "link", name=f"Model {scene.candidate.number} passed its gates"
    ).click()
    expect(first.get_by_role("region", name="Checks").first).to_contain_text("0.968 (0.948 to 0.988), n = 315")
    sign(first)
    expect(first.get_by_text("1 of 2 signatures")).to_be_visible()
    expect(first.get_by_text("Blocked: Dr Anna Approver, clinical safety has signed already")).to_be_visible()
    expect(first.get_by_text("Blocked: 1 of 2 approvals; 1 more people have to sign.")).to_be_visible()

    second = enter("ben", here)
    sign(second)
    expect(second.get_by_role("region", name="Signatures")).to_contain_text("Dr Anna Approver, clinical safety")
    second.get_by_role("region", name="Sign").get_by_label("Why").fill("better, and equal at every site")
    second.get_by_role("button", name=f"Make model {scene.candidate.number} champion").click()
    expect(second.get_by_role("status")).to_contain_text("champion")
    with service.connect() as connection:
        line_id = lines.get_line(connection, scene.line).line_id
        champion = promotions.champion(connection, line_id)
        assert champion is not None
        assert champion.candidate_id == scene.candidate.candidate_id
        assert {one.printed_name for one in approvals.standing(connection, champion.candidate_id)} == {
            "Dr Anna Approver, clinical safety", "Dr Ben Approver, radiology",
        }  # fmt: skip

    first.goto(f"/console/lines/{scene.line}/champions")
    expect(first.get_by_role("region", name="Champions")).to_contain_text("Dr Ben Approver, radiology")
    first.get_by_label("Why").fill("false alarms at the south site")
    first.get_by_role("button", name=f"Roll back to model {scene.champion.number}").click()
    expect(first.get_by_role("region", name="Champions")).to_contain_text("rolled back by Dr Anna Approver")
    with service.connect() as connection:
        back = promotions.champion(connection, line_id)
        assert back is not None
        assert back.candidate_id == scene.champion.candidate_id


def test_a_wrong_password_signs_nothing_and_keeps_the_reason(service: Service, scene: Scene, enter: Enter) -> None:
    page = enter("anna", f"/console/candidates/{scene.candidate.candidate_id}")
    sign(page, password="not the password", reason="all checks passed")
    expect(page.get_by_role("alert")).to_contain_text("nothing was signed")
    expect(page.get_by_role("region", name="Sign").get_by_label("Why")).to_have_value("all checks passed")
    expect(page.get_by_label("Your password, once more")).to_have_value("")
    with service.connect() as connection:
        assert approvals.list_for_candidate(connection, scene.candidate.candidate_id) == []


def test_a_candidate_that_failed_cannot_be_signed_and_the_button_says_why(scene: Scene, enter: Enter) -> None:
    page = enter("anna", f"/console/candidates/{scene.failed.candidate_id}")
    button = page.get_by_role("button", name="Sign", exact=True)
    expect(button).to_be_disabled()
    expect(button).to_have_accessible_description(
        f"Blocked: candidate {scene.failed.number} has not passed its gates; there is nothing to sign."
    )
    expect(page.get_by_role("region", name="Checks").first).to_contain_text("pacs-east disagrees in 96 %")


def test_a_reviewer_sees_the_evidence_and_no_way_to_sign(scene: Scene, enter: Enter) -> None:
    page = enter("rita", f"/console/candidates/{scene.candidate.candidate_id}")
    expect(page.get_by_role("heading", name="Checks")).to_be_visible()
    expect(page.get_by_label("Your password, once more")).to_have_count(0)
    expect(page.get_by_role("button", name="champion")).to_have_count(0)
    charts = page.get_by_role("region", name="What was measured")
    expect(charts.get_by_role("img").first).to_be_visible()
    charts.get_by_text("The same as a table").first.click()
    expect(charts.get_by_role("table").first).to_be_visible()
    expect(page.get_by_role("region", name="Cases that changed sides")).to_be_visible()
    page.get_by_role("link", name="with today's champion").click()
    expect(page.get_by_role("region", name="Comparison")).to_contain_text("0.968")


def test_two_models_are_compared_by_their_plots_on_the_same_axes(service: Service, scene: Scene) -> None:
    at = f"/console/lines/{scene.line}/compare?left={scene.candidate.candidate_id}&right={scene.failed.candidate_id}"
    with service.client("anna") as client:
        shown = client.get(at).text
    pictures = re.findall(r"<svg.*?</svg>", shown, flags=re.DOTALL)
    drawn = [ElementTree.fromstring(svg) for svg in pictures]  # noqa: S314 - made here
    left_roc, left_scores, right_roc, right_scores = drawn
    for left, right in ((left_roc, right_roc), (left_scores, right_scores)):
        axes = [[mark.attrib for mark in svg.iter("line") if mark.get("class") == "grid"] for svg in (left, right)]
        assert axes[0] == axes[1] != []
    assert f"model {scene.candidate.number}: AUROC" in shown
    assert f"model {scene.failed.number}: AUROC" in shown
    ids = re.findall(r'\bid="([^"]+)"', shown)
    assert len(ids) == len(set(ids))
    with service.client("clara") as client:
        assert "<svg" not in client.get(at).text


def test_whoever_may_not_review_learns_whether_it_passed_until_somebody_has_decided(
    service: Service, scene: Scene, enter: Enter
) -> None:
    here = f"/console/candidates/{scene.candidate.candidate_id}"
    page = enter("clara", here)
    expect(page.get_by_role("status")).to_contain_text("Gates ✓ passed")
    expect(page.get_by_role("region", name="Checks").first).to_contain_text("not open to you yet")
    expect(page.get_by_role("region", name="What was measured")).to_have_count(0)
    assert "0.968" not in page.content()
    page.goto(
        f"/console/lines/{scene.line}/compare?left={scene.champion.candidate_id}&right={scene.candidate.candidate_id}"
    )
    expect(page.get_by_role("region", name="Comparison")).to_contain_text("not open to you yet")
    assert "0.968" not in page.content()
    page.goto(f"/console/candidates/{scene.failed.candidate_id}")
    expect(page.get_by_role("status")).to_contain_text("not passed")
    with service.connect() as connection:
        ben = users.by_name(connection, "ben")
        approvals.sign(
            connection, candidate_id=scene.candidate.candidate_id, approver=ben, decision="reject", reason="too few"
        )
        connection.commit()
    page.goto(here)
    expect(page.get_by_role("region", name="Checks").first).to_contain_text("0.968")


def test_people_talk_about_a_candidate_and_ask_who_may_sign(service: Service, scene: Scene, enter: Enter) -> None:
    here = f"/console/candidates/{scene.candidate.candidate_id}"
    page = enter("rita", here)
    page.get_by_label("What do you think?").fill("Eleven of the lost cases come from <one> scanner.")
    page.get_by_role("button", name="Say it as Rita Reviewer").click()
    talk = page.get_by_role("region", name="Conversation")
    expect(talk).to_contain_text("Eleven of the lost cases come from <one> scanner.")
    signers = page.get_by_role("region", name="Who may still sign")
    expect(signers).to_contain_text("Dr Ben Approver, radiology")
    signers.get_by_role("button", name="Ask Dr Anna Approver, clinical safety to sign").click()
    expect(talk).to_contain_text("asks Dr Anna Approver, clinical safety to sign")
    expect(signers).to_contain_text("asked by Rita Reviewer")

    asked = enter("anna")
    asked.get_by_role("link", name=f"Model {scene.candidate.number}: you were asked to sign").click()
    sign(asked)
    left = asked.get_by_role("region", name="Who may still sign")
    expect(left).to_contain_text("Dr Ben Approver, radiology")
    expect(left).not_to_contain_text("Dr Anna Approver")
    with service.connect() as connection:
        said = comments.list_for_candidate(connection, scene.candidate.candidate_id)
    assert [(one.printed_name, one.asks) for one in said] == [
        ("Rita Reviewer, ML engineer", None),
        ("Rita Reviewer, ML engineer", "anna"),
    ]


def test_a_comment_that_is_refused_stays_typed_and_one_sent_twice_is_one(service: Service, scene: Scene) -> None:
    here = f"/console/candidates/{scene.candidate.candidate_id}/comment"
    with service.client("rita") as client:
        again = client.post(here, data={"key": "a", "text": "as typed", "asks": "otto"})
        assert (again.status_code, "as typed" in again.text, "cannot be asked to sign" in again.text) == (
            422,
            True,
            True,
        )
        sent = [client.post(here, data={"key": "b", "text": "once"}).status_code for _ in range(2)]
        assert sent == [303, 303]
    with service.connect() as connection:
        assert len(comments.list_for_candidate(connection, scene.candidate.candidate_id)) == 1


def test_the_conversation_is_closed_to_whom_the_report_is(service: Service, scene: Scene, enter: Enter) -> None:
    with service.client("rita") as client:
        here = f"/console/candidates/{scene.candidate.candidate_id}/comment"
        assert client.post(here, data={"key": "c", "text": "its AUROC is 0.968"}).status_code == 303
    page = enter("clara", f"/console/candidates/{scene.candidate.candidate_id}")
    expect(page.get_by_role("region", name="Conversation")).to_have_count(0)
    assert "0.968" not in page.content()


def test_cases_that_changed_sides_are_looked_at_with_their_images(service: Service, scene: Scene, enter: Enter) -> None:
    page = enter("rita", f"/console/candidates/{scene.candidate.candidate_id}")
    flips = page.get_by_role("region", name="Cases that changed sides")
    first = flips.get_by_role("listitem").first
    picture = first.get_by_role("img")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("image => image.complete", arg=picture.element_handle())
    assert picture.evaluate("image => image.naturalWidth") == 96
    expect(first).not_to_contain_text("you looked at it")
    first.get_by_role("link", name=f"case {scene.worklist[0]}", exact=True).click()
    page.go_back()
    page.reload()
    expect(first).to_contain_text("you looked at it")
    with service.connect() as connection:
        seen = reads.list_reads(connection, case_id=scene.worklist[0])
    assert ("rita", "image:read", {"candidate": scene.candidate.candidate_id}) in [
        (row.reader, row.action, row.details) for row in seen
    ]


def test_a_picture_of_a_changed_case_is_shown_only_to_whom_the_report_is(service: Service, scene: Scene) -> None:
    at = f"/console/candidates/{scene.candidate.candidate_id}/flips"
    case_id = scene.worklist[0]
    answers = {}
    for name in ("rita", "anna", "clara", "otto"):
        with service.client(name) as client:
            answers[name] = client.get(f"{at}/{case_id}.png").status_code
    assert answers == {"rita": 200, "anna": 200, "clara": 403, "otto": 403}
    with service.client("rita") as client:
        assert client.get(f"{at}/{scene.discordant}.png").status_code == 404
    with service.connect() as connection:
        who = {row.reader for row in reads.list_reads(connection, case_id=case_id)}
    assert who == {"rita", "anna"}
