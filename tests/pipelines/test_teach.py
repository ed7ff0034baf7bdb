"""The champion as teacher."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines import teach
from pipelines.strategies import Teaching

IMAGES = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
HELD = torch.tensor([True, False, True, False, False, True])


class _Teacher(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([mean, 1.0 - mean], dim=1)


def _apart(logits: torch.Tensor, *, distance: str, held: torch.Tensor = HELD, weight: float = 1.0) -> torch.Tensor:
    teaching = Teaching(weight=weight, distance=distance, pools=(0,))  # type: ignore[arg-type]
    return teach.apart(logits, IMAGES, teacher=_Teacher(), columns=[0, 1], held=held, teaching=teaching)


def test_logits_are_apart_by_their_mean_square_on_the_held_cases_only() -> None:
    logits = _Teacher()(IMAGES)
    logits[~HELD] += 100.0
    assert _apart(logits, distance="logits").item() == 0.0
    logits[HELD] += 2.0
    assert _apart(logits, distance="logits", weight=0.5).item() == pytest.approx(2.0)


def test_answers_are_closest_where_they_are_the_teachers_own() -> None:
    own = _Teacher()(IMAGES).requires_grad_()
    loss = _apart(own, distance="answers")
    loss.backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    assert own.grad.abs().max() < 1e-6
    assert _apart(own.detach() * -1.0, distance="answers") > loss


def test_of_a_class_that_is_new_the_teacher_says_nothing() -> None:
    own = _Teacher()(IMAGES)
    grown = torch.stack([own[:, 0], torch.full((6,), 9.0), own[:, 1]], dim=1)
    teaching = Teaching(weight=1.0, distance="logits", pools=(0,))
    loss = teach.apart(grown, IMAGES, teacher=_Teacher(), columns=[0, 2], held=HELD, teaching=teaching)
    assert loss.item() == 0.0


def test_without_a_held_case_there_is_nothing_to_learn_from_the_teacher() -> None:
    assert _apart(_Teacher()(IMAGES), distance="answers", held=torch.zeros(6, dtype=torch.bool)).item() == 0.0
