"""Whom a ranking asks: nobody whom no arm wants to hear."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from pipelines.arms import Shares

RANK = "import sys; from pipelines.worklist import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"


@pytest.mark.parametrize("champion", [None, {"weights": "nowhere", "weights_digest": "0" * 64, "metadata": {}}])
def test_a_ranking_that_asks_no_model_does_not_wait_for_torch(tmp_path: Path, champion: object) -> None:
    row = {"site": "north", "age_days": 1.0, "scores": None}
    pool = [row | {"case_id": case, "image_digest": f"{case:064x}", "lot": case / 10.0} for case in (1, 2, 3)]
    (tmp_path / "pool.ndjson").write_text("".join(json.dumps(case) + "\n" for case in pool))
    config = {
        "shares": asdict(Shares(random=0.5, coverage=0.5)),
        "blind_fraction": 0.0,
        "classes": ["normal", "pneumonia"],
        "confirmed": {"north": 2},
        "champion": champion,
        "challenger": None,
        "pool": str(tmp_path / "pool.ndjson"),
        "known": str(tmp_path / "known.ndjson"),
        "blobs": str(tmp_path),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = subprocess.run([sys.executable, "-c", RANK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]
    ranking = [json.loads(line) for line in (tmp_path / "ranking.ndjson").read_text().splitlines()]
    assert {listed["case_id"] for listed in ranking} == {1, 2, 3}
    assert json.loads((tmp_path / "result.json").read_text())["left_out"] == 0
