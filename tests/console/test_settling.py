"""A reviewer settles what two readers see differently, and a reader sees what became of their answers."""

from __future__ import annotations

from playwright.sync_api import expect

from registry import adjudications, confirmations, users
from tests import factories
from tests.api.service import Service
from tests.console.conftest import Enter
from tests.console.scene import Scene


def test_a_discordance_is_settled_with_a_reason_by_keyboard(service: Service, scene: Scene, enter: Enter) -> None:
    page = enter("rita", f"/console/lines/{scene.line}/discordances")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=f"Readers differ about case {scene.discordant}")).to_be_visible()
    expect(page.get_by_role("region", name="What clara said")).to_contain_text("pneumonia")
    expect(page.get_by_role("region", name="What carl said")).to_contain_text("normal")
    page.keyboard.press("2")
    page.keyboard.press("t")
    page.keyboard.type("consolidation in the right lower lobe, on both readings")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No readers differ.")).to_be_visible()
    with service.connect() as connection:
        *_, decided = confirmations.list_for_case(connection, scene.discordant)
        assert adjudications.count_discordances(connection, decided.line_id) == 0
    assert (decided.kind, decided.finding, decided.submitter) == ("adjudication", "pneumonia", "rita")
    assert decided.reason == "consolidation in the right lower lobe, on both readings"


def test_a_decision_over_what_has_moved_on_is_refused_and_keeps_what_was_typed(
    service: Service, scene: Scene, enter: Enter
) -> None:
    page = enter("rita", f"/console/cases/{scene.discordant}/settle")
    with service.connect() as connection:
        case = factories.cases.get_case(connection, scene.discordant)
        factories.confirmation(connection, case, finding="normal", reader="a third")
        connection.commit()
    page.get_by_label("normal").check()
    page.get_by_label("Why").fill("no consolidation")
    page.get_by_role("button", name="Decide as").click()
    expect(page.get_by_role("alert")).to_contain_text("has come in since")
    expect(page.get_by_label("Why")).to_have_value("no consolidation")
    expect(page.get_by_label("normal")).to_be_checked()
    page.get_by_role("button", name="Decide as").click()  # now over all three
    expect(page.get_by_text("No readers differ.")).to_be_visible()


def test_a_reader_sees_which_models_learned_from_their_answers(service: Service, scene: Scene, enter: Enter) -> None:
    with service.connect() as connection:
        line = factories.lines.get_line(connection, scene.line)
        case = factories.cases.get_case(connection, scene.worklist[0])
        factories.confirmation(connection, case, actor=users.by_name(connection, "clara"))
        factories.candidate(connection, line, submitter_shares={"clara": 0.5})
        connection.commit()
    page = enter("clara", "/console/mine")
    row = page.get_by_role("region", name=f"What my answers did on {scene.line}").get_by_role("row").nth(1)
    expect(row).to_contain_text("50 %")
    expect(row).to_contain_text("trained, waits for its gates")
