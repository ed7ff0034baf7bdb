"""A case that is a volume is read slice by slice."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from pipelines import images
from registry import reads
from tests.api.service import Service
from tests.console.conftest import Enter

SLICES = 12


@pytest.fixture
def volume(service: Service, staff: None, submitter: httpx.Client) -> int:
    """A case of twelve slices, each of one grey and brighter than the one before."""
    line = service.new_line(input={"depth": SLICES, "rows": 16, "columns": 16})
    greys = np.arange(1, SLICES + 1, dtype=np.uint8) * 20
    sent = images.npy_bytes(np.broadcast_to(greys[:, None, None], (SLICES, 16, 16)).copy())
    answer = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": ("file", sent)})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["case_id"])


def brightness(page: Page) -> int:
    """The grey in the middle of what is shown."""
    script = "c => c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data[0]"
    return int(page.locator("canvas").evaluate(script))


def widen(page: Page) -> None:
    """Open the window, so that every grey of eight bits is a grey on the screen."""
    for name, value in (("window", 255), ("level", 128)):
        script = "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }"
        page.locator(f"[data-set={name}]").evaluate(script, value)


def test_keys_wheel_and_slider_go_through_a_volume_and_each_look_is_written_down(
    service: Service, volume: int, enter: Enter, pictures: Path
) -> None:
    page = enter("clara", f"/console/cases/{volume}")
    says = page.locator(".says")
    expect(says).to_contain_text("slice 7 of 12, 16 × 16")
    widen(page)
    middle = brightness(page)
    page.screenshot(path=pictures / "volume.png")
    page.keyboard.press(".")
    expect(says).to_contain_text("slice 8 of 12")
    assert brightness(page) > middle
    page.keyboard.press(",")
    page.keyboard.press(",")
    expect(says).to_contain_text("slice 6 of 12")
    assert brightness(page) < middle
    page.locator("canvas").hover()
    page.mouse.wheel(0, 100)
    expect(says).to_contain_text("slice 7 of 12")
    assert brightness(page) == middle
    page.get_by_role("slider", name="Slice").fill("0")
    expect(says).to_contain_text("slice 1 of 12")
    with service.connect() as connection:
        looks = [look for look in reads.list_reads(connection, case_id=volume) if look.action == "image:read"]
    assert len(looks) == 4  # slices 7, 8, 6 and 1; none is fetched twice


def test_an_image_has_no_slices(service: Service, staff: None, submitter: httpx.Client, enter: Enter) -> None:
    sent = images.png_bytes(np.full((32, 32), 90, dtype=np.uint8))
    data = {"line": service.new_line(), "site": "north"}
    answer = submitter.post("/v1/cases", data=data, files={"image": ("file", sent)})
    page = enter("clara", f"/console/cases/{answer.json()['case_id']}")
    expect(page.locator("canvas[data-drawn]")).to_be_visible()
    expect(page.locator(".says")).to_contain_text("32 × 32, window")
    expect(page.locator(".says")).not_to_contain_text("slice")
    expect(page.locator(".slices")).to_be_hidden()
