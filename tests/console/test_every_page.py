"""Every page, with something on it: no barrier that axe-core finds, light and dark, and not many bytes."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from api.console.frame import STATIC
from tests.api.service import Service
from tests.console.conftest import Enter
from tests.console.scene import Scene, make_scene, watch
from tests.console.table import Entry, entries

MOST_BYTES = 150_000
SEEN_BY = {"submitter": "clara", "reviewer": "rita", "approver": "anna", "operator": "otto", "auditor": "otto"}
SHOWN = [
    entry
    for entry in entries()
    if entry.method == "GET"
    and not entry.path.endswith((".png", "/next", "/live", "/count"))
    and "/static/" not in entry.path
]


@pytest.fixture(scope="module")
def shown(service: Service, staff: None) -> Scene:
    """One scene for all pages: nothing is changed here."""
    scene = make_scene(service)
    with service.connect() as connection:
        watch(connection, scene)
        connection.commit()
    return scene


def address(entry: Entry, scene: Scene, service: Service) -> str:
    with service.connect() as connection:
        row = connection.execute(
            "SELECT max(run_id), max(dataset_version_id) FROM runs JOIN lines USING (line_id) WHERE name = %s",
            (scene.line,),
        ).fetchone()
        assert row is not None
    known = {
        "case_id": scene.discordant,
        "candidate_id": scene.candidate.candidate_id,
        "amendment_id": scene.amendment.amendment_id,
    }
    path = entry.filled(line=scene.line, run_id=row[0], dataset_version_id=row[1], **known)
    if path.endswith("/compare"):
        path += f"?left={scene.champion.candidate_id}&right={scene.candidate.candidate_id}"
    return path


def barriers(page: Page) -> list[str]:
    found: dict[str, Any] = Axe().run(page).response
    return [
        f"{violation['id']}: {node['html']} ({node['failureSummary']})"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("entry", SHOWN, ids=str)
def test_a_page_has_no_barrier_and_is_light(
    service: Service, shown: Scene, enter: Enter, entry: Entry, scheme: str
) -> None:
    person = SEEN_BY[entry.roles[0]] if entry.roles else None
    page = enter(person, color_scheme=scheme, viewport={"width": 1280, "height": 800})
    sizes: list[int] = []
    page.on(
        "response",
        lambda answer: sizes.append(len(answer.body())) if answer.request.resource_type != "image" else None,
    )
    answer = page.goto(address(entry, shown, service))
    assert answer is not None
    assert answer.status == (404 if "{token}" in entry.path else 200)
    page.wait_for_load_state("networkidle")
    assert barriers(page) == []
    assert len(page.title()) > len(" · Overread")
    assert sum(sizes) + sum(path.stat().st_size for path in STATIC.iterdir()) <= MOST_BYTES


def test_a_candidate_can_be_printed_and_read_on_a_narrow_screen(shown: Scene, enter: Enter) -> None:
    page = enter("anna", f"/console/candidates/{shown.candidate.candidate_id}", viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.emulate_media(media="print")
    assert not page.get_by_role("button", name="Sign as").is_visible()
    assert page.get_by_role("heading", name="Checks").is_visible()
