"""Elastic weight consolidation: what is measured is the Fisher information, and it holds what mattered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import nn

from pipelines import consolidate, network, predict, train
from pipelines.protocol import from_document
from tests.pipelines.toy import DOCUMENT, PROTOCOL, TRAIN, TUNE, cases

RECIPE = {"strategy": "ewc", "epochs": 8, "update_epochs": 6, "learning_rate": 0.01, "threads": 1}
EWC = from_document({**DOCUMENT, "recipe": RECIPE})


class Logistic(nn.Module):
    """Two logits of one pixel: (0, a x + b), whose Fisher information can be worked by hand."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([a])), nn.Parameter(torch.tensor([b]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images[:, 0, 0, 0]
        return torch.stack([torch.zeros_like(x), self.a * x + self.b], dim=1)


def test_the_fisher_information_is_that_of_a_logistic_regression() -> None:
    x = np.random.default_rng(0).random(4000, dtype=np.float32)
    data = consolidate.measure(Logistic(2.0, -1.0), x[:, None, None, None], cases=4000, seed=0, before={})
    found, p = load(data), 1.0 / (1.0 + np.exp(-(2.0 * x - 1.0)))
    assert float(found["b"]) == pytest.approx(np.sum(p * (1 - p)), rel=0.05)
    assert float(found["a"]) == pytest.approx(np.sum(p * (1 - p) * x**2), rel=0.08)


def test_it_is_scaled_to_the_cases_it_stands_for_and_added_to_what_was_before() -> None:
    images = np.random.default_rng(0).random((50, 1, 1, 1), dtype=np.float32)
    once = load(consolidate.measure(Logistic(1.0, 0.0), images, cases=50, seed=0, before={}))
    more = load(consolidate.measure(Logistic(1.0, 0.0), images, cases=500, seed=0, before=once))
    assert float(more["a"]) == pytest.approx(11 * float(once["a"]), rel=1e-5)


def test_the_pull_is_the_gradient_of_the_penalty() -> None:
    module = nn.Linear(3, 2)
    start = {name: torch.randn_like(value) for name, value in module.named_parameters()}
    fisher = {name: torch.rand_like(value) for name, value in module.named_parameters()}
    penalty = torch.stack(
        [(fisher[name] * (value - start[name]) ** 2).sum() for name, value in module.named_parameters()]
    ).sum()
    (0.5 * 0.7 * penalty).backward()  # type: ignore[no-untyped-call]
    wanted = {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}
    for value in module.parameters():
        value.grad = torch.zeros_like(value)
    consolidate.pull(module, back_to=start, fisher=fisher, weight=0.7)
    for name, value in module.named_parameters():
        assert value.grad == pytest.approx(wanted[name], abs=1e-6)


@pytest.fixture(scope="module")
def first() -> train.Trained:
    return train.fit(TRAIN, TUNE, protocol=EWC, strategy="full", seed=0)


def _base(trained: train.Trained, folder: Path, *, fisher: bool = True) -> train.Base:
    data = network.save_weights(trained.module)
    (folder / "weights").write_bytes(data)
    (folder / "fisher").write_bytes(trained.state["fisher"])
    return train.Base(
        weights=folder / "weights",
        weights_digest=network.digest_of_bytes(data),
        architecture=network.from_document(trained.metadata["architecture"]),
        dataset_number=1,
        fisher=folder / "fisher" if fisher else None,
        fisher_digest=network.digest_of_bytes(trained.state["fisher"]) if fisher else None,
    )


def _update(base: train.Base, **changes: Any) -> train.Trained:
    """An update on new cases alone, as an install that keeps no images has them."""
    values: dict[str, Any] = {"protocol": EWC, "strategy": "ewc", "seed": 0, **changes}
    return train.fit(cases(64, seed=3, since=2), TUNE, base=base, **values)


def test_a_line_whose_recipe_is_ewc_measures_it_with_every_model_and_no_other_line_does(first: train.Trained) -> None:
    assert first.metadata["state"]["fisher"] == network.digest_of_bytes(first.state["fisher"])
    assert load(first.state["fisher"]).keys() == dict(first.module.named_parameters()).keys()
    assert first.metadata["sample_gradients"] == 8 * 96 + 96
    assert train.fit(TRAIN, TUNE, protocol=PROTOCOL, strategy="full", seed=0).state == {}


