"""What MLflow shows of the record: a run, its curves, its data and its model for each candidate, and who is champion.

MLflow follows the record and never leads it: nothing here is read back to decide anything. A candidate becomes one
version of the registered model named after its line, found again by its id and digest, so mirroring twice makes one.
The model is an exported graph (`torch.export`, "pt2"), which loads without pickle:

    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false python -c \\
        "import mlflow; print(mlflow.pytorch.load_model('models:/cxr-pneumonia@champion'))"

Reference: MLflow 3, `mlflow.pytorch.log_model(serialization_format="pt2")`.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import RestException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch costs two seconds, and aliases are set without it
    import torch

ALIASES = ("champion", "previous", "challenger")
"""The roles MLflow shows. Stages are not used."""

CANDIDATE_TAG, WEIGHTS_TAG = "overread.candidate_id", "overread.weights_digest"
DATASET_DIGEST_LENGTH = 36
"""MLflow keeps no more of a dataset's digest; the whole one is in the tag `overread.dataset_digest`."""

_METRICS_PER_CALL = 500  # MLflow takes up to 1000


def log_candidate(
    tracking_uri: str,
    *,
    line: str,
    number: int,
    run_name: str,
    params: Mapping[str, Any],
    metrics_history: Sequence[Mapping[str, Any]],
    dataset: Mapping[str, Any],
    module: torch.nn.Module,
    input_example: NDArray[np.float32],
    weights: Path,
    metadata: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """Show a candidate in MLflow and return its model version; return the one there is if it is shown already.

    `metrics_history` has a row per `epoch`; its finite numbers become curves. `dataset` is {"name", "digest",
    "counts"}.
    `module` takes (N, C, H, W) float32 and must be exportable; `input_example` has N >= 2, because an exported graph
    keeps a dimension of one for ever. `tags` must hold `overread.candidate_id` and `overread.weights_digest`, which
    together name it for good. Raises mlflow's MlflowException.
    """
    import torch  # noqa: PLC0415 - heavy, and for this function alone

    if input_example.shape[0] < 2:
        raise ValueError("the input example needs two images or more, or the exported model takes exactly one")
    mlflow.set_tracking_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri)
    shown = _version_of(client, line, tags)
    if shown is not None:
        return shown
    experiment_id = mlflow.set_experiment(line).experiment_id
    _discard_halves(client, experiment_id, tags)
    with mlflow.start_run(run_name=run_name, tags=dict(tags)) as run:
        run_id = run.info.run_id
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
        curves = list(_curves(metrics_history))
        for start in range(0, len(curves), _METRICS_PER_CALL):
            client.log_batch(run_id, metrics=curves[start : start + _METRICS_PER_CALL])
        client.log_inputs(run_id, datasets=[_dataset_input(dataset)])
        client.log_dict(run_id, dict(metadata), "weights/metadata.json")
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / "weights.safetensors"  # blobs are named by digest; people look for this name
            shutil.copyfile(weights, named)
            client.log_artifact(run_id, str(named), "weights")
        logged = mlflow.pytorch.log_model(
            module,
            name="model",
            serialization_format="pt2",
            signature=_signature(module, input_example),
            input_example=input_example,
            # Given, because finding out by itself takes MLflow three times as long as all the rest.
            pip_requirements=[f"{package.__name__}=={package.__version__}" for package in (torch, np, mlflow)],
            metadata={"line": line, "number": number},
        )
    # Last, and with its tag in one step: a version that can be found is whole.
    version = mlflow.register_model(logged.model_uri, line, tags={**tags, "overread.number": str(number)})
    return str(version.version)


def set_aliases(
    tracking_uri: str, *, line: str, champion: str | None, previous: str | None, challenger: str | None
) -> None:
    """Let the three aliases of a line name these model versions, and nothing where None; leaves right ones alone."""
    client = mlflow.MlflowClient(tracking_uri)
    wanted = dict(zip(ALIASES, (champion, previous, challenger), strict=True))
    found = read_aliases(tracking_uri, line=line)
    for alias, version in wanted.items():
        if found.get(alias) == version:
            continue
        if version is None:
            client.delete_registered_model_alias(line, alias)
        else:
            client.set_registered_model_alias(line, alias, version)


def read_aliases(tracking_uri: str, *, line: str) -> dict[str, str]:
    """Return alias -> model version as MLflow shows them now; empty for a line it does not know."""
    client = mlflow.MlflowClient(tracking_uri)
    try:
        model = client.get_registered_model(line)
    except RestException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: str(version) for alias, version in model.aliases.items()}


def _version_of(client: Any, line: str, tags: Mapping[str, str]) -> str | None:
    found = client.search_model_versions(f"name = '{line}' AND {_identity('tag', tags)}")
    return str(min(found, key=lambda version: int(version.version)).version) if found else None


def _discard_halves(client: Any, experiment_id: str, tags: Mapping[str, str]) -> None:
    """Take away what an attempt left that died before it had a model version."""
    for run in client.search_runs([experiment_id], _identity("tags", tags)):
        client.delete_run(run.info.run_id)


def _identity(field: str, tags: Mapping[str, str]) -> str:
    """Name one candidate in MLflow's filter language: a restored record gives ids again that a lost candidate had."""
    return " AND ".join(f"{field}.`{name}` = '{tags[name]}'" for name in (CANDIDATE_TAG, WEIGHTS_TAG))


def _curves(history: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    now_milliseconds = int(time.time() * 1000)
    for position, row in enumerate(history):
        for key, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and key not in {"epoch", "epochs"} and math.isfinite(value):
                yield Metric(key, float(value), now_milliseconds, int(row.get("epoch", position)))


def _dataset_input(dataset: Mapping[str, Any]) -> DatasetInput:
    return DatasetInput(
        dataset=Dataset(
            name=dataset["name"],
            digest=dataset["digest"][:DATASET_DIGEST_LENGTH],
            source_type="dvc",
            source=json.dumps({"git_tag": dataset["name"]}),
            profile=json.dumps(dataset["counts"]),
        ),
        tags=[InputTag("mlflow.data.context", "training")],
    )


def _signature(module: torch.nn.Module, example: NDArray[np.float32]) -> ModelSignature:
    import torch  # noqa: PLC0415 - heavy, and for this function alone

    with torch.no_grad():
        scores = module(torch.from_numpy(example))
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *example.shape[1:]))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *scores.shape[1:]))]),
    )
