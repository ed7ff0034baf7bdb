"""A case and a candidate are taken away in a file that proves itself; and what is left of the sealed test is shown."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from registry import audit, bundle, checkpoints, notes
from registry.notes import Signer
from tests.api.service import Service
from tests.console.conftest import Enter
from tests.console.scene import Scene


def sign(service: Service) -> Signer:
    """Sign a checkpoint where the service's notary would."""
    home = Path(service.environment["OVERREAD_HOME"])
    signer = notes.signer_at(home / "checkpoint.key")
    with service.connect() as connection:
        checkpoints.take(connection, home / "checkpoints", signer=signer)
    return signer


def test_an_auditor_takes_a_case_away_and_it_is_checked_elsewhere(
    service: Service, scene: Scene, enter: Enter, tmp_path: Path
) -> None:
    signer = sign(service)
    page = enter("otto", "/console/audit")
    page.get_by_role("link", name="export", exact=True).click()
    page.get_by_label("A case, its confirmations").check()
    page.get_by_label("Its id").fill(str(scene.discordant))
    page.get_by_label("For whom, and why").fill("asked for by the patient")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "case.tar"
    download.value.save_as(file)
    assert download.value.suggested_filename == f"case-{scene.discordant}.tar"
    found = bundle.check(file, signer.verifier)
    assert {one.state for one in found} == {"fine"}
    with service.connect() as connection:
        event = audit.find_events(connection, action="export:case", limit=1)[0]
    assert (event.actor, event.subject) == ("otto", f"case/{scene.discordant}")
    assert event.details["reason"] == "asked for by the patient"


def test_a_candidate_is_taken_away_over_the_api_with_its_conversation(
    service: Service, scene: Scene, tmp_path: Path
) -> None:
    at = f"/v1/candidates/{scene.candidate.candidate_id}"
    with service.client("rita") as client:
        assert client.post(f"{at}/comments", json={"text": "look at the south"}).status_code == 201
    signer = sign(service)
    with service.client("auditor") as client:
        answer = client.post(f"{at}/export", json={"reason": "reference 26-117"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-tar")
    file = tmp_path / "candidate.tar"
    file.write_bytes(answer.content)
    assert {one.state for one in bundle.check(file, signer.verifier)} == {"fine"}
    assert b"look at the south" in answer.content


def test_what_no_checkpoint_holds_yet_is_not_given_out_and_what_was_typed_stays(service: Service, scene: Scene) -> None:
    sign(service)
    with service.client("second-submitter") as client:
        name = scene.line
        made = client.get(f"/v1/lines/{name}").status_code
        assert made == 200
    with service.client("otto") as client:
        form = {"what": "case", "number": "99999999", "reason": "as typed"}
        missing = client.post("/console/export", data=form)
        assert (missing.status_code, "as typed" in missing.text) == (404, True)
        wrong = client.post("/console/export", data={**form, "number": "one"})
        assert (wrong.status_code, "a whole number" in wrong.text) == (422, True)
        assert client.post("/console/export", data={**form, "reason": " "}).status_code == 422


def test_what_is_left_of_the_sealed_test_is_shown_with_every_use(scene: Scene, enter: Enter) -> None:
    page = enter("rita", f"/console/lines/{scene.line}")
    page.get_by_role("link", name="Sealed test").click()
    uses = page.get_by_role("region", name="Uses of the sealed test")
    expect(uses.get_by_role("row")).to_have_count(1 + 3)  # the champion, and the scene's two candidates
    expect(uses).to_contain_text(f"model {scene.candidate.number}")
    expect(uses).to_contain_text("not passed")
