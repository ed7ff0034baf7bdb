"""The demo beside its story: what it refuses to empty, and the table it ends with. The story itself is a journey."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from api.cli.demo import closing_table, demo
from api.cli.doors import make_people
from api.cli.home import StackFile, home_at, write_stack_file
from api.cli.links import demo_links
from api.cli.story import Cycle, find_xrays
from registry import db, sign_in_links


def cycle(number: int, *, failed: str | None) -> Cycle:
    auroc = {"value": 0.9, "low": 0.85, "high": 0.94, "n": 120, "level": 0.9}
    rows: list[dict[str, Any]] = [{"name": "auroc", "verdict": "pass", "candidate": auroc}]
    if failed:
        rows.append({"name": failed, "verdict": "fail", "candidate": None})
    return Cycle(
        candidate={"candidate_id": number, "number": number, "dataset_version": number},
        report={"verdict": "fail" if failed else "pass", "document": {"results": rows}},
        seconds_to_verdict=21.4,
    )


def test_a_home_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    assert demo(tmp_path) == 2
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_the_closing_table_names_what_passed_what_was_blocked_and_who_signed() -> None:
    screen = Console(file=io.StringIO(), width=80)
    screen.print(closing_table([cycle(1, failed=None), cycle(2, failed="submitters")], signed={1: "Anna, Ben"}))
    text = screen.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert max(map(len, text.splitlines())) <= 80
    first, second = (line for line in text.splitlines() if "0.900 [0.850, 0.940]" in line)
    assert first.split()[-1] == "champion"
    assert second.split()[-1] == "blocked"
    assert "model 1: signed by Anna, Ben" in text
    assert "model 2: stopped by submitters" in text


def test_the_xrays_come_as_files_with_their_findings_and_say_what_they_are(tmp_path: Path) -> None:
    xrays, source = find_xrays(tmp_path / "xrays", count=20)
    assert len(xrays) == 20
    assert {xray.finding for xray in xrays} == {"normal", "pneumonia"}
    assert all(xray.at(site).startswith(b"\x89PNG") for xray in xrays for site in ("north", "south"))
    another_machine = xrays[0].at("north") != xrays[0].at("south")
    assert another_machine == ("synthetic" not in source)
    assert "PneumoniaMNIST" in source or "synthetic" in source


@dataclass
class Running:
    """As much of a running service as the people of a demo need."""

    url: str
    home: Path
    environment: dict[str, str]


def test_each_person_of_a_demo_is_given_a_link_of_their_own_and_machines_none(
    fresh_database: str, tmp_path: Path
) -> None:
    url = "http://127.0.0.1:8080"
    stack = StackFile(
        pid=1, created=0.0, state="ready", started_at="", api_url=url, inference_url="", mlflow_url="",
        database_url=fresh_database, broker_url=None,
    )  # fmt: skip
    write_stack_file(home_at(tmp_path), stack=stack)
    assert list(demo_links(home_at(tmp_path))) == []  # no demo
    make_people(Running(url=url, home=tmp_path, environment={"OVERREAD_DATABASE_URL": fresh_database}))
    links = [
        line.split(f"{url}/console/link/")[1] for line in demo_links(home_at(tmp_path)) if "/console/link/" in line
    ]
    with db.connect(fresh_database) as connection:
        people = [sign_in_links.whose(connection, token) for token in links]
    assert [person.name for person in people if person] == ["clara", "otto", "rita", "anna", "ben"]
