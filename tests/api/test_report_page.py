"""The gate report as a page: readable without colour, eyes or network, and it says nothing that the report does not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from typer.testing import CliRunner

from api.cli import app
from api.cli.work import write_page
from api.console import charts, report
from pipelines import evidence, gates
from registry import audit, candidates, lines
from tests import factories
from tests.api.service import Service
from tests.pipelines.test_evidence import comparison

USE = {"use": 4, "epoch": 1, "after_version": 0, "wallet": "recipe", "place": 2, "level": 0.0192}


def document(**changes: Any) -> dict[str, Any]:
    """A real report's document on a computer's numbers."""
    made = comparison(**{"use": USE, **changes})
    decided = gates.decide(made, dataset_digest="d" * 64)  # type: ignore[arg-type]  # a digest
    return {**decided.document(), "evidence": evidence.gather(made)}


DOCUMENT = document()
PAGE = report.standalone(DOCUMENT, digest="5" * 64, number=3, made_at="2026-03-02 08:42:01 UTC")


def drawn(**changes: Any) -> tuple[charts.Chart, ...]:
    return report.view(document(**changes), digest="5" * 64).charts


def test_the_page_stands_alone_and_runs_nothing() -> None:
    assert "<script" not in PAGE
    assert not re.findall(r"""(?:src|href)\s*=\s*["'][^#]""", PAGE)
    assert "url(" not in PAGE
    assert not re.findall(r"\sstyle\s*=|\son\w+\s*=", PAGE)


def test_the_verdict_comes_first_and_what_did_not_pass_before_what_did() -> None:
    body = PAGE.partition("<main>")[2]
    assert body.index('class="strip fail"') < body.index("<table")
    verdicts = re.findall(r'<td class="verdict (\w+)">', body.partition("</table>")[0])
    assert verdicts == sorted(verdicts, key=["fail", "insufficient", "pass"].index)
    assert len(verdicts) == len(DOCUMENT["results"])
    assert "number 2 of epoch 1, wallet recipe; judged at level 0.0192" in PAGE
    assert "5" * 64 in PAGE


def test_every_check_shows_value_difference_interval_and_n() -> None:
    (area,) = [row for row in DOCUMENT["results"] if row["name"] == "auroc"]
    assert charts.estimate(area["candidate"]) in PAGE
    assert charts.estimate(area["difference"], signed=True) in PAGE
    assert f'<td class="num">{area["candidate"]["n"]}</td>' in PAGE


def test_every_chart_has_a_title_a_description_and_a_twin_in_words() -> None:
    found = drawn()
    kinds = [chart.key.removesuffix("-candidate-champion") for chart in found]
    assert kinds == ["roc-pneumonia", "reliability", "decision", "forest", "forgetting"]
    for chart in found:
        picture = ET.fromstring(chart.svg)  # noqa: S314 - our own
        title, description = picture[0], picture[1]
        assert picture.attrib["role"] == "img"
        assert picture.attrib["aria-labelledby"].split() == [title.attrib["id"], description.attrib["id"]]
        assert title.text
        assert description.text
        assert chart.table.rows
        assert {len(row) for row in chart.table.rows} == {len(chart.table.head)}
        assert not {name for part in picture.iter() for name in part.attrib} & {"style", "fill", "stroke", "onclick"}


def test_the_candidate_is_told_from_the_champion_without_colour() -> None:
    sheet = (report.FOLDER / "static" / "report.css").read_text(encoding="utf-8")
    assert re.search(r"\.curve\.champion \{[^}]*dasharray", sheet)
    (roc, *_) = drawn()
    assert '<rect class="dot champion"' in roc.svg
    assert '<circle class="dot candidate"' in roc.svg


def test_every_class_in_a_chart_has_a_style_in_the_sheet() -> None:
    sheet = (report.FOLDER / "static" / "report.css").read_text(encoding="utf-8")
    used = {name for chart in drawn() for names in re.findall(r'class="([^"]*)"', chart.svg) for name in names.split()}
    assert sorted(name for name in used - {"watched", "none"} if f".{name}" not in sheet) == []


def test_a_name_that_would_be_markup_is_text() -> None:
    made = comparison()
    made.sealed.traits["site"][:200] = "<script>alert(1)</script>"  # type: ignore[index]  # a dict
    site = made.sealed.traits["site"].astype("U40")
    site[:200] = "<script>alert(1)</script>"
    shown = {**DOCUMENT, "evidence": evidence.gather(comparison(sealed=type(made.sealed)(
        labels=made.sealed.labels, groups=made.sealed.groups, traits={"site": site},
        case_ids=made.sealed.case_ids, batches=made.sealed.batches)))}  # fmt: skip
    page = report.standalone(shown, digest="5" * 64, number=3, made_at="now")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_lost_cases_are_listed_with_their_ids() -> None:
    lost = DOCUMENT["evidence"]["flips"]["lost"]
    assert lost
    for one in lost[:5]:
        assert f'<th scope="row">{one["case"]}</th>' in PAGE


