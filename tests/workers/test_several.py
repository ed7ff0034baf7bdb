"""A line of several findings as the workers and the inference process handle it: learned from, gated, served."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pipelines import findings, images, synthetic
from pipelines.dataset import checkout, open_version
from registry import candidates, datasets, db, lines, runs, users
from tests import factories
from workers.inference import make_app
from workers.lease import Workshop
from workers.settings import WorkerSettings

from .conftest import state_of
from .lines import confirm_pictures, make_line, start_run, story, work

pytestmark = pytest.mark.usefixtures("at_hand")

CLASSES = synthetic.FINDINGS[1:]
FLOORS = {"floor": 0.05, "margin": 0.4}
ASKED: dict[str, Any] = {
    "task": "multilabel",
    "classes": list(CLASSES),
    "recipe": {"network": "small_cnn", "epochs": 4, "threads": 1, "strategy": "auto"},
    "gates": {
        "minimum_cases_per_class": 5,
        "auroc": FLOORS,
        "sensitivity": FLOORS,
        "specificity": FLOORS,
        "calibration": {"maximum_ece": 0.5, "margin": 0.4},
        "require_improvement": False,
    },
}


def confirm_plates(
    record: db.Connection, settings: WorkerSettings, *, line: lines.Line, person: users.User, count: int, seed: int
) -> None:
    """Submit and confirm plates; what is on them is said in any order."""
    pictures, present = synthetic.plates(count, rng=np.random.default_rng(seed))
    said = ["+".join(findings.joined(shown, CLASSES).split("+")[::-1]) for shown in present[:, 1:]]
    confirm_pictures(record, settings, line=line, person=person, pictures=pictures, said=said, seed=seed)


def learn(workshop: Workshop, record: db.Connection, line: lines.Line) -> candidates.Candidate:
    """Freeze, train and gate; returns the candidate."""
    run = start_run(record, line)
    work(workshop, record, "freeze_dataset", "train_candidate", "gate_candidate")
    assert state_of(record, "runs", run_id=run.run_id) == "finished", story(record)
    return next(made for made in candidates.list_candidates(record, line.line_id) if made.run_id == run.run_id)


def test_a_line_of_several_findings_goes_from_confirmations_to_a_champion_that_answers_and_its_update(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record, **ASKED)
    confirm_plates(record, settings, line=line, person=person, count=240, seed=0)
    candidate = learn(workshop, record, line)

    version = datasets.latest(record, line.line_id)
    assert version is not None
    assert set(version.manifest["counts"]["train"]) == {"ring", "no ring", "band", "no band"}
    frozen = open_version(
        checkout(settings.data_repository, line=line.name, number=1, into=settings.home / "seen", digest=version.digest)
    )
    assert frozen.labels.shape == (240, 2)
    assert {example.finding for example in frozen.examples()} == {"none_of_these", "ring", "band", "ring+band"}
    assert set(candidate.metadata["operating_points"]) == set(CLASSES)
    report = candidates.latest_report(record, candidate.candidate_id)
    assert report is not None
    assert report.verdict == "pass", report.text
    assert [row["finding"] for row in report.document["results"][2]["details"]["findings"]] == list(CLASSES)

    factories.signatures(record, candidate, [factories.user(record, "approver") for _ in range(2)])
    factories.promotion(record, candidate)
    record.commit()
    asyncio.run(_ask(settings, line=line, champion=candidate))

    confirm_plates(record, settings, line=line, person=person, count=100, seed=1)
    update = learn(workshop, record, line)
    assert update.metadata["strategy"] == "auto"
    assert update.metadata["started_from"] == "champion"
    report = candidates.latest_report(record, update.candidate_id)
    assert report is not None
    (harm,) = [row for row in report.document["results"] if row["name"] == "findings"]
    assert {row["finding"] for row in harm["details"]["tests"]} == set(CLASSES)
    assert runs.get(record, update.run_id).strategy == "auto"


async def _ask(settings: WorkerSettings, *, line: lines.Line, champion: candidates.Candidate) -> None:
    pictures, present = synthetic.plates(40, rng=np.random.default_rng(7))
    app = make_app(dataclasses.replace(settings, inference_token="t" * 32))
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://inference",
        headers={"Authorization": f"Bearer {'t' * 32}"},
    )
    async with app.router.lifespan_context(app), client:
        answers = []
        for picture in pictures:
            response = await client.post(f"/lines/{line.name}/predictions", content=images.npy_bytes(picture))
            assert response.status_code == 200, response.text
            answers.append(response.json())
        assert {answer["weights_digest"] for answer in answers} == {champion.weights_digest}
        scores = np.array([[answer["scores"][name] for name in CLASSES] for answer in answers])
        assert np.abs(scores.sum(axis=1) - 1.0).max() > 0.1
        for answer in answers:
            called = [answer["scores"][name] >= answer["operating_point"][name]["threshold"] for name in CLASSES]
            assert answer["decision"] == findings.joined(called, CLASSES)
            assert answer["threshold"] is None
        for k in range(2):
            here = present[:, k + 1]
            assert scores[here, k].mean() > scores[~here, k].mean()
        heat = await client.post(f"/lines/{line.name}/heat-map?finding=band", content=images.npy_bytes(pictures[0]))
        assert heat.status_code == 200, heat.text
        assert Image.open(io.BytesIO(heat.content)).size == (28, 28)
        none = await client.post(
            f"/lines/{line.name}/heat-map?finding=ring+band", content=images.npy_bytes(pictures[0])
        )
        assert (none.status_code, none.json()["code"]) == (422, "unknown-finding")
