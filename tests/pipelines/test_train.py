"""Training: it learns, it repeats itself to the byte, it survives being killed, and it says no in words."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import afterwards, calibrate, network, predict, train
from pipelines.metrics import auroc
from pipelines.protocol import Protocol, from_document
from tests.pipelines.toy import DOCUMENT, PROTOCOL, TRAIN, TUNE, cases, champion, joined
from tests.waiting import running, until


class Killed(Exception):
    """Stands for a kill between two batches."""


def _fit(**changes: Any) -> train.Trained:
    values: dict[str, Any] = {"protocol": PROTOCOL, "strategy": "full", "seed": 0, **changes}
    return train.fit(values.pop("cases", TRAIN), values.pop("tune", TUNE), **values)


@pytest.fixture(scope="module")
def trained() -> train.Trained:
    return _fit()


def test_it_learns_what_the_images_show() -> None:
    longer = from_document({**DOCUMENT, "recipe": {**DOCUMENT["recipe"], "epochs": 10}})
    trained = _fit(protocol=longer, cases=cases(300, seed=5))
    test = cases(200, seed=2)
    model = predict.Model(trained.module, trained.metadata)
    scores = model.scores(test.images)
    assert auroc(test.labels, scores[:, 1]) > 0.85
    assert np.mean(model.decided(scores) == test.labels) > 0.7
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


def test_the_same_inputs_give_the_same_weights_byte_for_byte(trained: train.Trained) -> None:
    torch.manual_seed(123)  # what the process did before does not matter
    assert network.save_weights(_fit().module) == network.save_weights(trained.module)
    assert network.save_weights(_fit(seed=1).module) != network.save_weights(trained.module)


@pytest.mark.parametrize("batches", [1, 7, 13])
def test_a_killed_run_ends_with_the_same_weights_as_an_unbroken_one(
    trained: train.Trained, tmp_path: Path, batches: int
) -> None:
    left = iter(range(batches))

    def kill() -> None:
        if next(left, None) is None:
            raise Killed

    with pytest.raises(Killed):
        _fit(checkpoints=tmp_path, keep_going=kill)
    resumed = _fit(checkpoints=tmp_path)
    assert network.save_weights(resumed.module) == network.save_weights(trained.module)
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3]
    assert resumed.metadata["operating_point"] == trained.metadata["operating_point"]


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ([0.50, 0.30, 0.34], 3),  # chance may have made the second look better: the later
        ([0.50, 0.30, 0.36], 2),  # it was better
        ([0.30, 0.34, 0.38], 2),  # measured against the best, not against the one before
        ([0.30, 0.36, 0.34], 3),
    ],
)
def test_the_epoch_is_the_last_that_chance_cannot_tell_from_the_best(
    losses: list[float], chosen: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def told(logits: object, *_: object) -> calibrate.LogLoss:
        return calibrate.LogLoss(losses[len(seen) % 3], 0.05)

    monkeypatch.setattr(afterwards, "tune_log_loss", told)
    averages: list[torch.nn.Module] = []
    scored = predict.in_batches
    monkeypatch.setattr(predict, "in_batches", lambda module, images: averages.append(module) or scored(module, images))

    def look(_row: object) -> None:
        seen.append({name: tensor.clone() for name, tensor in averages[-1].state_dict().items()})

    with pytest.raises(Killed):  # what is known of the epochs before comes back from the checkpoint
        _fit(checkpoints=tmp_path, tell=look, keep_going=lambda: _killed_after(seen, epochs=2))
    found = _fit(checkpoints=tmp_path, tell=look)
    assert found.metadata["chosen_epoch"] == chosen
    weights = found.module.state_dict()
    assert [all(torch.equal(weights[name], one[name]) for name in weights) for one in seen].index(True) == chosen - 1


def _killed_after(seen: list[Any], *, epochs: int) -> None:
    if len(seen) == epochs:
        raise Killed


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(trained: train.Trained, tmp_path: Path) -> None:
    _fit(checkpoints=tmp_path)
    kept = sorted(tmp_path.glob("*.safetensors"))
    assert len(kept) == 2
    data = bytearray(kept[-1].read_bytes())
    data[-1] ^= 1
    kept[-1].write_bytes(data)
    epochs: list[int] = []
    resumed = _fit(checkpoints=tmp_path, tell=lambda row: epochs.append(row["epoch"]))
    assert epochs == [3]
    assert network.save_weights(resumed.module) == network.save_weights(trained.module)


def test_the_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    _fit(checkpoints=tmp_path)
    epochs: list[int] = []
    _fit(checkpoints=tmp_path, seed=5, tell=lambda row: epochs.append(row["epoch"]))
    assert epochs == [1, 2, 3]


def test_replay_starts_from_the_champion(trained: train.Trained, tmp_path: Path) -> None:
    base = champion(trained, tmp_path)
    update = _fit(cases=joined(TRAIN, cases(32, seed=3, since=2)), strategy="replay", base=base)
    assert update.metadata["started_from"] == "champion"
    assert update.metadata["base_digest"] == base.weights_digest
    assert update.metadata["sample_gradients"] < trained.metadata["sample_gradients"]
    assert network.save_weights(update.module) != network.save_weights(trained.module)


def test_a_champion_with_other_classes_is_left_and_the_metadata_say_so(trained: train.Trained, tmp_path: Path) -> None:
    other = from_document({**DOCUMENT, "classes": ["healthy", "pneumonia"]})
    update = _fit(protocol=other, strategy="replay", base=champion(trained, tmp_path))
    assert update.metadata["started_from"] == "nothing"
    assert "other classes" in update.metadata["notes"][0]


def _three_classes() -> tuple[Protocol, train.Cases]:
    """The toy line with a third class between the two, and cases of it that are new."""
    protocol = from_document({**DOCUMENT, "classes": ["normal", "effusion", "pneumonia"], "positive": "pneumonia"})
    new = cases(32, seed=3, since=2)
    third = train.Cases(
        images=1.0 - new.images, labels=np.ones(32, dtype=np.int64), sites=new.sites, label_since=new.label_since
    )
    old = train.Cases(images=TRAIN.images, labels=TRAIN.labels * 2, sites=TRAIN.sites, label_since=TRAIN.label_since)
    return protocol, joined(old, third)


@pytest.mark.parametrize("strategy", ["replay", "derpp", "interpolate", "analytic"])
def test_a_champion_grows_a_row_of_its_head_for_a_class_that_is_new(
    trained: train.Trained, tmp_path: Path, strategy: str
) -> None:
    protocol, joined = _three_classes()
    update = _fit(protocol=protocol, cases=joined, tune=joined, strategy=strategy, base=champion(trained, tmp_path))
    assert update.metadata["started_from"] == "champion"
    assert "head grew by effusion" in update.metadata["notes"][0]
    assert predict.Model(update.module, update.metadata).scores(joined.images).shape == (128, 3)


def test_a_grown_head_says_of_the_old_classes_what_it_said(trained: train.Trained, tmp_path: Path) -> None:
    protocol, joined = _three_classes()
    base = champion(trained, tmp_path)
    grown = network.load_grown(
        base.weights, architecture=network.architecture_for(protocol), trained_as=base.architecture
    )
    before, after = (predict.in_batches(module, joined.images) for module in (trained.module, grown))
    assert after[:, [0, 2]] == pytest.approx(before, abs=1e-5)


def test_a_champion_whose_classes_are_put_in_another_order_says_of_each_what_it_said(
    trained: train.Trained, tmp_path: Path
) -> None:
    turned = from_document({**DOCUMENT, "classes": ["pneumonia", "normal"]})
    base = champion(trained, tmp_path)
    start = network.load_grown(
        base.weights, architecture=network.architecture_for(turned), trained_as=base.architecture
    )
    before, after = (predict.in_batches(module, TUNE.images) for module in (trained.module, start))
    assert after[:, ::-1] == pytest.approx(before, abs=1e-5)
    images, labels = cases(32, seed=3, since=2).images, 1 - cases(32, seed=3, since=2).labels
    new = train.Cases(images=images, labels=labels, sites=np.full(32, "a"), label_since=np.full(32, 2))
    tune = train.Cases(images=TUNE.images, labels=1 - TUNE.labels, sites=TUNE.sites, label_since=TUNE.label_since)
    update = train.fit(new, tune, protocol=turned, strategy="finetune", seed=0, base=base)
    assert update.metadata["notes"] == ["the champion's classes in another order"]


def test_runs_that_share_a_directory_leave_each_others_checkpoints_alone(tmp_path: Path) -> None:
    _fit(checkpoints=tmp_path)
    seen: list[Any] = []
    with pytest.raises(Killed):
        _fit(checkpoints=tmp_path, seed=5, tell=seen.append, keep_going=lambda: _killed_after(seen, epochs=1))
    for seed, left in ((5, [2, 3]), (0, [])):
        epochs: list[int] = []
        _fit(checkpoints=tmp_path, seed=seed, tell=lambda row, epochs=epochs: epochs.append(row["epoch"]))  # type: ignore[misc]
        assert epochs == left


@pytest.mark.parametrize("strategy", ["derpp", "lwf", "interpolate", "auto"])
def test_an_update_of_every_kind_repeats_itself_to_the_byte_also_when_killed(
    trained: train.Trained, tmp_path: Path, strategy: str
) -> None:
    update: dict[str, Any] = {
        "cases": joined(TRAIN, cases(32, seed=3, since=2)),
        "strategy": strategy,
        "base": champion(trained, tmp_path),
    }
    unbroken = _fit(**update)
    left = iter(range(3))

    def kill() -> None:
        if next(left, None) is None:
            raise Killed

    with pytest.raises(Killed):
        _fit(**update, checkpoints=tmp_path / "checkpoints", keep_going=kill)
    resumed = _fit(**update, checkpoints=tmp_path / "checkpoints")
    assert network.save_weights(resumed.module) == network.save_weights(unbroken.module)
    assert network.save_weights(unbroken.module) != network.save_weights(trained.module)


def test_analytic_changes_the_last_layer_only_and_learns_the_new_class(trained: train.Trained, tmp_path: Path) -> None:
    protocol, joined = _three_classes()
    update = _fit(protocol=protocol, cases=joined, tune=joined, strategy="analytic", base=champion(trained, tmp_path))
    before, after = trained.module.state_dict(), update.module.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == list(before)[-2:]
    scores = predict.Model(update.module, update.metadata).scores(joined.images)
    assert auroc(joined.labels == 1, scores[:, 1]) > 0.9
    assert update.metadata["sample_gradients"] == round(128 / 3)
    assert update.history == []


def test_half_the_way_back_is_closer_to_the_champion(trained: train.Trained, tmp_path: Path) -> None:
    base, both = champion(trained, tmp_path), joined(TRAIN, cases(32, seed=3, since=2))
    apart = {}
    for strategy in ("finetune", "interpolate"):
        update = _fit(cases=both, strategy=strategy, base=base)
        weights = zip(update.module.parameters(), trained.module.parameters(), strict=True)
        apart[strategy] = sum(float((mine - theirs).detach().abs().sum()) for mine, theirs in weights)
    assert apart["interpolate"] == pytest.approx(0.5 * apart["finetune"], rel=0.05)
    assert "0.5 of the candidate's weights" in update.metadata["notes"][-1]


def test_a_champion_whose_bytes_have_changed_is_refused(trained: train.Trained, tmp_path: Path) -> None:
    base = champion(trained, tmp_path)
    data = bytearray(base.weights.read_bytes())
    data[-1] ^= 1
    base.weights.write_bytes(data)
    with pytest.raises(network.WeightsCorrupt):
        _fit(cases=joined(TRAIN, cases(32, seed=3, since=2)), strategy="finetune", base=base)


def test_the_metadata_say_how_the_model_came_to_be_and_are_plain_json(trained: train.Trained) -> None:
    metadata = json.loads(json.dumps(trained.metadata, allow_nan=False))
    assert metadata["protocol_digest"] == PROTOCOL.digest
    assert metadata["epochs"] == 3
    assert metadata["sample_gradients"] == 3 * 96
    assert metadata["operating_point"]["chosen_on"] == "tune"
    assert metadata["log_prior"] == calibrate.log_prior(TRAIN.labels, classes=2).tolist()
    assert set(metadata["versions"]) == {"python", "torch", "numpy"}


def test_many_classes_in_colour_train_too() -> None:
    document = {**DOCUMENT, "classes": ["a", "b", "c"], "input": {"channels": 3, "rows": 32, "columns": 24}}
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = (rng.random((60, 3, 32, 24)) * 0.3 + labels[:, None, None, None] * 0.3).astype(np.float32)
    cases = train.Cases(images=images, labels=labels, sites=np.full(60, "a"), label_since=np.ones(60, dtype=np.int64))
    trained = _fit(protocol=from_document(document), cases=cases, tune=cases)
    assert trained.metadata["operating_point"] is None
    assert predict.Model(trained.module, trained.metadata).scores(images).shape == (60, 3)


@pytest.mark.parametrize("split", ["train", "tune"])
def test_a_split_without_one_of_the_classes_is_refused_in_words(split: str) -> None:
    one_sided = train.Cases(
        images=TRAIN.images, labels=np.ones_like(TRAIN.labels), sites=TRAIN.sites, label_since=TRAIN.label_since
    )
    cases = {"cases": one_sided} if split == "train" else {"tune": one_sided}
    with pytest.raises(train.TrainingRefused, match=f"{split} split has no case of normal"):
        _fit(**cases)


def test_a_loss_that_is_no_number_is_refused_in_words() -> None:
    wild = from_document({**DOCUMENT, "recipe": {**DOCUMENT["recipe"], "learning_rate": 1.0, "weight_decay": 1.0}})
    huge = train.Cases(
        images=TRAIN.images * np.float32(1e38), labels=TRAIN.labels, sites=TRAIN.sites, label_since=TRAIN.label_since
    )
    unaugmented = wild.model_copy(update={"recipe": wild.recipe.model_copy(update={"augment": False})})
    with pytest.raises(train.TrainingRefused, match=r"lower recipe\.learning_rate"):
        _fit(protocol=unaugmented, cases=huge)


def test_torch_is_left_as_it_was_found() -> None:
    def found() -> tuple[Any, ...]:
        torch_s = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.initial_seed()
        return (*torch_s, torch.utils.deterministic.fill_uninitialized_memory)

    before = found()
    assert isinstance(PROTOCOL, Protocol)
    _fit()
    assert found() == before


def test_an_orphan_stops_at_once() -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "child = 'import time; from pipelines import job; check = job.orphan_watch(); print(1, flush=True)\\n"
        "while True: check(); time.sleep(0.02)'\n"
        "shell = subprocess.Popen([sys.executable, '-c', child], stdout=subprocess.PIPE)\n"
        "shell.stdout.readline()\n"
        "print(shell.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    until(lambda: not running(child), what="the end of the orphan")
