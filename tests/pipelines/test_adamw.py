"""The optimiser: the same bits as torch's own, and none of what torch's own brings along."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from pipelines.adamw import AdamW

STEPS = """
import sys, torch
from torch import nn
from pipelines.adamw import AdamW
module = nn.Linear(4, 2)
optimiser = AdamW(module.parameters(), weight_decay=0.1)
module(torch.ones(3, 4)).sum().backward()
optimiser.step(learning_rate=0.1)
print("torch._dynamo" in sys.modules)
"""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 3), nn.Linear(3, 2))
    made[3].requires_grad_(requires_grad=False)  # a part that is not trained
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def test_ten_steps_end_with_the_bits_of_torch() -> None:
    ours, theirs = network(), network()
    optimiser = AdamW(ours.parameters(), weight_decay=0.05)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1.0, weight_decay=0.05, fused=True)
    for step in range(10):
        images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        rate = 0.01 / (step + 1)
        optimiser.zero_grad()
        ours(images).square().sum().backward()
        optimiser.step(learning_rate=rate)
        reference.zero_grad()
        reference.param_groups[0]["lr"] = rate
        theirs(images).square().sum().backward()
        reference.step()
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, its)
    expected = reference.state_dict()["state"]
    assert set(optimiser.state) == set(expected) == {0, 1, 2, 3}
    for place, moments in expected.items():
        assert {name: torch.equal(tensor, optimiser.state[place][name]) for name, tensor in moments.items()} == {
            "step": True,
            "exp_avg": True,
            "exp_avg_sq": True,
        }


def test_a_step_does_not_wait_for_torchs_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
