"""Images as another hand and another machine would have taken them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines import augment, train
from pipelines.protocol import from_document
from pipelines.recipe import Recipe
from tests.pipelines.toy import DOCUMENT, cases

IMAGES = torch.rand(200, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.1


def _seen(*, share: float, seed: int = 1) -> torch.Tensor:
    return augment.another_scanner(IMAGES, generator=torch.Generator().manual_seed(seed), share=share)


def test_shape_and_range_stay_and_the_generator_alone_decides() -> None:
    seen = _seen(share=1.0)
    assert seen.shape == IMAGES.shape
    assert 0.0 <= seen.min() <= seen.max() <= 1.0
    assert torch.equal(seen, _seen(share=1.0))
    assert not torch.equal(seen, _seen(share=1.0, seed=2))


def test_the_share_that_is_not_shown_otherwise_is_left_alone() -> None:
    untouched = (_seen(share=0.3) == IMAGES).flatten(1).all(dim=1).float().mean().item()
    assert 0.6 < untouched < 0.8
    assert torch.equal(_seen(share=0.0), IMAGES)


def test_about_one_in_three_is_shown_black_for_white() -> None:
    seen = _seen(share=1.0)
    here, there = (part.flatten(1) - part.flatten(1).mean(dim=1, keepdim=True) for part in (IMAGES, seen))
    inverted = ((here * there).sum(dim=1) < 0.0).float().mean().item()
    assert 0.2 < inverted < 0.5


def test_odd_sides_and_colours_are_taken_too() -> None:
    images = torch.rand(4, 3, 31, 17)
    assert augment.another_scanner(images, generator=torch.Generator().manual_seed(0), share=1.0).shape == images.shape


def test_the_fewer_sites_there_are_the_more_machines_are_imagined() -> None:
    recipe = Recipe(randomise=0.1, randomise_one_site=0.5)
    assert [recipe.imagined(sites=sites) for sites in (0, 1, 2, 5, 40)] == [0.5, 0.5, 0.25, 0.1, 0.1]
    assert Recipe(randomise=0.3).imagined(sites=1) == 0.3


@pytest.mark.parametrize(("names", "share"), [(("a",), 0.5), (("a", "b"), 0.25)])
def test_a_training_imagines_as_many_as_its_sites_ask_for(
    names: tuple[str, ...], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def heard(images: torch.Tensor, *, generator: torch.Generator, share: float) -> torch.Tensor:
        asked.append(share)
        return images

    monkeypatch.setattr(augment, "another_scanner", heard)
    few, tune = cases(32, seed=0), cases(32, seed=1)
    few.sites[:] = np.resize(names, 32)
    recipe = {"epochs": 1, "threads": 1, "batch_size": 16, "randomise": 0.1, "randomise_one_site": 0.5}
    train.fit(few, tune, protocol=from_document({**DOCUMENT, "recipe": recipe}), strategy="full", seed=0)
    assert set(asked) == {share}
