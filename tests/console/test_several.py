"""A case that may show several findings is answered by ticking those that are there."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from pipelines import images
from registry import confirmations
from tests.api.service import Service
from tests.api.test_predictions import crown
from tests.console.conftest import Enter
from tests.waiting import until


@pytest.fixture
def line(service: Service) -> str:
    return service.new_line(task="multilabel", classes=["effusion", "pneumonia", "nodule"])


@pytest.fixture
def case(line: str, staff: None, submitter: httpx.Client) -> int:
    sent = images.png_bytes(np.full((32, 32), 90, dtype=np.uint8))
    answer = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": ("file", sent)})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["case_id"])


def test_findings_are_ticked_confirmed_corrected_and_settled(
    service: Service, case: int, submitter: httpx.Client, enter: Enter
) -> None:
    page = enter("clara", f"/console/cases/{case}")
    last = page.locator(".findings label").last.bounding_box()
    confirming = page.get_by_role("button", name="Confirm what is ticked").bounding_box()
    assert last is not None
    assert confirming is not None
    assert confirming["y"] >= last["y"] + last["height"]  # a row of its own, below the boxes
    page.keyboard.press("c")
    expect(page.get_by_text("tick what you see, or choose none_of_these")).to_be_visible()
    page.keyboard.press("3")
    page.keyboard.press("z")
    page.keyboard.press("c")
    expect(page.get_by_text("says none_of_these and a finding")).to_be_visible()
    expect(page.get_by_label("nodule")).to_be_checked()
    page.keyboard.press("z")
    page.keyboard.press("1")
    page.keyboard.press("c")
    expect(page.get_by_text("You answered effusion+nodule")).to_be_visible()

    said = {"evidence": "single_read", "ai_exposure": "blind", "reader": "reader-2"}
    answer = submitter.post(
        f"/v1/cases/{case}/confirmations",
        json={"finding": "nodule + pneumonia", **said},
        headers={"Idempotency-Key": "nodule-and-pneumonia"},
    )
    assert answer.json()["finding"] == "pneumonia+nodule", answer.text
    refused = submitter.post(
        f"/v1/cases/{case}/confirmations",
        json={"finding": "nodule+nodule", **said},
        headers={"Idempotency-Key": "nodule-twice"},
    )
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/unknown-finding")
    assert "names nodule twice; it knows effusion, pneumonia, nodule" in refused.json()["detail"]

    page = enter("rita", f"/console/cases/{case}/settle")
    page.get_by_label("nodule").check()
    page.get_by_label("Why").fill("Only the nodule is there")
    page.get_by_role("button", name="Decide as").click()
    page.wait_for_url("**/discordances")
    with service.connect() as connection:
        rows = [(row.kind, row.finding) for row in confirmations.list_for_case(connection, case)]
    assert rows == [
        ("confirmation", "effusion+nodule"),
        ("confirmation", "pneumonia+nodule"),
        ("adjudication", "nodule"),
    ]


def test_what_the_model_says_of_each_finding_is_shown_and_accepted_where_nothing_else_is_ticked(
    service: Service, line: str, case: int, enter: Enter
) -> None:
    crown(service, line)
    with service.client("operator") as client:
        path = f"/v1/cases/{case}/predictions"
        until(lambda: client.post(path, params={"shown": False}).status_code == 200, what="the champion")
    page = enter("clara", f"/console/cases/{case}")
    page.keyboard.press("p")
    expect(page.get_by_text("At the operating point of each finding it says")).to_be_visible()
    expect(page.locator("tr.decided")).to_have_count(3)  # a threshold of 0 calls everything
    page.get_by_role("link", name="pneumonia").click()
    expect(page.get_by_alt_text("Heat map: where the network looked for pneumonia")).to_be_visible()
    page.keyboard.press("2")
    page.keyboard.press("a")
    expect(page.get_by_text("you ticked pneumonia, the model says effusion+pneumonia+nodule")).to_be_visible()
    page.keyboard.press("2")
    page.keyboard.press("a")
    expect(page.get_by_text("You answered effusion+pneumonia+nodule")).to_be_visible()
    expect(page.get_by_text("as you do")).to_be_visible()
