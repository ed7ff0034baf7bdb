"""The champion in use on a page: what was promised, what is seen, an alarm, and what to do where nothing is seen."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from api.console import trends
from registry import lines
from registry.db import Connection
from tests import factories
from tests.api.service import Service
from tests.console.scene import Scene, make_scene, watch


@pytest.fixture(scope="module")
def watched(service: Service, staff: None) -> Scene:
    """A line whose champion was looked at four times."""
    made = make_scene(service, to_read=4)
    with service.connect() as connection:
        watch(connection, made)
        connection.commit()
    return made


def shown(service: Service, line: str, *, name: str = "rita") -> str:
    with service.client(name) as client:
        answer = client.get(f"/console/lines/{line}/monitoring")
    assert answer.status_code == 200, answer.text
    return " ".join(answer.text.replace("\u00a0", " ").split())


def test_what_was_promised_and_what_is_seen_stand_side_by_side(service: Service, watched: Scene) -> None:
    page = shown(service, watched.line)
    assert "✓</span> in order" in page
    assert "wrong in <strong>10.0 %</strong> of 80 cases" in page
    assert "limit 16.0 %" in page
    assert "10.0 %, shown to be above 2.0 %" in page
    assert "11.0 % (5.0 % to 20.0 %)" in page
    assert "80 of 86 confirmed" in page
    assert page.count("The same as a table") == 2


def test_what_is_seen_of_a_challenger_is_for_those_who_decide_on_it(service: Service, watched: Scene) -> None:
    assert "+2.0 points against the champion, n = 80" in shown(service, watched.line, name="anna")
    for name in ("clara", "operator"):
        page = shown(service, watched.line, name=name)
        assert "open to reviewers, approvers and auditors" in page
        assert "points against the champion" not in page


def test_an_alarm_says_what_to_do(service: Service, scene: Scene) -> None:
    with service.connect() as connection:
        factories.watch(connection, scene.champion, cases_to_see=[scene.discordant])
        connection.commit()
    page = shown(service, scene.line, name="anna")
    assert "Alarm: the champion errs too often." in page
    assert f'<a href="/console/cases/{scene.discordant}">case {scene.discordant}</a>' in page
    assert f'<a href="/console/lines/{scene.line}/champions#roll-back">roll back</a>' in page
    assert "ask an approver or operator to roll back" in shown(service, scene.line)


def test_where_nothing_is_seen_the_page_says_what_to_do(service: Service, scene: Scene) -> None:
    assert "The first look comes within a day of a promotion" in shown(service, scene.line)
    unwatched = service.new_line()
    assert "There is no champion to watch yet." in shown(service, unwatched)
    with service.connect() as connection:
        factories.champion(connection, lines.get_line(connection, unwatched))
        connection.commit()
    assert "propose it: <code>overread protocol amend" in shown(service, unwatched)
    assert "An operator or reviewer proposes it" in shown(service, unwatched, name="anna")


def looks(db: Connection, *risks: float | None) -> list[Any]:
    champion = factories.champion(db, factories.line(db))
    seen = [{"risk": risk, "n": 10 * k, "errors": k, "raised_at": None} for k, risk in enumerate(risks, 1)]
    return [factories.watch(db, champion, **one) for one in seen]


def test_every_look_is_drawn_from_left_to_right_with_its_row(db: Connection) -> None:
    standing, drawn = trends.of_watch(looks(db, 0.1, 0.2, 0.3), promised=0.12)
    assert [row[0] for row in standing.table.rows] == ["promised", "seen since", "limit"]
    assert [row[1] for row in standing.table.rows] == ["0.120", "0.300", "0.200"]
    assert [row[2] for row in drawn.table.rows] == ["0.300", "0.200", "0.100"]  # the newest first
    root = ElementTree.fromstring(drawn.svg)  # noqa: S314 - made here
    *_, seen = [line.attrib["points"].split() for line in root.iter("polyline")]
    across, down = zip(*(map(float, point.split(",")) for point in seen), strict=True)
    assert list(across) == sorted(across)
    assert list(down) == sorted(down, reverse=True)  # it rises, and down is more


def test_nothing_is_drawn_before_a_case_was_confirmed(db: Connection) -> None:
    assert trends.of_watch(looks(db, None), promised=0.1) == []
    (standing,) = trends.of_watch(looks(db, None, 0.1), promised=None)
    assert [row[0] for row in standing.table.rows] == ["seen since", "limit"]
