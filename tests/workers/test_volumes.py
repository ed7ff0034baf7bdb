"""Volumes as the workers and the inference process handle them: frozen, learned from, gated, scored, shown."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from pipelines import images, synthetic
from pipelines.dataset import checkout, open_version
from pipelines.protocol import InputSpec
from registry import candidates, datasets, db, runs
from tests.pipelines.test_volumes import enhanced, slices
from workers.inference import make_app
from workers.lease import Workshop
from workers.settings import WorkerSettings

from .conftest import state_of
from .lines import confirm_pictures, crown, make_line, start_run, story, work

pytestmark = pytest.mark.usefixtures("at_hand")

SHAPE = (12, 16, 16)
ASKED: dict[str, Any] = {"input": {"depth": 12, "rows": 16, "columns": 16}}
HEADER = {
    "NumberOfFrames": 12,
    "SliceThickness_mm": 2.0,
    "PixelSpacingRows_mm": 0.5,
    "PixelSpacingColumns_mm": 0.5,
}


def test_a_line_of_volumes_is_frozen_trained_and_gated(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record, **ASKED)
    volumes, labels = synthetic.volumes(100, rng=np.random.default_rng(0), shape=SHAPE)
    said = [("normal", "pneumonia")[label] for label in labels]
    confirm_pictures(record, settings, line=line, person=person, pictures=volumes, said=said, attributes=HEADER)
    run = start_run(record, line)
    work(workshop, record, "freeze_dataset", "train_candidate", "gate_candidate")

    version = datasets.latest(record, line.line_id)
    assert version is not None, story(record)
    frozen = open_version(
        checkout(settings.data_repository, line=line.name, number=1, into=settings.home / "seen", digest=version.digest)
    )
    assert {pixels.shape for pixels in frozen.images(range(5))} == {SHAPE}
    assert frozen.prepared(InputSpec(**ASKED["input"])).shape == (len(frozen), 1, *SHAPE)
    (candidate,) = candidates.list_candidates(record, line.line_id)
    assert candidate.metadata["architecture"]["depth"] == 12
    assert [row["epoch"] for row in runs.get(record, run.run_id).history] == [1, 2]
    report = candidates.latest_report(record, candidate.candidate_id)
    assert report is not None, story(record)
    assert report.document["candidate_digest"] == candidate.weights_digest
    assert state_of(record, "runs", run_id=run.run_id) == "finished"


def test_a_volume_is_decoded_in_the_jail_scored_and_shown_slice_by_slice(
    record: db.Connection, settings: WorkerSettings
) -> None:
    line, _ = make_line(record, **ASKED)
    champion = crown(record, settings, line, seed=2, **ASKED)
    pixels = slices()
    flat = images.png_bytes(np.zeros((28, 28), dtype=np.uint8))
    app = make_app(dataclasses.replace(settings, inference_token="t" * 32))

    async def ask() -> None:
        async with app.router.lifespan_context(app), _client(app) as client:
            decoded = await client.post("/decode?kind=volume", content=enhanced(pixels))
            assert decoded.status_code == 200, decoded.text
            assert np.load(io.BytesIO(decoded.content)).shape == SHAPE
            assert "Doe" not in decoded.headers["x-overread-attributes"]
            for kind, sent, code, words in (
                ("image", enhanced(pixels), "not-single-frame", "send one image"),
                ("volume", flat, "not-a-volume", "send a multi-frame DICOM"),
            ):
                refused = await client.post(f"/decode?kind={kind}", content=sent)
                assert (refused.status_code, refused.json()["code"]) == (422, code)
                assert words in refused.json()["message"]

            scored = await client.post(f"/lines/{line.name}/predictions", content=decoded.content)
            assert scored.status_code == 200, scored.text
            assert scored.json()["weights_digest"] == champion.weights_digest
            assert abs(sum(scored.json()["scores"].values()) - 1.0) < 1e-5
            wrong = await client.post(
                f"/lines/{line.name}/predictions", content=images.npy_bytes(np.zeros((16, 16), np.uint8))
            )
            assert (wrong.status_code, wrong.json()["code"]) == (422, "not-a-volume")

            drawn = {}
            for asked in ("", "&slice=0", "&slice=6", "&slice=11"):
                heat = await client.post(
                    f"/lines/{line.name}/heat-map?finding=pneumonia{asked}", content=decoded.content
                )
                assert heat.status_code == 200, heat.text
                assert Image.open(io.BytesIO(heat.content)).size == (16, 16)
                drawn[asked] = heat.content
            assert drawn[""] == drawn["&slice=6"]

    asyncio.run(ask())


def _client(app: FastAPI) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {'t' * 32}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://inference", headers=headers)
