"""Confirmed chest X-rays in, an approved better model out, and back again: the journey everything else stands on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from api.cli.story import Story


@pytest.mark.timeout(1200)
def test_the_loop_closes(tell: Callable[..., Story], tmp_path: Path) -> None:
    story = tell("loop")

    first = story.learn_until_shown(240, "pacs-north")[-1]
    assert first.report["document"]["champion_digest"] is None
    story.sign_and_promote(first.candidate)
    assert story.predict().json()["weights_digest"] == first.candidate["weights_digest"]

    better = story.learn_until_shown(800, "pacs-south")[-1]
    assert better.report["document"]["champion_digest"] == first.candidate["weights_digest"]
    improvement = next(row for row in better.results if row["name"] == "improvement")
    assert improvement["difference"]["low"] > 0.0
    story.sign_and_promote(better.candidate)

    answer = story.predict().json()
    assert answer["weights_digest"] == better.candidate["weights_digest"] != first.candidate["weights_digest"]
    assert sum(answer["scores"].values()) == pytest.approx(1.0, abs=1e-4)
    assert better.seconds_to_verdict < 600
    story.wait("MLflow's alias to follow", lambda: story.alias_follows(better.candidate))
    anyone_can_load_the_champion(story, better.candidate)
    an_outsider_gets_the_same_dataset_version(story, tmp_path)
    the_record_tells_the_story(story, better.candidate["candidate_id"])
    a_promotion_is_undone_in_one_step(story, wrong=better.candidate, before=first.candidate)


def anyone_can_load_the_champion(story: Story, champion: dict[str, Any]) -> None:
    script = (
        "import mlflow, torch\n"
        f"mlflow.set_tracking_uri({story.stack.environment['OVERREAD_MLFLOW_URL']!r})\n"
        f"model = mlflow.pytorch.load_model('models:/{story.line}@champion')\n"
        "print(model(torch.zeros(3, 1, 28, 28)).shape)"
    )
    safe = os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run([sys.executable, "-c", script], env=safe, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("torch.Size([3, 2])"), done.stderr


def an_outsider_gets_the_same_dataset_version(story: Story, tmp_path: Path) -> None:
    versions = story.doors["rita"].get(f"/v1/lines/{story.line}/dataset-versions")
    newest = max(versions, key=lambda version: version["number"])
    repository = story.stack.home / "data-repository"
    command = [
        "get",
        str(repository),
        f"{story.line}/cases",
        "--rev",
        newest["git_tag"],
        "-o",
        str(tmp_path / "cases"),
    ]
    subprocess.run([sys.executable, "-m", "dvc", *command], check=True, capture_output=True)
    table = pq.read_table(tmp_path / "cases")
    labels = table.filter(pc.is_null(table["waiting"]))  # a near copy of a case in another split waits
    counts = newest["manifest"]["counts"]
    assert labels.num_rows == sum(sum(by_class.values()) for by_class in counts.values()) >= 1000
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


def a_promotion_is_undone_in_one_step(story: Story, *, wrong: dict[str, Any], before: dict[str, Any]) -> None:
    path = f"/v1/lines/{story.line}/roll-back"
    stale = {"expected_champion": before["candidate_id"], "reason": "stale page"}
    assert story.doors["anna"].request("POST", path, json=stale).status_code == 409

    meant = {"expected_champion": wrong["candidate_id"], "reason": "false positives reported at Hospital South"}
    story.doors["anna"].post(path, json=meant)

    story.wait("the first model to serve again", lambda: story.serves(before))
    story.wait("MLflow's alias to go back", lambda: story.alias_follows(before))
    kinds = [promotion["kind"] for promotion in story.doors["rita"].get(f"/v1/lines/{story.line}/promotions")]
    assert sorted(kinds) == ["promotion", "promotion", "roll_back"]