def test_what_blind_labels_say_stands_beside_what_all_say() -> None:
    sealed = comparison().sealed
    exposures = np.where(np.random.default_rng(1).random(len(sealed.labels)) < 0.4, "blind", "aided")
    told = document(sealed=replace(sealed, exposures=exposures))
    page = report.standalone(told, digest="5" * 64, number=3, made_at="now")
    table = page.partition('id="exposed"')[2].partition("</section>")[0]
    exposure = told["evidence"]["exposure"]
    assert [row["endpoint"] for row in exposure["endpoints"]] == ["auroc", "sensitivity", "specificity"]
    for row in exposure["endpoints"]:
        cells = [
            f"{charts.estimate(row[whose][what], signed=what == 'difference')}, n {row[whose][what]['n']}"
            for what in ("candidate", "difference")
            for whose in ("blind", "all")
        ]
        assert f'<th scope="row">{row["endpoint"]}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) in table
    assert exposure["endpoints"][0]["blind"]["candidate"]["n"] < exposure["endpoints"][0]["all"]["candidate"]["n"]
    assert f"copied from the champion: {charts.estimate(exposure['copied'])}" in table


def test_too_few_blind_labels_say_so_in_their_place() -> None:
    sealed = comparison().sealed
    told = document(sealed=replace(sealed, exposures=np.full(len(sealed.labels), "aided")))
    page = report.standalone(told, digest="5" * 64, number=3, made_at="now")
    table = page.partition('id="exposed"')[2].partition("</section>")[0]
    assert table.count("<td>none: ") == 6
    assert "cannot be told: too few labels of both kinds" in table
    assert 'id="exposed"' not in PAGE  # of these cases nobody wrote down who had seen what


def test_the_first_model_has_a_page_too() -> None:
    page = report.standalone(document(champion=None), digest="5" * 64, number=1, made_at="now")
    assert "none: the first model of its line" in page
    assert "No flips" not in page
    assert "Cases that changed sides" not in page


def test_a_report_from_before_there_were_plots_is_shown_as_far_as_it_goes() -> None:
    old = {name: value for name, value in DOCUMENT.items() if name not in {"evidence", "sealed_test"}}
    shown = report.view(old, digest="5" * 64)
    assert (shown.charts, shown.flips, shown.changed) == ((), None, ())
    assert "What was measured" not in report.standalone(old, digest="5" * 64, number=3, made_at="now")


def test_of_a_withheld_report_the_page_shows_the_bit_alone() -> None:
    rows = [
        {"name": row["name"], "requirement": row["requirement"], "verdict": "withheld"} for row in DOCUMENT["results"]
    ]
    page = report.standalone(
        {"line": "toy", "verdict": "not_passed", "results": rows}, digest="5" * 64, number=3, made_at="now"
    )
    assert "This candidate did not pass. What was measured is not open to you yet." in page
    assert "withheld" in page
    assert "<svg" not in page


@pytest.mark.parametrize("missing", ["roc", "reliability", "decision_curve", "forest", "forgetting"])
def test_a_plot_that_is_missing_says_why_and_leaves_the_others(missing: str) -> None:
    told = {**DOCUMENT, "evidence": {**DOCUMENT["evidence"], missing: {"missing": "too few cases of a class"}}}
    page = report.standalone(told, digest="5" * 64, number=3, made_at="now")
    assert f"No {missing.replace('_', ' ')}: too few cases of a class." in page
    assert page.count("<svg") == 4


@pytest.mark.parametrize(("role", "withheld"), [("reviewer", False), ("operator", True)])
def test_the_commands_ask_the_service_and_show_what_this_person_may_see(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, withheld: bool
) -> None:
    line = service.new_line()
    with service.connect() as connection:
        candidate = factories.candidate(connection, lines.get_line(connection, line))
        values = factories.gate_report_values(connection, candidate, verdict="fail")
        whole = {**DOCUMENT, **values["document"], "line": line, "results": DOCUMENT["results"]}
        values |= {"document": whole, "digest": audit.digest_of(whole)}
        candidates.record_gate_report(connection, **values)
    monkeypatch.setenv("OVERREAD_API_URL", service.url)
    monkeypatch.setenv("OVERREAD_API_KEY", service.keys[role])
    number = str(candidate.candidate_id)
    written = CliRunner().invoke(app, ["candidate", "report", number, "--html", str(tmp_path / "report.html")])
    assert written.exit_code == 0, written.output
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("<svg" not in text) == withheld
    assert ("not open to you yet" in text) == withheld
    told = CliRunner().invoke(app, ["candidate", "facts", number])
    assert told.exit_code == 0, told.output
    assert f"# Model 1 of {line}" in told.output
    assert ("| auroc |" not in told.output) == withheld
    spent = CliRunner().invoke(app, ["line", "sealed-test", line, "--json"])
    assert [use["passed"] for use in json.loads(spent.stdout)] == [False]


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    answer = {"document": DOCUMENT, "digest": "5" * 64, "created_at": "2026-03-02T08:42:01.007Z"}
    write_page(tmp_path / "report.html", report=answer, number=3)
    assert "Report of 2026-03-02 08:42:01 UTC" in (tmp_path / "report.html").read_text(encoding="utf-8")
