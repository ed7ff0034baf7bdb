"""`overread verify` and `overread export`, run as people run them, against a real record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry import blobs, bundle, checkpoints, db, notes
from tests import factories
from tests.conftest import as_superuser

MRN = "MRN-0815-4711"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A record with three confirmed cases, its files and its checkpoint; no process runs but PostgreSQL."""

    home: Path
    database_url: str
    case_ids: tuple[int, ...]
    record: db.Connection

    def run(self, *arguments: str, database_url: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
        url = self.database_url if database_url is None else database_url
        environment |= {"OVERREAD_HOME": str(self.home), "OVERREAD_MLFLOW_URL": "http://127.0.0.1:9"}
        environment |= {"OVERREAD_DATABASE_URL": url} if url else {}
        command = [sys.executable, "-m", "api.cli", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)

    def verify(self, *arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
        done = self.run("verify", "--json", *arguments)
        rows = json.loads(done.stdout) if done.stdout else []
        return done.returncode, {row["check"]: (row["state"], row["detail"]) for row in rows}

    def tamper(self, *statements: str) -> None:
        self.record.execute("SET session_replication_role = replica")
        for table in ("audit_events", "confirmations"):
            self.record.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")  # type: ignore[call-overload]  # ours
        for statement in statements:
            assert self.record.execute(statement).rowcount > 0  # type: ignore[call-overload]  # a test's own
        self.record.commit()


@pytest.fixture
def service(fresh_database: str, tmp_path: Path) -> Iterator[Service]:
    with db.connect(as_superuser(fresh_database)) as record:
        line, reader = factories.line(record), factories.user(record, "submitter")
        cases = []
        for number in range(3):
            image = blobs.put(record, tmp_path / "blobs", b"pixels %d" % number, media_type="application/x-npy")
            case = factories.case(
                record, line, actor=reader, image_digest=image, patient="7d" * 32, external_id=f"{MRN}-{number}"
            )
            factories.confirmation(record, case, actor=reader)
            cases.append(case.case_id)
        record.commit()
        signer = notes.signer_at(tmp_path / "checkpoint.key")
        assert checkpoints.take(record, tmp_path / "checkpoints", signer=signer) is not None
        record.commit()
        yield Service(home=tmp_path, database_url=fresh_database, case_ids=tuple(cases), record=record)


def test_a_whole_record_exits_0_and_each_kind_of_damage_exits_2_by_name(service: Service, tmp_path: Path) -> None:
    code, found = service.verify()
    assert code == 0, found
    assert {name: state for name, (state, _) in found.items() if state != "fine"} == {}
    assert found["files"][1] == "3 images and weights have their digests"

    digest = next(path.name for path in (service.home / "blobs").rglob("*") if path.is_file())
    image = blobs.path_of(service.home / "blobs", digest)
    kept = image.read_bytes()
    image.write_bytes(kept[:-1])
    done = service.run("verify")
    assert done.returncode == 2
    assert f"{image}, the image of case" in done.stderr
    image.write_bytes(kept)

    service.tamper("UPDATE confirmations SET finding = 'pneumonia' WHERE confirmation_id = 2")
    code, found = service.verify()
    assert code == 2
    assert found["confirmations"][1].startswith("confirmations/2 is not what audit event")

    auditors = tmp_path / "auditor"  # a copy that was made while all was well
    auditors.mkdir()
    for file in checkpoints.files(service.home / "checkpoints"):
        (auditors / file.name).write_bytes(file.read_bytes())
        file.unlink()
    service.tamper(
        "UPDATE confirmations SET finding = 'normal' WHERE confirmation_id = 2",
        "DELETE FROM audit_events WHERE audit_event_id > 8",
        "DELETE FROM confirmations WHERE confirmation_id = 3",
    )
    code, found = service.verify()  # the row, its event and the checkpoint are gone: nothing is left that could tell
    assert (code, found["checkpoints"][0]) == (0, "skipped")
    code, found = service.verify("--checkpoints", str(auditors))
    assert code == 2
    assert found["checkpoints"][1].startswith("event 9 is missing: checkpoint 9 of ")


def test_what_cannot_be_checked_exits_1_and_says_what_to_do(service: Service) -> None:
    stopped = service.run("verify", database_url="")
    assert (stopped.returncode, "overread up" in stopped.stderr) == (1, True)
    away = service.run("verify", database_url="postgresql://127.0.0.1:9/none")
    assert (away.returncode, "does not answer" in away.stderr) == (1, True)
    notes.verifier_path(service.home / "checkpoint.key").unlink()
    keyless = service.run("verify")
    assert (keyless.returncode, "--key" in keyless.stderr) == (1, True)
    garbled = service.run("verify", "--key", "overread/x+00+00")
    assert (garbled.returncode, "Traceback" in garbled.stderr) == (1, False)


def test_an_export_proves_itself_without_the_service(service: Service, tmp_path: Path) -> None:
    case_id, file = service.case_ids[1], tmp_path / "case.tar"
    done = service.run("export", "--case", str(case_id), "--with-files", "--reason", "asked for", "-o", str(file))
    assert done.returncode == 0, done.stderr
    key = notes.verifier_path(service.home / "checkpoint.key").read_text().strip()
    assert key in done.stderr

    offline = Service(home=tmp_path / "nowhere", database_url="", case_ids=(), record=service.record)
    code, found = offline.verify(str(file), "--key", key)
    assert (code, {state for state, _ in found.values()}) == (0, {"fine"}), found
    assert found["events"][1] == "3 events lead to the signed root"  # submitted, confirmed, exported
    assert found["rows"][1] == "2 rows as their events recorded them"
    assert found["files"][1] == "1 of the 1 files that its rows name are in it, with their digests"

    content = file.read_bytes()
    assert MRN.encode() not in content
    (details,) = service.record.execute("SELECT details FROM audit_events WHERE action = 'export:case'").fetchone() or (
        {},
    )
    assert details["reason"] == "asked for"

    with tarfile.open(file) as packed:
        names = packed.getnames()
        events = packed.extractfile("events.jsonl")
        assert events is not None
        first: dict[str, Any] = json.loads(events.readline())
    assert names == ["checkpoint", "events.jsonl", f"files/{names[2][6:]}", "rows.jsonl"]
    assert first["text"].split("\x1f")[3] == "case:submit"

    for old, new, check in (
        (b"case:submit", b"case:admire", "events"),
        (b'\\"finding\\": \\"normal\\"', b'\\"finding\\": \\"abnorm\\"', "rows"),
        (b"pixels 1", b"pixels 2", "files"),
    ):
        assert old in content
        # Of a finding, the event has one and the row has one: the last one is the row's.
        at = content.rindex(old)
        forged = tmp_path / "forged.tar"
        forged.write_bytes(content[:at] + new + content[at + len(old) :])
        judged = bundle.check(forged, notes.Verifier.parse(key))
        assert [finding.check for finding in judged if finding.state == "damaged"] == [check]
    code, found = offline.verify(str(file), "--key", str(notes.signer_at(tmp_path / "another.key").verifier))
    assert (code, set(found)) == (2, {"checkpoint"})
    (tmp_path / "no.tar").write_text("no bundle")
    assert offline.verify(str(tmp_path / "no.tar"), "--key", key)[0] == 2
    assert offline.verify(str(tmp_path / "gone.tar"), "--key", key)[0] == 1


def test_an_export_of_the_same_record_is_the_same_file_and_an_unknown_one_is_refused(service: Service) -> None:
    signer = notes.signer_at(service.home / "checkpoint.key")
    note = checkpoints.files(service.home / "checkpoints")[-1].read_text()
    made = []
    for name in ("one.tar", "two.tar"):
        contents = bundle.of_case(service.record, service.case_ids[0], up_to=signer.verifier.opened(note).size)
        bundle.write(service.record, service.home / name, contents=contents, note=note, verifier=signer.verifier)
        made.append((service.home / name).read_bytes())
    assert made[0] == made[1]
    unknown = service.run("export", "--case", "999", "-o", str(service.home / "x.tar"))
    assert (unknown.returncode, "there is no case 999" in unknown.stderr) == (1, True)
    neither = service.run("export", "-o", str(service.home / "x.tar"))
    assert (neither.returncode, "--candidate" in neither.stderr) == (2, True)
    assert not (service.home / "x.tar").exists()


def test_a_candidates_export_holds_its_evidence(service: Service) -> None:
    line = factories.line(service.record)
    champion = factories.champion(service.record, line)
    service.record.commit()
    file = service.home / "candidate.tar"
    done = service.run("export", "--candidate", f"{line.name}/{champion.number}", "-o", str(file))
    assert done.returncode == 0, done.stderr
    with tarfile.open(file) as packed:
        member = packed.extractfile("rows.jsonl")
        assert member is not None
        rows = [json.loads(line)["row"].split("/")[0] for line in member.read().decode().splitlines()]
    assert sorted(set(rows)) == [
        "approvals",
        "candidates",
        "dataset_versions",
        "gate_reports",
        "promotions",
        "protocols",
        "sealed_test_uses",
    ]
    assert rows.count("approvals") == 2
    assert service.verify(str(file))[0] == 0
