"""Confirmed chest X-rays in, an approved better model out: the journey everything else stands on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from api.cli.story import Story


@pytest.mark.timeout(420)
def test_the_loop_closes(tell: Callable[..., Story], tmp_path: Path) -> None:
    story = tell("loop")

    first, report, _ = story.learn(story.confirm_batch(240, "pacs-north"))
    assert report["verdict"] == "pass", report["text"]
    assert report["document"]["champion_digest"] is None
    story.sign_and_promote(first)
    assert story.predict().json()["weights_digest"] == first["weights_digest"]

    better, report, seconds = story.learn(story.confirm_batch(660, ["pacs-north", "pacs-south"]))
    assert report["verdict"] == "pass", report["text"]
    assert report["document"]["champion_digest"] == first["weights_digest"]
    improvement = next(row for row in report["document"]["results"] if row["name"] == "improvement")
    assert improvement["difference"]["low"] > 0.0
    story.sign_and_promote(better)

    answer = story.predict().json()
    assert answer["weights_digest"] == better["weights_digest"] != first["weights_digest"]
    assert sum(answer["scores"].values()) == pytest.approx(1.0, abs=1e-4)
    assert seconds < 180

    an_outsider_gets_the_same_dataset_version(story, tmp_path)
    the_record_tells_the_story(story, better["candidate_id"])


def an_outsider_gets_the_same_dataset_version(story: Story, tmp_path: Path) -> None:
    versions = story.doors["rita"].get(f"/v1/lines/{story.line}/dataset-versions")
    newest = max(versions, key=lambda version: version["number"])
    repository = story.stack.home / "data-repository"
    command = [
        "get",
        str(repository),
        f"{story.line}/labels.parquet",
        "--rev",
        newest["git_tag"],
        "-o",
        str(tmp_path / "labels.parquet"),
    ]
    subprocess.run([sys.executable, "-m", "dvc", *command], check=True, capture_output=True)
    labels = pq.read_table(tmp_path / "labels.parquet")
    counts = newest["manifest"]["counts"]
    assert labels.num_rows == sum(sum(by_class.values()) for by_class in counts.values()) == 900
    assert set(labels["split"].to_pylist()) == {"train", "tune", "sealed_test"}


def the_record_tells_the_story(story: Story, champion_id: int) -> None:
    promotions = story.doors["rita"].get(f"/v1/lines/{story.line}/promotions")
    standing = [promotion for promotion in promotions if promotion["ended_at"] is None]
    assert [promotion["candidate_id"] for promotion in standing] == [champion_id]
    signatures = story.doors["rita"].get(f"/v1/candidates/{champion_id}/approvals")
    assert {signature["printed_name"] for signature in signatures} == {
        "Dr Anna Approver, clinical safety",
        "Dr Ben Approver, radiology",
    }
