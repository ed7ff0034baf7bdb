"""Flipped labels of one submitter go the same way as good ones, and are stopped; the champion stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from api.cli.story import Story


@pytest.mark.timeout(1200)
def test_a_worse_candidate_is_stopped(tell: Callable[..., Story]) -> None:
    story = tell("poison")
    champion = story.learn_until_shown(320, "pacs-north")[-1].candidate
    story.sign_and_promote(champion)

    worse = story.learn(story.confirm_batch(240, "pacs-east", flipped=True))

    assert worse.report["verdict"] == "fail"
    failed = {row["name"]: row["reason"] for row in worse.missed if row["verdict"] == "fail"}
    assert "pacs-east" in failed["submitters"]
    path = f"/v1/candidates/{worse.candidate['candidate_id']}"
    for person in ("anna", "ben"):
        signed = story.doors[person].approve(worse.candidate["candidate_id"], reason="hurry")
        assert signed.status_code == 409, signed.text
        expected = {"expected_champion": champion["candidate_id"], "reason": "hurry"}
        promoted = story.doors[person].request("POST", f"{path}/promotion", json=expected)
        assert promoted.status_code == 409, promoted.text
    assert story.doors["rita"].get(f"/v1/lines/{story.line}")["champion"]["candidate_id"] == champion["candidate_id"]
    assert story.predict().json()["weights_digest"] == champion["weights_digest"]