def test_weights_that_mattered_stay_closer_to_the_champion_than_fine_tuning_leaves_them(
    first: train.Trained, tmp_path: Path
) -> None:
    base, fisher = _base(first, tmp_path), load(first.state["fisher"])
    apart = {}
    for strategy in ("ewc", "finetune"):
        update = _update(base, strategy=strategy)
        moved = zip(update.module.named_parameters(), first.module.parameters(), strict=True)
        apart[strategy] = sum(float((fisher[name] * (mine - old).detach() ** 2).sum()) for (name, mine), old in moved)
    assert apart["ewc"] < 0.8 * apart["finetune"]


def test_what_mattered_adds_up_from_update_to_update(first: train.Trained, tmp_path: Path) -> None:
    update = _update(_base(first, tmp_path))
    before, after = load(first.state["fisher"]), load(update.state["fisher"])
    assert all(bool((after[name] >= before[name]).all()) for name in before)


def test_a_champion_that_came_without_it_is_left_and_the_metadata_say_so(first: train.Trained, tmp_path: Path) -> None:
    update = _update(_base(first, tmp_path, fisher=False))
    assert update.metadata["started_from"] == "nothing"
    assert "was not measured" in update.metadata["notes"][0]
    assert "fisher" in update.state


def test_bytes_that_have_changed_are_refused(first: train.Trained, tmp_path: Path) -> None:
    base = _base(first, tmp_path)
    data = bytearray(first.state["fisher"])
    data[-1] ^= 1
    (tmp_path / "fisher").write_bytes(data)
    with pytest.raises(network.WeightsCorrupt, match="is not the expected"):
        _update(base)


def test_the_row_of_a_class_that_is_new_is_held_by_nothing(first: train.Trained, tmp_path: Path) -> None:
    three = from_document({**EWC.document(), "classes": ["normal", "effusion", "pneumonia"], "positive": "pneumonia"})
    base, like = _base(first, tmp_path), network.build(network.architecture_for(three))
    assert base.fisher is not None
    rows = network.head_of(base.architecture)
    found = consolidate.read(base.fisher, expected_digest=str(base.fisher_digest), like=like, head=rows, columns=[0, 2])
    head, known = list(found)[-1], load(first.state["fisher"])
    assert torch.equal(found[head][[0, 2]], known[head])
    assert float(found[head][1]) == 0.0
    new = cases(48, seed=3, since=2)
    third = train.Cases(
        images=np.concatenate([new.images, 1.0 - new.images]),
        labels=np.concatenate([new.labels * 2, np.ones_like(new.labels)]),
        sites=np.full(96, "a"),
        label_since=np.full(96, 2),
    )
    update = train.fit(third, third, protocol=three, strategy="ewc", seed=0, base=base)
    assert "head grew by effusion" in update.metadata["notes"][0]
    assert predict.Model(update.module, update.metadata).scores(third.images).shape == (96, 3)


def test_classes_in_another_order_keep_what_was_measured_of_each(first: train.Trained, tmp_path: Path) -> None:
    base, head = _base(first, tmp_path), network.head_of(_base(first, tmp_path).architecture)
    assert base.fisher is not None
    turned = consolidate.read(
        base.fisher,
        expected_digest=str(base.fisher_digest),
        like=network.build(base.architecture),
        head=head,
        columns=[1, 0],
    )
    known = load(first.state["fisher"])
    assert head
    assert all(torch.equal(turned[name], known[name].flip(0) if name in head else known[name]) for name in known)


class Idle(Logistic):
    """One parameter of it takes no part in any answer, as in MONAI's ViT."""

    def __init__(self) -> None:
        super().__init__(2.0, -1.0)
        self.idle = nn.Parameter(torch.ones(3))


def test_a_parameter_that_takes_no_part_is_measured_as_nought_and_left_alone() -> None:
    module = Idle()
    data = consolidate.measure(module, np.ones((2, 1, 1, 1), dtype=np.float32), cases=2, seed=0, before={})
    assert torch.equal(load(data)["idle"], torch.zeros(3))
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    module(torch.ones(2, 1, 1, 1)).sum().backward()
    consolidate.pull(module, back_to=start, fisher=load(data), weight=1.0)
    assert module.idle.grad is None


def test_a_damaged_measure_does_not_stop_a_training_from_nothing(first: train.Trained, tmp_path: Path) -> None:
    base = _base(first, tmp_path)
    assert base.fisher is not None
    base.fisher.write_bytes(b"damaged")
    few, tune = cases(16, seed=3), cases(16, seed=4)
    assert train.fit(few, tune, protocol=EWC, strategy="full", seed=0, base=base).state["fisher"]
    with pytest.raises(network.WeightsCorrupt):
        train.fit(cases(16, seed=3, since=2), tune, protocol=EWC, strategy="ewc", seed=0, base=base)
