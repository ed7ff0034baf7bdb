"""MLflow shows what the record says: against a real tracking server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from registry import mirror
from tests.api.service import free_port, wait_for

LINE = "cxr-pneumonia"

# MLflow says this of its own type hints when it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")


class _Tiny(torch.nn.Module):
    """Stands for an exported candidate: (N, 1, 16, 16) float32 -> (N, 2) probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.convolution(images)).relu().mean(dim=(2, 3))
        return torch.softmax(self.head(features), dim=1)


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process=server, log=folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=120)


@pytest.fixture(autouse=True)
def _no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def _log(tracking_uri: str, folder: Path, *, candidate: int, module: torch.nn.Module, digest: str = "0f0f") -> str:
    weights = folder / "0f0f"
    weights.write_bytes(b"the weights as safetensors")
    return mirror.log_candidate(
        tracking_uri,
        line=LINE,
        number=candidate,
        run_name=f"candidate {candidate}",
        params={"strategy": "replay", "epochs": 2},
        metrics_history=[
            {"epoch": 1, "epochs": 2, "loss": 0.7, "tune_auroc": 0.8, "note": "warm-up"},
            {"epoch": 2, "epochs": 2, "loss": 0.5, "tune_auroc": None},
        ],
        dataset={"name": f"{LINE}/v0001", "digest": "d" * 36, "counts": {"train": {"normal": 3}}},
        module=module,
        input_example=np.zeros((2, 1, 16, 16), dtype=np.float32),
        weights=weights,
        metadata={"temperature": 1.25},
        tags={"overread.candidate_id": str(candidate), "overread.weights_digest": digest},
    )


def test_the_champion_loads_without_pickle_and_answers_as_it_was_trained(tracking_uri: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    module = _Tiny().eval()
    version = _log(tracking_uri, tmp_path, candidate=1, module=module)
    mirror.set_aliases(tracking_uri, line=LINE, champion=version, previous=None, challenger=None)
    mlflow.set_tracking_uri(tracking_uri)
    loaded = mlflow.pytorch.load_model(f"models:/{LINE}@champion")
    images = torch.rand(7, 1, 16, 16)  # another batch size than the example's
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), module(images))


def test_a_candidate_is_shown_with_its_curves_data_and_weights(tracking_uri: str, tmp_path: Path) -> None:
    version = _log(tracking_uri, tmp_path, candidate=2, module=_Tiny().eval())
    client = mlflow.MlflowClient(tracking_uri)
    shown = client.get_model_version(LINE, version)
    assert shown.tags["overread.candidate_id"] == "2"
    run = client.get_run(shown.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"strategy": "replay", "epochs": "2"}
    assert [(point.step, point.value) for point in client.get_metric_history(shown.run_id, "loss")] == [
        (1, 0.7),
        (2, 0.5),
    ]
    assert set(run.data.metrics) == {"loss", "tune_auroc"}
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == (f"{LINE}/v0001", "d" * 36)
    assert {Path(item.path).name for item in client.list_artifacts(shown.run_id, "weights")} == {
        "weights.safetensors",
        "metadata.json",
    }


def test_showing_a_candidate_twice_makes_one_version(tracking_uri: str, tmp_path: Path) -> None:
    module = _Tiny().eval()
    versions = {_log(tracking_uri, tmp_path, candidate=3, module=module) for _ in range(2)}
    assert len(versions) == 1


def test_what_a_broken_attempt_left_is_replaced(tracking_uri: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(LINE)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(LINE)
    tags = {"overread.candidate_id": "4", "overread.weights_digest": "0f0f"}
    half = client.create_run(experiment_id, tags=tags).info.run_id
    version = _log(tracking_uri, tmp_path, candidate=4, module=_Tiny().eval())
    assert client.get_run(half).info.lifecycle_stage == "deleted"
    assert client.get_model_version(LINE, version).run_id != half


def test_aliases_follow_the_record_and_vanish_with_it(tracking_uri: str, tmp_path: Path) -> None:
    old, new = (_log(tracking_uri, tmp_path, candidate=number, module=_Tiny().eval()) for number in (5, 6))
    states: list[dict[str, Any]] = [
        {"champion": old, "previous": None, "challenger": new},
        {"champion": new, "previous": old, "challenger": None},
        {"champion": None, "previous": None, "challenger": None},
    ]
    for state in states:
        for _ in range(2):  # again changes nothing
            mirror.set_aliases(tracking_uri, line=LINE, **state)
        shown = mirror.read_aliases(tracking_uri, line=LINE)
        assert shown == {alias: version for alias, version in state.items() if version}


def test_a_line_mlflow_does_not_know_has_no_aliases(tracking_uri: str) -> None:
    assert mirror.read_aliases(tracking_uri, line="unknown-line") == {}


def test_an_example_of_one_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two images"):
        mirror.log_candidate(
            "http://127.0.0.1:9",
            line=LINE,
            number=1,
            run_name="x",
            params={},
            metrics_history=[],
            dataset={},
            module=_Tiny(),
            input_example=np.zeros((1, 1, 16, 16), dtype=np.float32),
            weights=tmp_path,
            metadata={},
            tags={},
        )


def test_a_lost_candidate_of_the_same_id_is_not_taken_for_the_one_of_now(tracking_uri: str, tmp_path: Path) -> None:
    lost = _log(tracking_uri, tmp_path, candidate=71, module=_Tiny().eval(), digest="a" * 64)
    restored = _log(tracking_uri, tmp_path, candidate=71, module=_Tiny().eval(), digest="b" * 64)
    assert restored != lost
    assert _log(tracking_uri, tmp_path, candidate=71, module=_Tiny().eval(), digest="b" * 64) == restored
