"""What is corrected, taken back or adjudicated is so in the next dataset version, and the difference says which."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from api.cli.story import Story


@pytest.mark.timeout(1200)
def test_a_correction_reaches_the_next_version(tell: Callable[..., Story]) -> None:
    story = tell("correct", triggers={"new_confirmations": 160}, recipe={"epochs": 1}, data_quality=None)
    story.confirm_batch(160, "pacs-north")
    frozen(story, number=1)
    corrected, taken_back, doubted, settled = cases_of(story)[:4]

    said = confirmation_of(story, corrected)
    confirm(story, corrected, finding=other(said["finding"]), supersedes=said["confirmation_id"])
    wrong = confirmation_of(story, taken_back)
    change(story, "pacs-north", f"/v1/confirmations/{wrong['confirmation_id']}/retraction", reason="another patient")
    for case_id in (doubted, settled):
        doubt = other(confirmation_of(story, case_id)["finding"])
        confirm(story, case_id, finding=doubt, reader="reader-of-the-second-look")
    queue = story.doors["rita"].get(f"/v1/lines/{story.line}/discordances")
    assert {row["case_id"] for row in queue} == {doubted, settled}
    seen = story.doors["rita"].get(f"/v1/cases/{settled}")["confirmations"]
    answer = other(seen[0]["finding"])
    last = max(row["confirmation_id"] for row in seen)
    change(
        story,
        "rita",
        f"/v1/cases/{settled}/adjudications",
        finding=answer,
        ai_exposure="blind",
        last_seen=last,
        reason="the lateral view shows it",
    )

    story.doors["rita"].post(f"/v1/lines/{story.line}/runs", json={"reason": "corrections"})
    frozen(story, number=2)
    found = difference(story)
    assert found["changes"] == {"left": 2, "other finding": 2}
    changed = {case["case_id"]: case["is"] for cases in found["cases"].values() for case in cases}
    assert changed[corrected].startswith(other(said["finding"]))
    assert changed[taken_back].startswith("waiting: no confirmation stands")
    assert changed[doubted].startswith("waiting: discordant")
    assert changed[settled].startswith(answer)
    versions = story.doors["rita"].get(f"/v1/lines/{story.line}/dataset-versions")
    old, new = sorted((row["manifest"] for row in versions), key=lambda row: row["number"])
    assert old["shards"] == new["shards"]  # labels changed, and no pixel was written again


def cases_of(story: Story) -> list[int]:
    rows = story.doors["rita"].get("/v1/cases", line=story.line, limit=200)
    return sorted(row["case_id"] for row in rows)


def confirmation_of(story: Story, case_id: int) -> dict[str, Any]:
    (said,) = story.doors["rita"].get(f"/v1/cases/{case_id}")["confirmations"]
    return dict(said)


def confirm(story: Story, case_id: int, *, finding: str, **said: object) -> None:
    told = {"evidence": "single_read", "ai_exposure": "blind", "reader": "reader-north"} | said
    change(story, "pacs-north", f"/v1/cases/{case_id}/confirmations", finding=finding, **told)


def change(story: Story, who: str, path: str, **body: object) -> None:
    story.doors[who].post(path, json=body, headers={"Idempotency-Key": str(uuid.uuid4())})


def other(finding: str) -> str:
    return "normal" if finding == "pneumonia" else "pneumonia"


def frozen(story: Story, *, number: int) -> None:
    """Wait until a version is there, and let its training go: nobody needs that model."""
    reviewer = story.doors["rita"]
    path = f"/v1/lines/{story.line}"
    story.wait(f"dataset version {number}", lambda: len(reviewer.get(f"{path}/dataset-versions")) == number)
    run = reviewer.get(f"{path}/runs")[0]
    reviewer.request("POST", f"/v1/runs/{run['run_id']}/cancel")
    story.wait("the run to end", lambda: reviewer.get(f"/v1/runs/{run['run_id']}")["finished_at"])


def difference(story: Story) -> dict[str, Any]:
    command = [sys.executable, "-m", "api.cli", "dataset", "diff", story.line, "1", "2", "--json"]
    home = {"OVERREAD_HOME": str(story.stack.home)}
    done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
