"""A patient is erased while the service runs: no bytes, no pseudonym, no row of any version leads to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from api.cli.story import Story
from tests.journeys.test_a_correction_reaches_the_next_version import frozen

PATIENT = 1707


@pytest.mark.timeout(1200)
def test_an_erased_patient_is_nowhere(tell: Callable[..., Story], tmp_path: Path) -> None:
    story = tell("erase", triggers={"new_confirmations": 160}, recipe={"epochs": 1}, data_quality=None)
    story._sent = 1700  # pictures that no other journey's line has
    story.confirm_batch(160, "pacs-north")
    frozen(story, number=1)
    sent = story.doors["rita"].get("/v1/cases", line=story.line, limit=200)
    case_id = next(row["case_id"] for row in sent if row["external_id"] == f"north-{PATIENT}")
    case = story.doors["rita"].get(f"/v1/cases/{case_id}")
    image, pseudonym = str(case["image_digest"]), str(case["patient"])
    assert overread(story, "dataset", "checkout", story.line, "1", "--into", str(tmp_path))["examples"] == 160
    assert case_id in rows(tmp_path / story.line / "v0001" / "cases")

    done = command(story, "erase", "--patient", f"patient-{PATIENT}", "--reason", "asked", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"{story.line}: dataset version 1, learned from this patient" in done.stdout + done.stderr

    refused = command(story, "dataset", "checkout", story.line, "1", "--into", str(tmp_path / "again"))
    assert refused.returncode != 0
    assert "erased" in refused.stderr
    story.doors["rita"].post(f"/v1/lines/{story.line}/runs", json={"reason": "without the erased patient"})
    frozen(story, number=2)
    overread(story, "dataset", "checkout", story.line, "2", "--into", str(tmp_path / "again"))
    assert len(rows(tmp_path / "again" / story.line / "v0002" / "cases")) == 159
    assert story.doors["rita"].get(f"/v1/cases/{case_id}")["patient"] is None
    assert holding(story.stack.home, image=image, pseudonym=pseudonym, case_id=case_id, line=story.line) == []


def rows(folder: Path) -> set[int]:
    return set(pq.read_table(folder).column("case_id").to_pylist())


def holding(home: Path, *, image: str, pseudonym: str, case_id: int, line: str) -> list[str]:
    """Name the files of the service that still hold the image, or a row of the case on this line."""
    found = [str(path) for path in (home / "blobs").rglob(image)]
    folders = ("data-repository", "dvc-remote", "checkouts", "jobs")
    for path in (path for folder in folders for path in (home / folder).rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            start = file.read(6)
        if start[:4] == b"PAR1":
            table = pq.read_table(path, partitioning=None)
            if {"case_id", "group"} <= set(table.column_names):
                named = zip(table.column("case_id").to_pylist(), table.column("group").to_pylist(), strict=True)
                found += [str(path)] if (case_id, f"patient:{pseudonym}") in set(named) else []
        elif start == b"ARROW1":
            digests = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("image_digest").to_pylist()
            found += [str(path)] if bytes.fromhex(image) in digests and line in str(path) else []
    return found


def command(story: Story, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OVERREAD_HOME": str(story.stack.home), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def overread(story: Story, *arguments: str) -> dict[str, object]:
    done = command(story, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer
