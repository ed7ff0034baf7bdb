"""The gates as a job: a frozen version is learned from and gated in processes, and each answers in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import dataset, freezing, job, settling, synthetic
from pipelines.evaluate import gather
from pipelines.images import image_digest, npy_bytes
from pipelines.types import CaseId, Confirmation, ConfirmedCase, digest_of
from tests.forks import Forks
from tests.pipelines.test_gates import PROTOCOL


def _confirmed(n: int, blobs: Path) -> list[ConfirmedCase]:
    """Cases 1..n, read by north; every fifth read again, differently, as consensus by the board."""
    images, labels = synthetic.radiographs(n, rng=np.random.default_rng(7))
    cases = []
    for k, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        digest = image_digest(pixels)
        (blobs / digest[:2]).mkdir(parents=True, exist_ok=True)
        (blobs / digest[:2] / digest).write_bytes(npy_bytes(pixels))
        said: list[tuple[str, Any]] = [("north", "single_read")] + ([("board", "consensus")] if k % 5 == 0 else [])
        cases.append(
            ConfirmedCase(
                case_id=CaseId(k + 1),
                image_digest=digest,
                patient=f"p{k}",
                site="a",
                scanner=None,
                sex=None,
                age_band=None,
                confirmations=tuple(
                    Confirmation(
                        confirmation_id=10 * k + j,
                        finding=PROTOCOL.classes[int(label) if submitter == "board" or k % 5 else 1 - int(label)],
                        evidence=evidence,
                        ai_exposure="blind",
                        submitter=submitter,
                        reader="r",
                        confirmed_on="2026-03-02",
                    )
                    for j, (submitter, evidence) in enumerate(said)
                ),
            )
        )
    return cases


def test_freeze_train_and_gate_as_the_worker_runs_them(forks: Forks, tmp_path: Path) -> None:
    frozen = {"remote": str(tmp_path / "remote"), "line": "toy", "number": 1, "protocol": PROTOCOL}
    cases = _confirmed(240, tmp_path / "blobs")
    freezing.freeze(
        tmp_path / "repository",
        split_key=b"k" * 32,
        change=settling.Change(cases=lambda: cases, whole=True, last_confirmation_id=240),
        blobs=tmp_path / "blobs",
        **frozen,  # type: ignore[arg-type]
    )
    version = dataset.checkout(tmp_path / "repository", line="toy", number=1, into=tmp_path / "versions")
    config = {"dataset": str(version), "protocol": PROTOCOL.document()}
    trained = _job(
        forks, "train", tmp_path / "t", {**config, "strategy": "replay", "seed": 0, "base": None, "threads": 1}
    )
    rows = [json.loads(line) for line in (tmp_path / "t" / "progress.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["epochs"]) for row in rows] == [(k, 4) for k in range(1, 5)]
    assert json.loads((tmp_path / "t" / "metadata.json").read_text()) == trained["metadata"]
    assert _job(forks, "train", tmp_path / "t", None) == trained  # again in the same place: the same answer

    model = {name: trained[name] for name in ("weights", "weights_digest", "metadata")}
    decided = _job(forks, "gates", tmp_path / "g", {**config, "candidate": model, "champion": model})
    assert digest_of(decided["report"]) == decided["digest"]
    assert decided["verdict"] == decided["report"]["verdict"] == "fail"
    by_name = {row["name"]: row for row in decided["report"]["results"]}
    assert by_name["improvement"]["reason"] == "not better than the champion"
    assert by_name["leakage"]["verdict"] == "pass"
    assert "north contradicts stronger evidence" in by_name["submitters"]["reason"]
    assert decided["text"].startswith("Gate report · toy")
    assert set(decided["report"]["evidence"]) > {"roc", "changed"}

    before = _job(forks, "gates", tmp_path / "d", {**config, "candidate": model, "champion": model, "before_use": True})
    rows = {row["name"]: row for row in before["report"]["results"]}
    assert (before["verdict"], set(rows)) == ("fail", {"minimum_cases", "leakage", "submitters", "sealed_test"})
    assert rows["submitters"] == by_name["submitters"]
    assert set(before["report"]["evidence"]) == {"changed"}

    compared, _ = gather(version, protocol=PROTOCOL, candidate=model, champion=None, approved=[model])
    assert [earlier.digest for earlier in compared.approved] == [trained["weights_digest"]]
    assert (compared.approved[0].scores == compared.candidate.scores).all()
    assert set(compared.sealed.traits) == {"site", "scanner", "sex", "age_band"}
    assert set(compared.sealed.traits["site"].tolist()) == {"a"}
    reigning, _ = gather(version, protocol=PROTOCOL, candidate=model, champion=model, approved=[model])
    assert reigning.approved == ()  # the champion is compared with already

    tuned = {**model, "metadata": {**model["metadata"], "strategy": "finetune", "started_from": "champion"}}
    assert gather(version, protocol=PROTOCOL, candidate=tuned, champion=model)[0].fine_tuned
    other = {**model, "weights_digest": "0" * 64}
    with pytest.raises(job.Refused, match="cannot be loaded"):
        gather(version, protocol=PROTOCOL, candidate=other, champion=None)


def _job(forks: Forks, module: str, directory: Path, config: dict[str, Any] | None) -> Any:
    if config is not None:
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
    with (directory / "stderr.log").open("w+b") as stderr:
        code = forks.start(f"pipelines.{module}", directory, stderr=stderr).wait()
    assert code == 0, (directory / "stderr.log").read_text()
    return json.loads((directory / "result.json").read_text())
