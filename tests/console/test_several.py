"""A case that may show several findings is answered by ticking those that are there."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from pipelines import images
from registry import confirmations
from tests.api.service import Service
from tests.console.conftest import Enter


@pytest.fixture
def case(service: Service, staff: None, submitter: httpx.Client) -> int:
    line = service.new_line(task="multilabel", classes=["effusion", "pneumonia", "nodule"])
    sent = images.png_bytes(np.full((32, 32), 90, dtype=np.uint8))
    answer = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": ("file", sent)})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["case_id"])


def test_findings_are_ticked_confirmed_corrected_and_settled(
    service: Service, case: int, submitter: httpx.Client, enter: Enter
) -> None:
    page = enter("clara", f"/console/cases/{case}")
    page.keyboard.press("c")
    expect(page.get_by_text("tick what you see, or choose none_of_these")).to_be_visible()
    page.keyboard.press("3")
    page.keyboard.press("0")
    page.keyboard.press("c")
    expect(page.get_by_text("says none_of_these and a finding")).to_be_visible()
    expect(page.get_by_label("nodule")).to_be_checked()
    page.keyboard.press("0")
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
