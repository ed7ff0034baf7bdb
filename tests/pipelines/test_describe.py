"""What lies beside the weights can be read by MONAI's own tools, and is true of the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import describe, network
from pipelines.protocol import from_document
from tests.pipelines.toy import DOCUMENT

MANDATORY = (
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
)
"""Of a bundle's metadata.json, and of a tensor in it: MONAI Bundle Specification, "metadata.json File"."""
SPECIFIERS = {
    *("type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range"),
    *("is_patch_data", "channel_def"),
}


def _metadata(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata of an untrained network, and its architecture."""
    protocol = from_document({**DOCUMENT, **changes})
    architecture = network.architecture_for(protocol).document()
    return {"architecture": architecture, **describe.bundle(protocol, version="1")}, architecture


def test_every_key_that_a_bundle_has_to_have_is_there() -> None:
    metadata, _ = _metadata()
    assert [name for name in MANDATORY if not metadata[name]] == []
    tensors = [
        *metadata["network_data_format"]["inputs"].values(),
        *metadata["network_data_format"]["outputs"].values(),
    ]
    assert all(set(tensor) == SPECIFIERS for tensor in tensors)
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "normal", "1": "pneumonia"}


@pytest.mark.parametrize(
    "changes",
    [{}, {"classes": ["a", "b", "c"], "input": {"channels": 3, "rows": 32, "columns": 48}}, {"recipe": {"members": 2}}],
)
def test_monai_itself_finds_the_network_to_be_as_the_metadata_say(tmp_path: Path, changes: dict[str, Any]) -> None:
    bundle = network.monai("bundle")
    metadata, architecture = _metadata(**changes)
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    (tmp_path / "config.json").write_text(
        json.dumps({"network": {"_target_": "pipelines.network.build", "architecture": architecture}})
    )
    files = {"meta_file": str(tmp_path / "metadata.json"), "config_file": str(tmp_path / "config.json")}
    bundle.verify_net_in_out(net_id="network", device="cpu", **files)
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] += 1
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="doesn't match"):
        bundle.verify_net_in_out(net_id="network", device="cpu", **files)
