"""Operators see what waits and pause a line; auditors search the trail and work it through."""

from __future__ import annotations

from playwright.sync_api import expect

from registry import lines, runs
from tests import factories
from tests.api.service import Service
from tests.console.conftest import Enter
from tests.console.scene import Scene


def test_a_paused_line_starts_no_run_by_itself_until_it_is_resumed(
    service: Service, scene: Scene, enter: Enter
) -> None:
    page = enter("otto", f"/console/lines/{scene.line}")
    page.get_by_text("Pause the line").click()
    page.get_by_role("textbox", name="Why").last.fill("the scanner is being replaced")
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_text("this line starts no run by itself")).to_be_visible()
    with service.connect() as connection:
        connection.execute("SELECT 1")
        assert lines.get_line(connection, scene.line).paused_at is not None
        assert scene.line not in {line.name for line, _ in runs.due_triggers(connection)}
    page.get_by_text("Let the line learn again").click()
    page.get_by_role("textbox", name="Why").last.fill("it is in place")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("this line starts no run by itself")).to_have_count(0)
    page.goto("/console/audit?action=line:")
    expect(page.get_by_role("region", name="Events")).to_contain_text("the scanner is being replaced")


def test_the_queue_is_shown_with_its_jobs(scene: Scene, enter: Enter) -> None:
    page = enter("otto", "/console/operations?state=queued")
    expect(page.get_by_role("region", name="Jobs")).to_contain_text(scene.line)
    expect(page.get_by_role("region", name="Queue")).to_contain_text("queued")


def test_the_trail_is_searched_and_worked_through(scene: Scene, enter: Enter) -> None:
    page = enter("otto", "/console/audit")
    page.get_by_label("What", exact=True).fill("session:link")
    page.get_by_role("button", name="Search and verify").click()
    expect(page.get_by_role("status")).to_contain_text("The trail is whole.")
    for action in page.get_by_role("region", name="Events").locator("tbody td:nth-child(4)").all_text_contents():
        assert action == "session:link"


def test_an_alarm_stands_above_all_else_with_the_cases_to_look_at(service: Service, scene: Scene, enter: Enter) -> None:
    with service.connect() as connection:
        factories.watch(connection, scene.champion, verdict="in_order", reason="12 of 30", risk_limit=0.5)
        connection.commit()
    page = enter("rita", f"/console/lines/{scene.line}")
    expect(page.get_by_role("region", name="Champion")).to_contain_text("in order: wrong in 40 % of 30 cases")
    expect(page.get_by_role("alert")).to_have_count(0)
    with service.connect() as connection:
        factories.watch(connection, scene.champion, cases_to_see=[scene.discordant])
        connection.commit()
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("Alarm: the champion errs too often.")
    page.get_by_role("alert").get_by_role("link", name=f"case {scene.discordant}").click()
    page.wait_for_url(f"**/console/cases/{scene.discordant}")
    page.goto("/console")
    card = page.get_by_role("region", name="Pneumonia").filter(has_text=scene.line)
    expect(card.get_by_role("link", name="alarm")).to_be_visible()


def test_a_run_is_asked_for_watched_and_stopped(scene: Scene, enter: Enter) -> None:
    page = enter("rita", f"/console/lines/{scene.line}")
    page.get_by_text("Ask for a run now").click()
    page.get_by_label("Why").fill("two hundred new cases from the south")
    page.get_by_role("button", name="Start a run").click()
    expect(page.get_by_role("status")).to_contain_text("freezing its dataset")
    page.get_by_role("button", name="Stop this run").click()
    expect(page.get_by_role("status")).to_contain_text("cancelled by rita")


def test_a_page_follows_a_run_by_itself(service: Service, scene: Scene, enter: Enter) -> None:
    with service.connect() as connection:
        line = lines.get_line(connection, scene.line)
        run = runs.start_run(connection, line_id=line.line_id, requested_by=None, reason="a test watches it")
        connection.commit()
        page = enter("rita", f"/console/runs/{run.run_id}")
        expect(page.get_by_role("status")).to_contain_text("freezing its dataset")
        runs.record_progress(
            connection,
            run_id=run.run_id,
            progress={"epoch": 3, "epochs": 8},
            history_rows=[{"epoch": 3, "epochs": 8, "loss": 0.25}],
        )
        connection.commit()
        expect(page.get_by_role("region", name="Learning curve")).to_contain_text("0.2500")
        runs.refuse(connection, run_id=run.run_id, outcome="nothing new was confirmed")
        connection.commit()
        expect(page.get_by_role("status")).to_contain_text("nothing new was confirmed")
