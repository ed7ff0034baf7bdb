"""Two processes train one model, by torchrun, and half precision: what the weights then are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines import network, train
from pipelines.protocol import from_document
from pipelines.together import ALONE, Group
from tests.pipelines.hospital import ROOT
from tests.pipelines.toy import DOCUMENT, cases

FEW, TUNE = cases(32, seed=0), cases(32, seed=1)
SCRIPT = """
import json, sys
from pathlib import Path
from pipelines import network, together, train
from tests.pipelines.test_together import FEW, TUNE, protocol
home = Path(sys.argv[1])
with together.joined() as group:
    made = train.fit(
        FEW, TUNE, protocol=protocol(), strategy="full", seed=0, group=group, checkpoints=home / "checkpoints",
        tell=lambda row: print(json.dumps(row), flush=True),
    )
    (home / f"{group.rank}.safetensors").write_bytes(network.save_weights(made.module))
    (home / f"{group.rank}.json").write_text(json.dumps(made.metadata))
"""


class Killed(Exception):
    """Stands for a kill between two batches."""


def protocol(**recipe: object) -> train.Protocol:
    """The toy line, for one epoch of small batches."""
    return from_document({**DOCUMENT, "recipe": {"epochs": 1, "threads": 1, "batch_size": 16, **recipe}})


DIVERGING = """
import dataclasses, sys
from pathlib import Path
from pipelines import together, train
from tests.pipelines.test_together import FEW, TUNE, protocol
images = FEW.images.copy()
images[1] = 3e38  # of a batch of all cases in two parts, the second process has this one
with together.joined() as group:
    try:
        train.fit(
            dataclasses.replace(FEW, images=images), TUNE, protocol=protocol(batch_size=32, augment=False),
            strategy="full", seed=0, group=group,
        )
    except train.TrainingRefused as refused:
        Path(sys.argv[1], f"{group.rank}.txt").write_text(str(refused))
"""


def _by_two(script: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with `folder` as its argument in two processes, by torchrun."""
    (folder / "two.py").write_text(script)
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(folder / "two.py"), str(folder)),
        ],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_a_loss_that_is_no_number_in_one_process_ends_both_alike(tmp_path: Path) -> None:
    done = _by_two(DIVERGING, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert "diverged" in first


def test_two_processes_end_with_one_model_which_is_that_of_one_process_in_two_parts(tmp_path: Path) -> None:
    done = _by_two(SCRIPT, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [json.loads(row)["epoch"] for row in done.stdout.splitlines()] == [1]  # told once
    first, second = ((tmp_path / f"{rank}.safetensors").read_bytes() for rank in (0, 1))
    assert first == second
    metadata, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert metadata["operating_point"] == other["operating_point"]
    assert metadata["notes"] == ["2 processes shared each batch"]
    assert metadata["sample_gradients"] == 32

    alone = train.fit(FEW, TUNE, protocol=protocol(), strategy="full", seed=0, parts=2)
    together = load_file(tmp_path / "0.safetensors")
    for name, parameter in alone.module.named_parameters():
        assert torch.allclose(together[name], parameter, atol=2e-4), name


def test_the_parts_of_a_batch_are_dealt_out_once_each() -> None:
    parts = list(range(5))
    assert sorted(part for rank in range(3) for part in Group(rank=rank, size=3).mine(parts)) == parts
    assert Group(rank=2, size=3).mine([0, 1]) == []
    assert ALONE.mine(parts) == parts
    assert ALONE.first


def test_half_precision_is_another_run_that_repeats_itself_to_the_byte_also_when_killed(tmp_path: Path) -> None:
    half = protocol(precision="bfloat16", epochs=2)
    unbroken = train.fit(FEW, TUNE, protocol=half, strategy="full", seed=0)
    whole = train.fit(FEW, TUNE, protocol=protocol(epochs=2), strategy="full", seed=0)
    assert network.save_weights(unbroken.module) != network.save_weights(whole.module)
    assert all(tensor.dtype == torch.float32 for tensor in unbroken.module.parameters())
    near = zip(unbroken.module.parameters(), whole.module.parameters(), strict=True)
    assert all(torch.allclose(mine, theirs, atol=0.05) for mine, theirs in near)
    left = iter(range(3))

    def kill() -> None:
        if next(left, None) is None:
            raise Killed

    with pytest.raises(Killed):
        train.fit(FEW, TUNE, protocol=half, strategy="full", seed=0, checkpoints=tmp_path, keep_going=kill)
    resumed = train.fit(FEW, TUNE, protocol=half, strategy="full", seed=0, checkpoints=tmp_path)
    assert network.save_weights(resumed.module) == network.save_weights(unbroken.module)
