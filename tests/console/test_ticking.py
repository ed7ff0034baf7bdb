"""Ticks are what a reader said: they are neither lost on the way nor given up for the model's answer."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from pipelines import images
from registry import confirmations
from tests.api.service import Service
from tests.api.test_predictions import crown
from tests.console.conftest import Enter
from tests.waiting import until


@pytest.fixture
def line(service: Service) -> str:
    made = service.new_line(task="multilabel", classes=["effusion", "pneumonia", "nodule"])
    crown(service, made)
    return made


@pytest.fixture
def case(service: Service, line: str, staff: None, submitter: httpx.Client) -> int:
    sent = images.png_bytes(np.full((32, 32), 90, dtype=np.uint8))
    answer = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": ("file", sent)})
    assert answer.status_code == 201, answer.text
    case_id = int(answer.json()["case_id"])
    with service.client("operator") as client:
        path = f"/v1/cases/{case_id}/predictions"
        until(lambda: client.post(path, params={"shown": False}).status_code == 200, what="the champion")
    return case_id


def said(service: Service, case: int) -> list[str | None]:
    with service.connect() as connection:
        return [row.finding for row in confirmations.list_for_case(connection, case)]


def ticked(page: Page) -> list[str]:
    return [str(box.get_attribute("value")) for box in page.locator("form.answer input:checked").all()]


def test_enter_on_a_tick_confirms_what_is_ticked_and_not_what_the_model_says(
    service: Service, case: int, enter: Enter
) -> None:
    page = enter("clara", f"/console/cases/{case}")
    page.keyboard.press("p")
    expect(page.get_by_role("button", name="Accept")).to_be_visible()
    page.get_by_role("checkbox", name="nodule").check()
    page.keyboard.press("Enter")
    expect(page.get_by_text("You answered")).to_be_visible()
    assert said(service, case) == ["nodule"]


def test_ticks_stay_when_the_model_is_asked_looked_into_and_rejected(service: Service, case: int, enter: Enter) -> None:
    page = enter("clara", f"/console/cases/{case}")
    page.keyboard.press("1")
    page.keyboard.press("3")
    page.keyboard.press("p")
    expect(page.get_by_role("button", name="Accept")).to_be_visible()
    assert ticked(page) == ["effusion", "nodule"]
    page.keyboard.press("3")
    page.get_by_role("link", name="pneumonia").click()
    expect(page.get_by_alt_text("Heat map: where the network looked for pneumonia")).to_be_visible()
    assert ticked(page) == ["effusion"]
    page.keyboard.press("r")
    expect(page.get_by_text("You rejected")).to_be_visible()
    assert ticked(page) == ["effusion"]
    page.keyboard.press("c")
    expect(page.get_by_text("You answered effusion,")).to_be_visible()
    assert said(service, case) == ["effusion"]


def test_a_correction_begins_with_what_was_said_so_that_nothing_of_it_is_forgotten(
    service: Service, case: int, enter: Enter
) -> None:
    page = enter("clara", f"/console/cases/{case}")
    page.keyboard.press("1")
    page.keyboard.press("3")
    page.keyboard.press("c")
    expect(page.get_by_text("You answered effusion+nodule")).to_be_visible()
    page.get_by_text("Correct my answer").click()
    assert ticked(page) == ["effusion", "nodule"]
    page.get_by_role("checkbox", name="pneumonia").check()
    page.get_by_role("button", name="Confirm what is ticked").click()
    expect(page.get_by_text("You answered effusion+pneumonia+nodule")).to_be_visible()
    assert said(service, case) == ["effusion+nodule", "effusion+pneumonia+nodule"]


def test_nobody_is_sent_to_have_several_findings_watched_which_would_be_refused(
    service: Service, line: str, staff: None
) -> None:
    with service.client("rita") as client:
        page = client.get(f"/console/lines/{line}/monitoring").text
    assert "A champion of several findings cannot be watched yet." in page
    assert "monitoring: {}" not in page
