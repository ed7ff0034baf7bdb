"""A clinician reads: answers by keyboard, sees the model only on request, takes back, corrects."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from registry import confirmations, reads, rejections
from tests.api.service import Service
from tests.console.conftest import Enter
from tests.console.scene import Scene, make_scene, wait_for_champion


def test_twenty_cases_are_confirmed_without_a_mouse(service: Service, scene: Scene, enter: Enter) -> None:
    page = enter("clara", f"/console/lines/{scene.line}/worklist")
    page.keyboard.press("Enter")  # start reading
    for place in range(20):
        expect(page.get_by_role("group", name="What do you see?")).to_be_visible()
        page.keyboard.press("2" if place % 4 == 0 else "1")
        expect(page.get_by_text("You answered")).to_be_visible()
        page.keyboard.press("n" if place % 2 else "Enter")
        page.wait_for_url(f"**place={place + 2}**")
    with service.connect() as connection:
        said = [confirmations.list_for_case(connection, case_id) for case_id in scene.worklist[:20]]
    assert [len(rows) for rows in said] == [1] * 20
    assert [rows[0].finding for rows in said] == ["pneumonia" if place % 4 == 0 else "normal" for place in range(20)]
    assert {(rows[0].ai_exposure, rows[0].reader, rows[0].submitter) for rows in said} == {("blind", "clara", "clara")}


def test_the_model_is_shown_on_request_and_an_answer_after_that_is_aided(
    service: Service, scene: Scene, enter: Enter, pictures: Path
) -> None:
    wait_for_champion(service, scene)
    case_id = scene.worklist[1]
    page = enter("clara", f"/console/cases/{case_id}")
    expect(page.locator("canvas[data-drawn]")).to_be_visible()
    expect(page.get_by_text("At its operating point")).to_have_count(0)
    page.keyboard.press("p")
    expect(page.get_by_text("At its operating point it says")).to_be_visible()
    page.keyboard.press("h")
    heat = page.get_by_alt_text("Heat map")
    expect(heat).to_be_visible()
    assert heat.evaluate("image => image.complete && image.naturalWidth > 0")
    expect(page.locator("canvas[data-heat]")).to_be_visible()
    page.screenshot(path=pictures / "case-aided.png")
    page.keyboard.press("a")
    expect(page.get_by_text("after seeing the model")).to_have_count(2)
    page.screenshot(path=pictures / "case-answered.png")
    with service.connect() as connection:
        (row,) = confirmations.list_for_case(connection, case_id)
    assert row.ai_exposure == "aided"


def test_an_answer_is_taken_back_and_corrected_with_a_note(service: Service, scene: Scene, enter: Enter) -> None:
    case_id = scene.worklist[2]
    page = enter("clara", f"/console/cases/{case_id}")
    page.keyboard.press("1")
    expect(page.get_by_text("You answered normal")).to_be_visible()
    page.keyboard.press("u")
    expect(page.get_by_role("group", name="What do you see?")).to_be_visible()
    page.get_by_label("Evidence").select_option("consensus")
    page.get_by_label("Note").fill("shadow behind the heart")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    expect(page.get_by_text("You answered pneumonia")).to_be_visible()
    page.get_by_text("Correct my answer").click()
    page.get_by_role("button", name="normal").click()
    expect(page.get_by_text("You answered normal")).to_be_visible()
    with service.connect() as connection:
        rows = confirmations.list_for_case(connection, case_id)
    assert [(row.kind, row.finding, row.evidence, row.reason) for row in rows] == [
        ("confirmation", "normal", "single_read", None),
        ("retraction", None, "single_read", "taken back by the reader"),
        ("confirmation", "pneumonia", "consensus", "shadow behind the heart"),
        ("confirmation", "normal", "consensus", None),
    ]
    assert rows[3].supersedes == rows[2].confirmation_id


def look(page: Page) -> list[int]:
    """The middle pixel that the viewer shows, and its neighbour's row."""
    script = "c => [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data]"
    return list(page.locator("canvas").evaluate(script))


def test_the_viewer_inverts_zooms_and_windows_all_sixteen_bits(scene: Scene, enter: Enter) -> None:
    page = enter("clara", f"/console/cases/{scene.worklist[0]}")  # 12 bits in 16
    expect(page.locator("canvas[data-drawn]")).to_be_visible()
    expect(page.locator(".says")).to_contain_text("96 × 96, window")
    before = look(page)
    page.keyboard.press("i")
    assert look(page)[:3] == [255 - value for value in before[:3]]
    page.keyboard.press("i")
    page.keyboard.press("}")
    page.keyboard.press("}")
    assert look(page)[0] < before[0]
    page.keyboard.press("0")
    assert look(page) == before
    page.keyboard.press("+")
    assert float(page.locator("canvas").evaluate("c => c.getContext('2d').getTransform().a")) > 1


