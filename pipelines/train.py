"""Train one candidate: the loop, top to bottom, from images to weights, temperature and operating point.

Invariant: the same inputs give the same weights, byte for byte, on the same CPU and torch, whether or not the run was
killed and resumed on the way. All randomness of an epoch comes from (seed, epoch), so a checkpoint holds no generator.
The sealed test never enters here; epoch, temperature and threshold are chosen on the tune split.

References: weight averaging, Izmailov et al., UAI 2018; the epoch within a standard error, Breiman et al. 1984. What
was tried, and what did not work, is in docs/learning-log.md.

    python -m pipelines.train JOB_DIR        # config.json in; weights.safetensors, metadata.json, result.json out
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines import (
    afterwards,
    augment,
    blend,
    budget,
    champion,
    checkpoint,
    consolidate,
    describe,
    initial,
    job,
    memory,
    network,
    optimisers,
    predict,
    repeatable,
    several,
    strategies,
    teach,
    together,
)
from pipelines.beside import Beside
from pipelines.champion import Base
from pipelines.dataset import DatasetVersion, open_version
from pipelines.findings import CARRIED
from pipelines.protocol import Protocol, from_document
from pipelines.quality import report_of
from pipelines.quality_report import QualityReport, render_text
from pipelines.together import ALONE, Group
from pipelines.types import Strategy, digest_of


class TrainingRefused(job.Refused):
    """Training cannot start, or went nowhere; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cases:
    """Cases of one split: what the network sees, and what is known of each."""

    images: NDArray[np.float32]
    """(N, C, rows, columns) in [0, 1]; volumes (N, 1, depth, rows, columns)."""
    labels: NDArray[Any]
    """(N,) int64 index into the protocol's classes; of several findings (N, K) bool, which are present."""
    sites: NDArray[Any]
    """(N,) text."""
    label_since: NDArray[np.int64]
    """(N,) number of the dataset version since which the case has this label."""
    weights: NDArray[np.float64] | None = None
    """(N,) in (0, 1]: how often a case is drawn beside others; None: all alike."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A candidate: network in eval mode on the CPU, the metadata to load it with, and the epochs it went through."""

    module: nn.Module
    metadata: dict[str, Any]
    history: list[dict[str, Any]]
    state: dict[str, bytes] = field(default_factory=dict)
    """What an update needs of it besides the weights, by name; the metadata have the digest of each."""


