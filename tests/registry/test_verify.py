"""Whatever is done to the record behind its back, verifying it names what was done, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, LiteralString

import pytest

from registry import (
    adjudications,
    audit,
    blobs,
    checkpoints,
    comments,
    confirmations,
    erasures,
    notes,
    promotions,
    rows,
    verify,
)  # fmt: skip
from registry.db import Connection
from registry.errors import NoteRefused, TrailDamaged
from registry.notes import Signer
from tests import factories


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return notes.signer_at(tmp_path_factory.mktemp("key") / "checkpoint.key")


@pytest.fixture
def filled(owner_db: Connection) -> Connection:
    """A record with a row in every table that the trail vouches for, a roll back, and corrections."""
    db = owner_db
    line = factories.line(db)
    factories.case(db, line, patient="somebody", sex="female")
    erasures.erase(db, patient_digest=erasures.digest_of_patient("somebody"), line=None, reason="asked", actor="olga")
    reader = factories.user(db, "submitter")
    for number in range(3):
        case = factories.case(db, line, external_id=f"accession-{number}", actor=reader)
        first = factories.confirmation(db, case, actor=reader)
        factories.confirmation(db, case, actor=reader, finding="pneumonia", supersedes=first.confirmation_id)
    factories.champion(db, line)
    second = factories.champion(db, line)
    factories.watch(db, second)
    promotions.roll_back(
        db,
        line_id=line.line_id,
        expected_champion_id=second.candidate_id,
        actor=factories.user(db, "approver"),
        reason="it fell",
    )
    factories.candidate(db, line)
    factories.new_protocol(db, factories.line(db), title="Pneumonia, more strictly")
    author = factories.user(db, "reviewer")
    factories.rejection(db, case, second)
    comments.add(db, candidate_id=second.candidate_id, author=author, text="look at the north")
    return db


def findings(db: Connection, folder: Path, signer: Signer) -> dict[str, verify.Finding]:
    def tell(_what: str, _done: int) -> None:
        return

    found = [
        *verify.check_trail(db, folder=folder, verifier=signer.verifier, tell=tell),
        *verify.check_rows(db, tell=tell),
        verify.check_champions(db),
        verify.check_sealed_tests(db),
        verify.check_protocols(db),
    ]
    return {finding.check: finding for finding in found}


def damaged(db: Connection, folder: Path, signer: Signer) -> dict[str, str]:
    return {name: one.detail for name, one in findings(db, folder, signer).items() if one.state == "damaged"}


def tamper(db: Connection, statement: LiteralString, parameters: tuple[Any, ...] = ()) -> None:
    """Do what only a superuser can: change a row with every trigger off."""
    db.execute("SET LOCAL session_replication_role = replica")
    for table in ("audit_events", *rows.BOUND):
        db.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")  # type: ignore[call-overload]  # names of ours
    assert db.execute(statement, parameters).rowcount > 0


def rechain(db: Connection) -> None:
    """What a careful forger does after rewriting an event: work out every later digest anew."""
    db.execute("SET LOCAL session_replication_role = replica")
    previous = audit.GENESIS
    for (number,) in db.execute("SELECT audit_event_id FROM audit_events ORDER BY 1").fetchall():
        db.execute(
            "UPDATE audit_events SET previous_digest = %(previous)s, digest = encode(sha256(convert_to(concat_ws("
            "E'\\x1f', audit_event_id, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), actor,"
            " action, subject, details::text, %(previous)s::text), 'UTF8')), 'hex') WHERE audit_event_id = %(id)s",
            {"previous": previous, "id": number},
        )
        (previous,) = db.execute("SELECT digest FROM audit_events WHERE audit_event_id = %s", (number,)).fetchone() or (
            "",
        )


def test_an_untouched_record_is_found_whole(filled: Connection, tmp_path: Path, signer: Signer) -> None:
    checkpoints.take(filled, tmp_path / "c", signer=signer)
    found = findings(filled, tmp_path / "c", signer)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(found, "fine")
    assert {table.replace("_", " ") for table in rows.BOUND} <= set(found)
    for table in rows.BOUND:
        assert not found[table.replace("_", " ")].detail.startswith("0 rows"), table


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("confirmations", "UPDATE confirmations SET finding = 'normal' WHERE confirmation_id = %s"),
        ("confirmations", "UPDATE confirmations SET confirmed_at = '2020-01-01' WHERE confirmation_id = %s"),
        ("confirmations", "DELETE FROM confirmations WHERE confirmation_id = %s"),
        ("cases", "UPDATE cases SET patient = 'somebody else' WHERE case_id = %s"),
        ("protocols", "UPDATE protocols SET document = document || '{\"classes\": []}' WHERE protocol_id = %s"),
        ("amendments", "UPDATE amendments SET reason = 'no reason' WHERE amendment_id = %s"),
        (
            "amendment_approvals",
            "UPDATE amendment_approvals SET printed_name = 'nobody' WHERE amendment_approval_id = %s",
        ),
        ("dataset_versions", "UPDATE dataset_versions SET number = 99 WHERE dataset_version_id = %s"),
        ("candidates", "UPDATE candidates SET weights_digest = metadata_digest WHERE candidate_id = %s"),
        ("gate_reports", "UPDATE gate_reports SET text = 'all passed' WHERE gate_report_id = %s"),
        ("sealed_test_uses", "UPDATE sealed_test_uses SET level = 0.001 WHERE sealed_test_use_id = %s"),
        ("approvals", "UPDATE approvals SET printed_name = 'Dr Nobody' WHERE approval_id = %s"),
        ("watches", "UPDATE watches SET verdict = 'in_order' WHERE watch_id = %s"),
        ("rejections", "UPDATE rejections SET reason = 'none' WHERE rejection_id = %s"),
        ("comments", "UPDATE comments SET text = 'sign it' WHERE comment_id = %s"),
        ("promotions", "UPDATE promotions SET reason = 'no reason' WHERE promotion_id = %s"),
    ],
)  # fmt: skip
def test_a_row_rewritten_by_a_superuser_is_named(
    filled: Connection, tmp_path: Path, signer: Signer, table: str, statement: LiteralString
) -> None:
    checkpoints.take(filled, tmp_path / "c", signer=signer)
    key = rows.BOUND[table].key
    (number,) = filled.execute(f"SELECT max({key}) FROM {table}").fetchone() or (0,)  # type: ignore[call-overload]  # noqa: S608 - ours
    tamper(filled, statement, (number,))
    found = damaged(filled, tmp_path / "c", signer)
    assert set(found) - {"champions", "amended protocols"} == {table.replace("_", " ")}
    assert found[table.replace("_", " ")].startswith(f"{table}/{number} is ")
    (event,) = filled.execute(
        "SELECT audit_event_id FROM audit_events WHERE details ->> 'row' = %s", (f"{table}/{number}",)
    ).fetchone() or (0,)
    assert f"audit event {event}" in found[table.replace("_", " ")]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE confirmations SET kind = 'confirmation', reason = NULL, finding = 'normal' WHERE confirmation_id = %s",
        "UPDATE confirmations SET reason = 'a better reason' WHERE confirmation_id = %s",
        "UPDATE confirmations SET kind = 'adjudication', supersedes = NULL WHERE confirmation_id = %s",
    ],
)
def test_a_retraction_undone_or_reworded_by_a_superuser_is_named(
    filled: Connection, tmp_path: Path, signer: Signer, statement: LiteralString
) -> None:
    newest = filled.execute("SELECT max(confirmation_id) FROM confirmations").fetchone() or (0,)
    reviewer = factories.user(filled, "reviewer")
    made = adjudications.retract(filled, confirmation_id=newest[0], reason="another patient", actor=reviewer)
    assert damaged(filled, tmp_path / "c", signer) == {}
    tamper(filled, statement, (made.confirmation_id,))
    found = damaged(filled, tmp_path / "c", signer)
    assert found["confirmations"].startswith(f"confirmations/{made.confirmation_id} is not what audit event")


def test_a_confirmation_that_is_made_an_adjudication_by_a_superuser_is_named(
    filled: Connection, tmp_path: Path, signer: Signer
) -> None:
    tamper(filled, "UPDATE confirmations SET kind = 'adjudication', reason = 'why' WHERE supersedes IS NULL")
    assert "is not what audit event" in damaged(filled, tmp_path / "c", signer)["confirmations"]


def test_rows_that_are_older_than_a_column_keep_their_digests(db: Connection) -> None:
    made = factories.confirmation(db, factories.case(db, factories.line(db)))
    told = json.loads(str(rows.text(db, f"confirmations/{made.confirmation_id}")))
    assert {"kind", "reason"}.isdisjoint(told)
    assert set(told) == set(confirmations.Confirmation.__slots__) - {
        *("kind", "reason", "supersedes"),  # as before there were kinds, and empty
        *("submitter", "superseded_by"),  # of other rows
    }


def test_a_row_slipped_in_by_a_superuser_is_named(filled: Connection, tmp_path: Path, signer: Signer) -> None:
    tamper(
        filled,
        "INSERT INTO confirmations (case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at,"
        " submitted_by) SELECT case_id, line_id, 'normal', 'pathology', 'blind', 'x', now(), submitted_by FROM cases"
        " LIMIT 1",
    )
    found = damaged(filled, tmp_path / "c", signer)
    assert found["confirmations"].endswith("is told of by no audit event")


def test_a_deleted_tail_is_named_by_the_checkpoint_and_by_nothing_else(
    filled: Connection, tmp_path: Path, signer: Signer
) -> None:
    for number in range(5):
        audit.record(filled, actor="rita", action="case:view", subject=f"case/{number}")
    made = checkpoints.take(filled, tmp_path / "c", signer=signer)
    assert made is not None
    tamper(filled, "DELETE FROM audit_events WHERE audit_event_id > %s", (made.size - 5,))
    assert audit.first_broken(filled) is None  # without checkpoints it passes
    assert damaged(filled, tmp_path / "none", signer) == {}
    time = f"{made.at:%Y-%m-%d %H:%M:%SZ}"
    expected = f"events {made.size - 4}..{made.size} are missing: checkpoint {made.size} of {time} names them"
    assert damaged(filled, tmp_path / "c", signer) == {"checkpoints": expected}
    with pytest.raises(TrailDamaged, match=f"events {made.size - 4}..{made.size} are missing"):
        checkpoints.take(filled, tmp_path / "c", signer=signer)


def test_a_history_rewritten_and_chained_anew_is_named_by_the_checkpoint_and_by_nothing_else(
    filled: Connection, tmp_path: Path, signer: Signer
) -> None:
    first = checkpoints.take(filled, tmp_path / "c", signer=signer)
    assert first is not None
    for number in range(4):
        audit.record(filled, actor="rita", action="case:view", subject=f"case/{number}")
    second = checkpoints.take(filled, tmp_path / "c", signer=signer)
    assert second is not None
    tamper(filled, "UPDATE audit_events SET actor = 'otto' WHERE audit_event_id = %s", (first.size + 2,))
    assert audit.first_broken(filled) == first.size + 2
    rechain(filled)
    assert audit.first_broken(filled) is None  # without checkpoints it passes
    assert damaged(filled, tmp_path / "none", signer) == {}
    found = damaged(filled, tmp_path / "c", signer)
    assert set(found) == {"checkpoints"}
    assert found["checkpoints"].startswith(f"of events {first.size + 1}..{second.size} at least one is not what")
    with pytest.raises(TrailDamaged, match="rewritten"):
        checkpoints.take(filled, tmp_path / "c", signer=signer)


@pytest.mark.parametrize(("shift", "says"), [(0, "is not what was written"), (1, "is missing: event")])
def test_a_rewritten_or_missing_event_is_named(
    filled: Connection, tmp_path: Path, signer: Signer, shift: int, says: str
) -> None:
    if shift:
        tamper(filled, "DELETE FROM audit_events WHERE audit_event_id = 3")
    else:
        tamper(filled, "UPDATE audit_events SET at = at + interval '1 second' WHERE audit_event_id = 3")
    assert damaged(filled, tmp_path / "c", signer)["audit trail"].startswith(f"event 3 {says}")


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE promotions SET ended_at = now() WHERE ended_at IS NULL", "ended without a successor"),
        ("UPDATE candidates SET state = 'champion' WHERE state = 'retired'", "it is retired"),
        ("UPDATE candidates SET state = 'gates_passed' WHERE state = 'trained'", "it is trained"),
    ],
)
def test_a_champion_made_by_hand_is_named(
    filled: Connection, tmp_path: Path, signer: Signer, statement: LiteralString, says: str
) -> None:
    tamper(filled, statement)
    found = damaged(filled, tmp_path / "c", signer)
    assert set(found) == {"champions"}
    assert says in found["champions"]


def test_two_champions_are_named_though_the_index_is_gone(filled: Connection, tmp_path: Path, signer: Signer) -> None:
    filled.execute("DROP INDEX promotions_one_champion_per_line")
    tamper(filled, "UPDATE promotions SET ended_at = NULL")
    assert "has 3 champions" in damaged(filled, tmp_path / "c", signer)["champions"]


def test_a_file_altered_or_gone_is_named_with_whose_it_is(db: Connection, tmp_path: Path) -> None:
    line = factories.line(db)
    cases = [
        factories.case(db, line, image_digest=blobs.put(db, tmp_path, data, media_type="application/x-npy"))
        for data in (b"one", b"two", b"three")
    ]

    def found() -> verify.Finding:
        return verify.check_blobs(db, root=tmp_path, tell=lambda _what, _done: None)

    assert (found().state, found().detail) == ("fine", "3 images and weights have their digests")
    path = blobs.path_of(tmp_path, cases[1].image_digest)
    path.write_bytes(b"twO")
    assert found().detail == f"{path}, the image of case {cases[1].case_id}, was altered: its bytes have another digest"
    path.unlink()
    assert found().detail == f"{path}, the image of case {cases[1].case_id}, is missing"
    blobs.path_of(tmp_path, cases[2].image_digest).unlink()
    assert found().detail.endswith("is missing (and 1 more)")


def test_checkpoints_grow_without_reading_what_was_read(
    filled: Connection, tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    chain = audit.chain

    def watched(conn: Connection, *, after: int = 0) -> Any:
        for link in chain(conn, after=after):
            read.append(link.audit_event_id)
            yield link

    monkeypatch.setattr(audit, "chain", watched)
    first = checkpoints.take(filled, tmp_path, signer=signer)
    assert first is not None
    assert read == list(range(1, first.size + 1))
    assert checkpoints.take(filled, tmp_path, signer=signer) is None  # nothing was written since
    read.clear()
    audit.record(filled, actor="rita", action="case:view", subject="case/1")
    second = checkpoints.take(filled, tmp_path, signer=signer)
    assert second is not None
    assert read == [second.size]
    kept = tmp_path / checkpoints.RANGE
    of_second = json.loads(kept.read_text())
    assert len(of_second["hashes"]) == second.size.bit_count()
    for spoiled in ("", json.dumps({**of_second, "hashes": ["00" * 32] * second.size.bit_count()})):
        kept.write_text(spoiled)  # what was kept is not believed, only what was signed
        for file in checkpoints.files(tmp_path)[2:]:
            file.unlink()
        read.clear()
        audit.record(filled, actor="rita", action="case:view", subject="case/1")
        third = checkpoints.take(filled, tmp_path, signer=signer)
        assert third is not None
        assert len(read) == third.size
    assert damaged(filled, tmp_path, signer) == {}


def test_a_forged_checkpoint_is_named(filled: Connection, tmp_path: Path, signer: Signer) -> None:
    made = checkpoints.take(filled, tmp_path / "c", signer=signer)
    assert made is not None
    (file,) = checkpoints.files(tmp_path / "c")
    whole = file.read_text(encoding="utf-8")
    other = notes.signer_at(tmp_path / "other.key")
    for forged, says in (
        (whole.replace(f"\n{made.size}\n", f"\n{made.size - 1}\n"), "does not fit its text"),
        (other.sign(made), "has no signature by"),
        ("", "has no signature by"),
    ):
        file.write_text(forged, encoding="utf-8")
        assert says in damaged(filled, tmp_path / "c", signer)["checkpoints"]
        with pytest.raises(NoteRefused, match=says):
            checkpoints.take(filled, tmp_path / "c", signer=signer)
    file.write_text(whole, encoding="utf-8")
    file.rename(file.with_name("000000000001.checkpoint"))
    assert "under another name" in damaged(filled, tmp_path / "c", signer)["checkpoints"]


def test_an_old_trail_without_any_checkpoint_is_damage(filled: Connection, tmp_path: Path, signer: Signer) -> None:
    assert findings(filled, tmp_path, signer)["checkpoints"].state == "skipped"  # a young one may have none yet
    tamper(filled, "UPDATE audit_events SET at = at - interval '1 day'")
    rechain(filled)
    assert "there is none in" in damaged(filled, tmp_path, signer)["checkpoints"]


def test_an_event_names_the_old_digest_and_the_new(db: Connection) -> None:
    case = factories.case(db, factories.line(db))
    reader = factories.user(db, "submitter")
    first = factories.confirmation(db, case, actor=reader)
    second = factories.confirmation(db, case, actor=reader, supersedes=first.confirmation_id)
    said = {event.details.get("row"): event.details for event in audit.list_events(db, subject=f"case/{case.case_id}")}
    of_first, of_second = (said[f"confirmations/{one.confirmation_id}"] for one in (first, second))
    assert "old_digest" not in of_first
    assert of_second["old_digest"] == of_first["new_digest"] != of_second["new_digest"]


def test_a_key_is_its_owners_alone_and_made_once(tmp_path: Path) -> None:
    made = notes.signer_at(tmp_path / "home" / "checkpoint.key")
    again = notes.signer_at(tmp_path / "home" / "checkpoint.key")
    assert again.verifier == made.verifier
    assert (tmp_path / "home" / "checkpoint.key").stat().st_mode & 0o777 == 0o600
    public = notes.verifier_path(tmp_path / "home" / "checkpoint.key").read_text()
    assert notes.Verifier.parse(public) == made.verifier
    with pytest.raises(NoteRefused, match="part of it was changed"):
        notes.Verifier.parse(public.replace("overread/", "overreaD/"))
    (tmp_path / "bad").write_text("not a key")
    with pytest.raises(NoteRefused, match="restore it from a backup"):
        notes.signer_at(tmp_path / "bad")


def test_a_note_of_the_specification_is_read() -> None:
    # Key and note of golang.org/x/mod/sumdb/note, which signed-note grew out of.
    verifier = notes.Verifier.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    note = (
        "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    with pytest.raises(NoteRefused, match="signed, but no checkpoint"):  # the signature holds
        verifier.opened(note)
    with pytest.raises(NoteRefused, match="does not fit its text"):
        verifier.opened(note.replace("answer", "anzwer"))