def test_a_blind_case_shows_nothing_of_the_model_before_it_is_answered(
    service: Service, staff: None, enter: Enter
) -> None:
    scene = make_scene(service, to_read=2, blind_fraction=1.0)
    case_id = scene.worklist[0]
    page = enter("clara", f"/console/cases/{case_id}")
    expect(page.get_by_text("Blind audit: the model's answer is kept back")).to_be_visible()
    page.keyboard.press("p")  # does nothing
    expect(page.get_by_role("button", name="Show what it says")).to_have_count(0)
    with service.client("clara") as client:
        asked = client.post(f"/console/cases/{case_id}/model")
        assert (asked.status_code, "blind audit" in asked.text) == (409, True)
        assert client.get(f"/console/cases/{case_id}/heat-map.png?finding=normal").status_code == 422
    page.keyboard.press("1")
    expect(page.get_by_text("You answered normal, without the model")).to_be_visible()
    page.keyboard.press("p")
    expect(page.get_by_text("At its operating point it says")).to_be_visible()


def test_a_reader_answers_before_they_see_what_others_said(scene: Scene, enter: Enter) -> None:
    page = enter("rita", f"/console/cases/{scene.discordant}")
    expect(page.get_by_text("2 earlier entries are shown once you have answered.")).to_be_visible()
    expect(page.get_by_text("carl")).to_have_count(0)
    page.keyboard.press("2")
    expect(page.get_by_role("region", name="Answers about this case")).to_contain_text("carl")


def test_an_answer_sent_twice_is_one_and_a_form_without_its_key_is_refused(service: Service, scene: Scene) -> None:
    path = f"/console/cases/{scene.worklist[3]}/answer"
    form = {"finding": "normal", "evidence": "single_read", "note": "as typed", "key": "the key of a form"}
    with service.client("clara") as client:
        assert [client.post(path, data=form).status_code for _ in range(2)] == [303, 303]
        wrong = client.post(path, data={**form, "finding": "a cold", "key": "another"})
        assert (wrong.status_code, "as typed" in wrong.text, "not a finding of this line" in wrong.text) == (
            422,
            True,
            True,
        )
        assert client.post(path, data={**form, "key": ""}).status_code == 422
    with service.connect() as connection:
        assert len(confirmations.list_for_case(connection, scene.worklist[3])) == 1


def test_without_scripts_a_case_is_answered_all_the_same(service: Service, scene: Scene, enter: Enter) -> None:
    page = enter("clara", f"/console/cases/{scene.worklist[4]}", java_script_enabled=False)
    expect(page.get_by_alt_text(f"The image of case {scene.worklist[4]}")).to_be_visible()
    page.get_by_role("button", name="pneumonia").click()
    expect(page.get_by_text("You answered pneumonia")).to_be_visible()
    page.get_by_role("link", name="Next case").click()
    expect(page.get_by_role("group", name="What do you see?")).to_be_visible()


def test_every_look_at_a_case_and_its_image_is_written_down(service: Service, scene: Scene, enter: Enter) -> None:
    page = enter("anna", f"/console/cases/{scene.worklist[5]}")
    expect(page.locator("canvas[data-drawn]")).to_be_visible()
    with service.connect() as connection:
        seen = [(row.reader, row.action) for row in reads.list_reads(connection, case_id=scene.worklist[5])]
    assert seen == [("anna", "case:read"), ("anna", "image:read")]


def test_a_reader_rejects_what_the_model_says_and_the_case_waits_on(
    service: Service, scene: Scene, enter: Enter
) -> None:
    wait_for_champion(service, scene)
    case_id = scene.worklist[6]
    page = enter("clara", f"/console/cases/{case_id}?place=7")
    expect(page.get_by_role("button", name="Reject")).to_have_count(0)  # nothing is shown yet
    page.keyboard.press("p")
    expect(page.get_by_role("button", name="Accept")).to_be_visible()
    page.get_by_label("Note").fill("a fold of skin")
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    expect(page.get_by_text("You rejected")).to_be_visible()
    expect(page.get_by_role("button", name="Reject")).to_have_count(0)
    with service.connect() as connection:
        (kept,) = rejections.of_case(connection, case_id)
        assert (kept.reason, kept.printed_name) == ("a fold of skin", "Dr Clara Clinician, radiology")
        assert confirmations.list_for_case(connection, case_id) == []
    page.keyboard.press("n")
    page.wait_for_url("**place=8**")
    page.goto(f"/console/cases/{case_id}")
    page.keyboard.press("1")  # another finding is an answer all the same
    expect(page.get_by_text("You answered normal, after seeing the model")).to_be_visible()
    expect(page.get_by_text("rejected", exact=False).last).to_contain_text("a fold of skin")