def fit(  # noqa: PLR0912, PLR0915 - one run, read from top to bottom
    train: Cases,
    tune: Cases,
    *,
    protocol: Protocol,
    strategy: Strategy,
    seed: int,
    base: Base | None = None,
    beside: Beside | None = None,
    threads: int | None = None,
    parts: int = 1,
    group: Group = ALONE,
    checkpoints: Path | None = None,
    dataset_digest: str | None = None,
    weights_folder: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
    tell: Callable[[dict[str, Any]], None] = lambda _row: None,
    keep_going: Callable[[], None] = lambda: None,
) -> Trained:
    """Train on `train`, choose on `tune`: the threshold `beside` the champion where the protocol says so.

    `threads` of the CPU (the recipe's if None) are part of the result: sums depend on them; so are the `parts` in which
    each batch goes through the network, for want of memory (`pipelines.memory`), and the `group` of processes that
    share them. `checkpoints` is a directory to resume from and to save each epoch to, `weights_folder` where the
    protocol's initial weights lie, and `clock` what seconds are read from. `tell` hears of each epoch; `keep_going` is
    called before each batch and raises to stop. Raises TrainingRefused where a class is missing or a loss not finite.
    """
    if protocol.several and strategy not in CARRIED:
        raise TrainingRefused(f"{strategy} cannot learn several findings: start a run by {', '.join(CARRIED)}")
    for cases, split in ((train, "train"), (tune, "tune")):
        _check(cases, split=split, protocol=protocol)
    recipe = protocol.recipe
    architecture = network.architecture_for(protocol)
    base, notes = champion.fitting(base, architecture=architecture, strategy=strategy)
    plan = strategies.plan(
        strategy,
        labels=train.labels,
        sites=train.sites,
        label_since=train.label_since,
        base_number=None if base is None else base.dataset_number,
        recipe=recipe,
        weights=train.weights,
    )
    plan = budget.affordable(plan, recipe=recipe)
    notes += champion.growth(base, architecture=architecture, plan=plan)
    notes += [f"memory ran out: each batch went through the network in {parts} parts"] if parts > 1 else []
    notes += [f"{group.size} processes shared each batch"] if group.size > 1 else []
    device = group.device
    with repeatable.on(threads or recipe.threads, device=device):
        module = champion.first_weights(architecture, plan=plan, base=base, seed=seed).to(device)
        if plan.start == "nothing":
            notes += initial.fill(module, recipe.initial_weights, folder=weights_folder)
        layout = torch.channels_last if architecture.depth is None else torch.channels_last_3d
        module = module.to(memory_format=layout)  # type: ignore[call-overload]  # a third faster on a CPU
        average = champion.first_weights(architecture, plan=plan, base=base, seed=seed).to(device).eval()
        average.load_state_dict(module.state_dict())
        columns = [] if base is None else [architecture.classes.index(name) for name in base.architecture.classes]
        apart = None
        if plan.teaching is not None and base is not None:
            teacher = champion.as_it_is(base).to(device)
            apart = partial(teach.apart, teacher=teacher, columns=columns, teaching=plan.teaching)
        fisher = afterwards.fisher_of(base, plan=plan, like=module, columns=columns)
        held_to = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        members = network.members_of(module)
        optimiser = optimisers.over(module, recipe=recipe)
        imagined = recipe.imagined(sites=len(np.unique(train.sites)))
        batches = [plan.draws * k // plan.batches for k in range(plan.batches + 1)]
        identity = digest_of(  # what has to be equal for a checkpoint to be of this very run
            {
                "protocol": protocol.digest,
                "dataset": dataset_digest,
                "strategy": strategy,
                "seed": seed,
                "base": None if base is None else base.weights_digest,
                "threads": threads or recipe.threads,
                "parts": [parts, group.size],
                "torch": torch.__version__,
                "device": device.type,
                "cases": [len(train.labels), len(tune.labels)],
            }
        )
        follow = blend.following(average, towards=module)
        state = checkpoint.State(module=module, average=average, optimiser=optimiser)
        if checkpoints is not None:
            state = checkpoint.load(state, directory=checkpoints, identity=identity)
        planned, plan = plan, budget.in_time(plan, state.history, recipe=recipe)
        while (epoch := state.epoch) < plan.epochs:
            begun = clock()
            rng = np.random.default_rng([seed, epoch])
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            torch.manual_seed(int(rng.integers(2**62)) + group.rank)  # dropout, in the networks that have it
            order = strategies.epoch_order(plan.pools, rng=rng)
            module.train()
            losses = []
            for k, (first, last) in enumerate(itertools.pairwise(batches)):
                keep_going()
                sys.audit("overread.fault", "training.step.before")
                rows = np.sort(order[first:last])  # a memory map is read forwards
                images = torch.from_numpy(np.array(train.images[rows]))  # (B, C, H, W)
                labels = torch.from_numpy(train.labels[rows])  # (B,), of several findings (B, K)
                if recipe.augment:
                    images = augment.acquisition(images, generator=generator)
                if imagined > 0.0:
                    images = augment.another_scanner(images, generator=generator, share=imagined)
                images = images.to(device, memory_format=layout)
                step = epoch * plan.batches + k
                for settings in optimiser.param_groups:
                    settings["lr"] = plan.learning_rate(step)
                optimiser.zero_grad(set_to_none=True)
                losses.append(0.0)
                mine = group.mine(memory.parts_of(len(rows), parts * group.size))
                for (part, share), member in itertools.product(mine, members):
                    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                        logits = member(images[part])  # (B, K)
                    logits = logits.float()
                    loss = teach.given(logits, labels[part].to(device))
                    if apart is not None:
                        held = torch.from_numpy(np.isin(rows, plan.taught)).to(device)  # (B,)
                        weight = float(held[part].sum() / held.sum().clamp(min=1)) / share
                        loss = loss + apart(logits, images[part], held=held[part], part_weight=weight)
                    (loss * share).backward()
                    losses[-1] += loss.item() * share / len(members)
                losses[-1] = group.add_up(module, losses[-1])
                if not np.isfinite(losses[-1]):  # looked at here, so that all processes end alike
                    raise _diverged(epoch)
                if plan.elastic is not None:
                    consolidate.pull(module, back_to=held_to, fisher=fisher, weight=plan.elastic)
                optimiser.step()
                follow(step, plan.batches * plan.epochs)

            answers = predict.in_batches(average, tune.images)  # (N, K)
            if not np.isfinite(answers).all():
                raise _diverged(epoch)
            tune_loss = afterwards.tune_log_loss(answers, tune.labels, tune.sites)
            seconds = {"seconds": round(group.of_the_first(clock() - begun), 3)}
            plan = budget.in_time(planned, [*state.history, seconds], recipe=recipe)
            row = {
                "epoch": epoch + 1,
                "epochs": plan.epochs,
                "loss": float(np.mean(losses)),
                "tune_auroc": afterwards.tune_auroc(answers, tune.labels, protocol=protocol).value,
                "tune_log_loss": tune_loss.value,
                **seconds,
            }
            ceiling = min(state.ceiling, sum(tune_loss))  # of two epochs that chance may tell apart, the later
            taken = tune_loss.value <= ceiling
            state = checkpoint.State(
                module=module,
                average=average,
                optimiser=optimiser,
                epoch=epoch + 1,
                chosen={name: value.clone() for name, value in average.state_dict().items()} if taken else state.chosen,
                chosen_epoch=epoch + 1 if taken else state.chosen_epoch,
                ceiling=ceiling,
                history=(*state.history, row),
            )
            if checkpoints is not None and group.first:
                checkpoint.save(state, directory=checkpoints, identity=identity)
            if group.first:
                tell(row)

        if state.chosen is not None:
            average.load_state_dict(state.chosen)
        notes += afterwards.finish(
            average,
            plan=plan,
            base=base,
            architecture=architecture,
            images=train.images,
            labels=train.labels,
            tune=(tune.images, tune.labels, tune.sites),
            seed=seed,
        )
        chosen = average.cpu().eval()
        left = afterwards.state(chosen, plan=plan, images=train.images, before=fisher, seed=seed)
        metadata = describe.metadata(
            chosen,
            (tune.images, tune.labels, tune.sites),
            protocol=protocol,
            architecture=architecture,
            plan=plan,
            train_labels=train.labels,
            state=left,
            champion=beside,
            made={
                "strategy": strategy,
                "seed": seed,
                "base_digest": None if base is None or plan.start == "nothing" else base.weights_digest,
                "dataset_digest": dataset_digest,
                "chosen_epoch": state.chosen_epoch,
                "seconds": round(sum(row["seconds"] for row in state.history), 3),
                "device": device.type,
                "threads": threads or recipe.threads,
                "notes": [*notes, *budget.note(planned, ended=plan, recipe=recipe), *plan.notes],
            },
        )
    return Trained(module=chosen, metadata=metadata, history=list(state.history), state=left)


def weights_of(version: DatasetVersion, *, protocol: Protocol) -> NDArray[np.float64]:
    """Return the weights (N,) in (0, 1] of a version's cases, by their evidence and AI exposure."""
    grounds = zip(version.evidences.tolist(), version.ai_exposures.tolist(), strict=True)
    return np.array([protocol.recipe.weights.of(evidence=one, ai_exposure=other) for one, other in grounds])


def main(arguments: list[str]) -> int:
    """Run the training that a job directory describes."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it to be deterministic on CUDA
    job.hide_pandas()
    with together.joined() as group:
        return job.run(arguments, work=partial(_work, group=group), writes=group.first)


def _work(directory: Path, config: dict[str, Any], *, group: Group = ALONE) -> dict[str, Any]:
    protocol = from_document(config["protocol"])
    version = open_version(Path(config["dataset"]))
    if (version.classes, version.several) != (protocol.classes, protocol.several):
        raise TrainingRefused("the dataset version has other classes than the protocol: freeze a new version")
    quality = _quality(version, config.get("previous_dataset"), protocol=protocol)
    if quality is not None and group.first:
        job.append_progress(directory, {"stage": f"the data: {quality.verdict}", "text": render_text(quality)})
    prepared = version.prepared(protocol.input)
    weights = weights_of(version, protocol=protocol)
    splits = [
        Cases(
            images=prepared[rows],
            labels=version.labels[rows],
            sites=version.sites[rows],
            label_since=version.label_since[rows],
            weights=weights[rows],
        )
        for rows in (version.indices("train"), version.indices("tune"))
    ]
    try:
        trained = memory.in_parts(
            lambda parts: fit(
                *splits,
                protocol=protocol,
                strategy=config["strategy"],
                seed=int(config["seed"]),
                base=champion.from_job(config.get("base")),
                beside=Beside.from_job(config.get("beside")),
                threads=config.get("threads"),
                parts=parts,
                group=group,
                checkpoints=directory / "checkpoints",
                dataset_digest=version.digest,
                weights_folder=Path(config.get("weights_folder") or directory),
                tell=lambda row: job.append_progress(directory, row),
                keep_going=job.orphan_watch(),
            ),
            largest=protocol.recipe.batch_size // 2 if group.size == 1 else 1,  # the others would wait for ever
        )
    except memory.NotEnoughMemory as error:
        raise TrainingRefused(
            f"there is no memory for two cases at a time: choose a smaller network ({error})"
        ) from error
    except (network.WeightsCorrupt, FileNotFoundError) as error:
        raise TrainingRefused(
            f"the champion cannot be the start of an update: {error}; put its weights back from a backup, or start a "
            "run with strategy full"
        ) from error
    except network.NetworkError as error:
        raise TrainingRefused(str(error)) from error
    if not group.first:
        return {}
    data = network.save_weights(trained.module)
    file = directory / "weights.safetensors"
    job.write_atomically(file, data)
    for name, kept in trained.state.items():
        job.write_atomically(directory / f"{name}.safetensors", kept)
    metadata = {
        **trained.metadata,
        "dataset_number": version.number,
        "data_quality": None if quality is None else quality.document(),
    }
    job.write_atomically(directory / "metadata.json", json.dumps(metadata, allow_nan=False, indent=1).encode())
    return {
        "weights": str(file),
        "weights_digest": network.digest_of_bytes(data),
        "state": {name: str(directory / f"{name}.safetensors") for name in trained.state},
        "metadata": metadata,
        "history": trained.history,
    }


def _quality(version: DatasetVersion, previous: str | None, *, protocol: Protocol) -> QualityReport | None:
    """Look at the data before anything is learned from them; the gates decide by the same report."""
    if protocol.data_quality is None:
        return None
    before = None if previous is None else open_version(Path(previous))
    return report_of(version, previous=before, rules=protocol.data_quality)


def _check(cases: Cases, *, split: str, protocol: Protocol) -> None:
    if missing := several.missing(cases.labels, protocol.classes):
        raise TrainingRefused(f"the {split} split has no case of {', '.join(missing)}: confirm more cases first")
    if not np.isfinite(cases.images).all():
        raise TrainingRefused(f"the {split} split has pixels that are not numbers: freeze a new dataset version")


def _diverged(epoch: int) -> TrainingRefused:
    return TrainingRefused(f"training diverged in epoch {epoch + 1} (not a number): lower recipe.learning_rate")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
