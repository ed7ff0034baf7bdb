"""What a freeze published, verified byte by byte; and a damaged image, from its naming to its leaving out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from registry import blobs, cases, datasets, db, verify
from workers.lease import Workshop
from workers.settings import WorkerSettings
from workers.verify import check_datasets

from .lines import confirm_cases, make_line, start_run, work


def test_a_version_is_verified_file_by_file_and_an_image_damaged_at_rest_is_named_and_left_out(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=160)
    damaged = cases.list_cases(record, line_id=line.line_id, limit=10)[7]
    image = blobs.path_of(settings.blob_root, damaged.image_digest)
    image.write_bytes(image.read_bytes()[:-1])

    named = verify.check_blobs(record, root=settings.blob_root, tell=lambda _what, _done: None)
    assert named.detail.startswith(f"{image}, the image of case {damaged.case_id}, was altered")
    start_run(record, line)
    work(workshop, record, "freeze_dataset")
    version = datasets.latest(record, line.line_id)
    assert version is not None
    assert version.waiting == {"image unreadable": 1}
    assert version.manifest["examples"] == 159

    assert check_datasets(record, settings).detail == "1 versions, 2 files have their digests"
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"done": "1 of 1 dataset versions"}
    tag = version.git_tag
    stored = [path for path in Path(settings.dvc_remote).rglob("*") if path.is_file()]
    assert len(stored) == 4  # labels, confirmations, one shard, and the list of shards
    for path in stored:
        whole = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(whole[:-2] + b"??")
        found = check_datasets(record, settings)
        assert (found.state, found.detail.startswith(f"{tag}: ")) == ("damaged", True)
        assert str(path) in found.detail
        path.unlink()
        assert check_datasets(record, settings).state == "damaged"
        path.write_bytes(whole)
    assert check_datasets(record, settings).state == "fine"

    repository = settings.data_repository
    git = ["git", "-C", str(repository), "-c", "user.name=x", "-c", "user.email=x@localhost"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "another"], check=True)
    subprocess.run([*git, "tag", "-f", tag], check=True, capture_output=True)
    assert "its tag names commit" in check_datasets(record, settings).detail
    subprocess.run([*git, "tag", "-d", tag], check=True, capture_output=True)
    assert "is not in the data repository" in check_datasets(record, settings).detail


def test_the_doors_get_it_as_json_lines_from_a_process_of_its_own(settings: WorkerSettings) -> None:
    environment = {"OVERREAD_HOME": str(settings.home), "OVERREAD_DATABASE_URL": settings.database_url}
    environment |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "workers.verify"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    assert [(row["check"], row["state"]) for row in rows] == [("dataset files", "fine"), ("MLflow", "fine")]
    away = environment | {"OVERREAD_DATABASE_URL": "postgresql://127.0.0.1:9/none"}
    done = subprocess.run(command, env=away, capture_output=True, text=True, check=False)
    assert (done.returncode, "does not answer" in done.stderr) == (1, True)
    done = subprocess.run(
        command, env={"PYTHONPATH": environment["PYTHONPATH"]}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "OVERREAD_DATABASE_URL" in done.stderr) == (2, True)
