"""What a trained model says of itself: metadata.json beside the weights, ours and those of a MONAI bundle.

Invariant: plain JSON, and all that is needed to use the weights: how to build the network, what it sees, how its
answers become probabilities and decisions, and how it came to be.

Reference: MONAI Bundle Specification, "metadata.json File": a MONAI user, or `monai.bundle`, reads from it what goes in
and what comes out of the network. Its `pred` is what `pipelines.predict.export` returns, calibration inside.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines import afterwards, beside, calibrate, network, ordinal, predict, several
from pipelines.network import Architecture
from pipelines.protocol import Protocol
from pipelines.strategies import Plan


def metadata(
    module: nn.Module,
    tune: tuple[NDArray[np.float32], NDArray[Any], NDArray[Any]],
    *,
    protocol: Protocol,
    architecture: Architecture,
    plan: Plan,
    train_labels: NDArray[Any],
    state: Mapping[str, bytes],
    made: Mapping[str, Any],
    champion: beside.Beside | None = None,
) -> dict[str, Any]:
    """Return the metadata of `module`; `made` says how it came to be.

    Temperature and operating point are fitted here, on `tune`: images (N, C, H, W), labels (N,) and sites (N,), the
    operating point beside a `champion` where the protocol asks for that.
    """
    images, labels, sites = tune
    shifts = protocol.recipe.test_time_shifts
    answers = predict.in_batches(predict.answering(module, test_time_shifts=shifts), images)  # (N, K)
    found: dict[str, Any] = {
        "schema_version": 1,
        "architecture": architecture.document(),
        "parameters": network.parameter_count(module),
        "classes": list(protocol.classes),
        "positive": protocol.positive,
        "ordinal": protocol.task == "ordinal",
        **({"several": True} if protocol.several else {}),
        **({"test_time_shifts": True} if shifts else {}),
        "input": protocol.input.model_dump(mode="json"),
        **_calibration(answers, labels, train_labels=train_labels, protocol=protocol),
        "operating_point": None,
        "protocol_digest": protocol.digest,
        "started_from": plan.start,
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "sample_gradients": plan.sample_gradients,
        "tune": {
            "auroc": asdict(afterwards.tune_auroc(answers, labels, protocol=protocol)),
            "log_loss": afterwards.tune_log_loss(answers, labels, sites).value,
            "n": len(labels),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "state": {name: network.digest_of_bytes(data) for name, data in state.items()},
        **made,
    }
    model = predict.Model(module, found)
    scores = model.scores(images)
    if protocol.task == "ordinal":
        kappa = ordinal.kappa_estimate(labels, model.decided(scores), grades=len(protocol.classes))
        found["tune"]["kappa"] = asdict(kappa)
    theirs, notes = beside.calls(champion, images, sites, protocol=protocol)
    found |= afterwards.decisions(scores, labels, sites, protocol=protocol, champion=theirs)
    if theirs is not None and champion is not None:
        found["beside_digest"] = champion.weights_digest
        notes += beside.losses(found)
    found["notes"] = [*found["notes"], *notes]
    return found | bundle(protocol, version=network.digest_of_bytes(network.save_weights(module))[:12])


def _calibration(
    answers: NDArray[np.float32], labels: NDArray[Any], *, train_labels: NDArray[Any], protocol: Protocol
) -> dict[str, Any]:
    """How logits become probabilities: `log_prior` are the classes' shares, or of several findings an offset each."""
    if protocol.several:
        temperature, offsets = several.fit_calibration(answers, labels)
        return {"temperature": temperature, "log_prior": offsets.tolist()}
    log_prior = calibrate.log_prior(train_labels, classes=len(protocol.classes))
    return {
        "temperature": calibrate.fit_temperature(answers, labels, log_prior=log_prior),
        "log_prior": log_prior.tolist(),
    }


def bundle(protocol: Protocol, *, version: str) -> dict[str, Any]:
    """Return the keys that a MONAI bundle's metadata.json has to have; `version` tells one model from another."""
    spec, classes = protocol.input, protocol.classes
    does = f"Finds {', '.join(classes)}, each by itself" if protocol.several else f"Tells {', '.join(classes)} apart"
    rule = "sigmoid" if protocol.several else "softmax"
    colours = ("red", "green", "blue") if spec.channels == 3 else ("grey, brighter is denser",)
    return {
        "version": version,
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": torch.__version__,
        "numpy_version": np.__version__,
        "required_packages_version": {"safetensors": importlib.metadata.version("safetensors")},
        "task": protocol.title,
        "description": (
            f"{does}. The weights are a safetensors state dictionary; the network's logits "
            f"become probabilities by {rule}(logits / temperature + log_prior)."
        ),
        "intended_use": protocol.intended_use.strip(),
        "authors": f"those who keep the line {protocol.line}",
        "copyright": f"those who keep the line {protocol.line}",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "n/a",
                    "num_channels": spec.channels,
                    "spatial_shape": list(spec.shape),
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(number): name for number, name in enumerate(colours)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "modality": "n/a",
                    "num_channels": len(classes),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(number): name for number, name in enumerate(classes)},
                }
            },
        },
    }
