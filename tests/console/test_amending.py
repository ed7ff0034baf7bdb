"""An amendment is read in plain words and signed by two people; the words are those of the clauses there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from api.console import clauses
from pipelines.wording import LOOSER, differences
from registry import amendments, lines
from tests.api.service import PASSWORD, Service
from tests.console.conftest import Enter
from tests.console.scene import Scene

SCHEMA = Path(__file__).parents[2] / "docs" / "protocol.schema.json"


def sign(page: Page) -> None:
    page.get_by_label("approve that it takes the place of the protocol in force").check()
    page.get_by_role("region", name="Sign", exact=True).get_by_label("Why").fill("We have the cases to ask for more.")
    page.get_by_label("Your password, once more").fill(PASSWORD)
    page.get_by_role("button", name="Sign as").click()


def test_two_people_read_what_changes_and_the_last_signature_puts_it_in_force(
    service: Service, scene: Scene, enter: Enter
) -> None:
    number = scene.amendment.amendment_id
    first = enter("anna")
    first.get_by_role("link", name=f"Amendment {number} of the protocol: read and sign").click()
    changes = first.get_by_role("region", name="Table of changes").get_by_role("row")
    expect(changes.nth(1)).to_contain_text("Chance that a model passes that should not")
    expect(changes.nth(1)).to_contain_text("asks for less")
    expect(changes.nth(2)).to_contain_text("Sealed cases needed of each finding")
    expect(changes.nth(2)).not_to_contain_text("asks for less")
    expect(first.get_by_role("region", name="Who may still sign")).to_contain_text("Dr Ben Approver, radiology")
    sign(first)
    expect(first.get_by_role("status")).to_contain_text("1 of 2 signatures")
    expect(first.get_by_text("Blocked: Dr Anna Approver, clinical safety has signed already")).to_be_visible()

    second = enter("ben", f"/console/amendments/{number}")
    sign(second)
    expect(second.get_by_role("status")).to_contain_text("adopted")
    second.get_by_role("link", name="Protocol", exact=True).click()
    expect(second.get_by_role("region", name="In force: version 2")).to_contain_text(f"amendment {number}")
    expect(second.get_by_role("region", name="Amendments")).to_contain_text("Dr Anna Approver, clinical safety; Dr Ben")
    with service.connect() as connection:
        line_id = lines.get_line(connection, scene.line).line_id
        assert lines.current_protocol(connection, line_id).amendment_id == number


def signature(service: Service, scene: Scene, name: str, **changes: str) -> Any:
    form = {"key": "k", "decision": "reject", "reason": "it asks for less", "password": PASSWORD, **changes}
    with service.client(name) as client:
        return client.post(f"/console/amendments/{scene.amendment.amendment_id}/signature", data=form)


def test_a_wrong_password_signs_nothing_and_what_was_typed_stays(service: Service, scene: Scene) -> None:
    refused = signature(service, scene, "anna", password="not the password")
    assert refused.status_code == 403
    assert "nothing was signed" in refused.text
    assert "it asks for less</textarea>" in refused.text
    assert 'value="reject" required checked' in refused.text
    assert "not the password" not in refused.text
    with service.connect() as connection:
        assert amendments.signatures(connection, scene.amendment.amendment_id) == []


def test_one_rejection_ends_it_and_the_button_says_so(service: Service, scene: Scene) -> None:
    here = f"/console/amendments/{scene.amendment.amendment_id}"
    assert signature(service, scene, "anna").headers["location"].startswith(here)
    with service.client("ben") as client:
        shown = client.get(here).text
    assert "is rejected; it takes no more signatures." in shown
    assert "Sign as" not in shown


def test_who_may_not_sign_is_shown_no_form(service: Service, scene: Scene) -> None:
    for name in ("rita", "clara", "otto"):
        with service.client(name) as client:
            shown = client.get(f"/console/amendments/{scene.amendment.amendment_id}").text
        assert "Chance that a model passes that should not" in shown
        assert "Your password" not in shown


def every_clause(node: dict[str, Any], known: dict[str, Any], path: str = "") -> set[str]:
    """Dotted paths of all clauses of the schema, and of the sections that hold them."""
    options = [part for part in node.get("anyOf", [node]) if part.get("type") != "null"]
    node = known[options[0]["$ref"].rpartition("/")[2]] if "$ref" in options[0] else options[0]
    found = {path} - {""}
    for name, inner in node.get("properties", {}).items():
        found |= every_clause(inner, known, f"{path}.{name}" if path else name)
    return found


def test_words_are_of_clauses_that_there_are_and_of_all_that_ask_for_more_or_less() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert set(clauses.WORDS) <= every_clause(schema, schema["$defs"])
    assert set(LOOSER) <= set(clauses.WORDS)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"blind_fraction": 0.05}, {"blind_fraction": 0.0}, ("0.05", "0.0", True)),
        ({"title": "A -> B"}, {"title": 'It says "nothing" -> C'}, ("A -> B", 'It says "nothing" -> C', False)),
        ({"classes": ["a", "b_c"]}, {"classes": []}, ("a, b c", "none", False)),
        ({"monitoring": None}, {"monitoring": {}}, ("not asked for", "the defaults", False)),
        ({"gates": {"require_improvement": True}}, {"gates": {"require_improvement": False}}, ("yes", "no", True)),
        ({"gates": {"alpha": 0.1}}, {"gates": {}}, ("0.1", "not asked for", False)),
    ],
)
def test_what_the_difference_of_two_protocols_tells_is_read_back(
    before: dict[str, Any], after: dict[str, Any], told: tuple[str, str, bool]
) -> None:
    change = next(one for one in clauses.read(differences(before, after)) if one.clause != "gates")
    assert (change.before, change.after, change.looser) == told


def test_what_asks_for_less_comes_first_and_a_clause_without_words_has_its_name() -> None:
    read = clauses.read(["recipe.batch_size: 64 -> 32", "gates.alpha: 0.05 -> 0.1  (asks for less evidence)"])
    assert [change.words for change in read] == ["Chance that a model passes that should not", "Recipe batch size"]
