"""A promotion is undone in one step: the previous champion serves again, and the record keeps both moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from api.cli.story import Story


@pytest.mark.timeout(1200)
def test_roll_back(tell: Callable[..., Story]) -> None:
    gates = {"require_improvement": False, "auroc": {"floor": 0.7, "margin": 0.2}, "minimum_cases_per_class": 5}
    gates |= {name: {"floor": 0.1, "margin": 0.45} for name in ("sensitivity", "specificity")}
    gates["calibration"] = {"maximum_ece": 0.5, "margin": 0.45}
    story = tell("back", gates=gates, triggers={"new_confirmations": 100}, recipe={"strategy": "replay"})
    first = story.learn_until_shown(160, "pacs-north")[-1].candidate
    story.sign_and_promote(first)
    second = story.learn_until_shown(160, "pacs-north")[-1].candidate
    assert second["metadata"]["started_from"] == "champion"
    assert second["metadata"]["base_digest"] == first["weights_digest"]
    story.sign_and_promote(second)

    wrong = {"expected_champion": first["candidate_id"], "reason": "stale page"}
    path = f"/v1/lines/{story.line}/roll-back"
    assert story.doors["anna"].request("POST", path, json=wrong).status_code == 409

    right = {"expected_champion": second["candidate_id"], "reason": "false positives reported at Hospital South"}
    story.doors["anna"].post(path, json=right)

    story.wait("the first model to serve again", lambda: story.serves(first))
    story.wait("MLflow's alias to go back", lambda: story.alias_follows(first))
    kinds = [promotion["kind"] for promotion in story.doors["rita"].get(f"/v1/lines/{story.line}/promotions")]
    assert sorted(kinds) == ["promotion", "promotion", "roll_back"]
