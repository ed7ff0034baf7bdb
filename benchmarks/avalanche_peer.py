"""The stream of hospitals by Avalanche's strategies, as shipped and with our schedule and augmentation: a peer.

Same arrivals, network, optimiser, epochs and batch size as `benchmarks.stream`; the weights are those after the last
epoch. With `--recipe` each update warms the learning rate up and lets it fall as ours do, from half the peak, and sees
augmented images. Cost counts what went forwards and backwards, and no teacher. Avalanche needs torchvision, and that a
torch it was built for: give it an environment of its own.

    python3 -m venv peer && peer/bin/pip install -e . avalanche-lib torchvision
    peer/bin/python -m benchmarks.avalanche_peer --seeds 0 --results stream.jsonl [--recipe]
    python -m benchmarks.stream --strategies --seeds 0 --results stream.jsonl       # theirs and ours in one table

Lomonaco et al., CVPR Workshops 2021; Carta et al., JMLR 24:363, 2023.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import stream, tracks
from benchmarks.pneumonia import DATA
from pipelines import augment, chest_xrays, network
from pipelines.metrics import auroc
from pipelines.recipe import Recipe

STRATEGIES: dict[str, dict[str, Any]] = {
    "Naive": {},
    "EWC": {"ewc_lambda": 300.0},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "Replay": {"mem_size": 200},
    "DER": {"mem_size": 200, "alpha": 0.1, "beta": 0.5},
}
"""Their names, and what they are given that they have no default for; 200 cases kept, as ours with small memories."""


def run(
    name: str,
    arrivals: Sequence[tracks.Arrival],
    *,
    recipe: Recipe,
    seed: int,
    ours: bool,
    tell: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Update a model by one of their strategies at each arrival; returns R, costs, seconds and notes."""
    from avalanche.benchmarks import tensors_benchmark  # noqa: PLC0415 - no dependency of ours
    from avalanche.training import supervised  # noqa: PLC0415

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    protocol = stream.protocol_of("finetune")
    module = network.build(network.architecture_for(protocol))
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = _Steps(recipe=recipe, ours=ours, seed=seed)
    strategy = getattr(supervised, name)(
        model=module,
        optimizer=optimiser,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32 if name in {"Replay", "DER"} else recipe.batch_size,  # they add as many from memory
        train_epochs=recipe.epochs,
        plugins=[steps],
        evaluator=None,
        **STRATEGIES[name],
    )
    matrix, costs, seconds = [], [], []
    tensors = [(torch.from_numpy(one.train.images), torch.from_numpy(one.train.labels)) for one in arrivals]
    hospitals = tensors_benchmark(tensors, tensors[:1], task_labels=[0] * len(tensors), complete_test_set_only=True)
    for number, experience in enumerate(hospitals.train_stream):
        begun, before = time.monotonic(), steps.cases
        strategy.train_epochs = recipe.update_epochs if number else recipe.epochs
        steps.peak = recipe.learning_rate / (2.0 if number else 1.0)
        strategy.train(experience)
        seconds.append(round(time.monotonic() - begun, 1))
        costs.append(steps.cases - before)
        matrix.append([_score(module, arrival) for arrival in arrivals])
        tell(" ".join(f"{value:.3f}" for value in matrix[-1]) + f"   {seconds[-1]:.0f} s")
    first = list(range(len(arrivals)))
    return {"first": first, "matrix": matrix, "sample_gradients": costs, "seconds": seconds, "notes": [[]] * len(first)}


class _Steps:
    """What happens at each of their steps: the cases are counted and, with our recipe, changed and scheduled."""

    supports_distributed = False

    def __init__(self, *, recipe: Recipe, ours: bool, seed: int) -> None:
        self.recipe, self.ours = recipe, ours
        self.peak = recipe.learning_rate
        self.cases = 0
        self.generator = torch.Generator().manual_seed(seed)

    def before_training_iteration(self, strategy: Any, **_others: Any) -> None:
        if self.ours:
            steps = strategy.train_epochs * len(strategy.dataloader)
            step = strategy.clock.train_exp_iterations + 1
            warm_up = max(1.0, 0.1 * steps)
            falling = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(1.0, steps - warm_up)))
            for settings in strategy.optimizer.param_groups:
                settings["lr"] = self.peak * (step / warm_up if step < warm_up else falling)

    def before_forward(self, strategy: Any, **_others: Any) -> None:
        if self.ours:
            strategy.mbatch[0] = augment.acquisition(strategy.mbatch[0], generator=self.generator)

    def after_forward(self, strategy: Any, **_others: Any) -> None:
        self.cases += len(strategy.mb_output)  # with what a strategy has added from its memory

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("before_", "after_")):
            return lambda *_one, **_others: None
        raise AttributeError(name)


@torch.no_grad()
def _score(module: nn.Module, arrival: tracks.Arrival) -> float:
    training = module.training
    answers = module.eval()(torch.from_numpy(arrival.test.images)).softmax(dim=1)[:, 1]
    module.train(training)
    return auroc(arrival.test.labels == 1, np.clip(answers.numpy().astype(np.float64), 0.0, 1.0))


def main(arguments: list[str]) -> int:
    """Run what is not in the results file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--order", default="ABCDEF")
    parser.add_argument("--recipe", action="store_true", help="our schedule and augmentation instead of none")
    parser.add_argument("--results", type=Path, default=Path("stream.jsonl"))
    options = parser.parse_args(arguments)
    protocol = stream.protocol_of("finetune")
    xrays = chest_xrays.read(options.data.read_bytes(), source=str(options.data))
    done = {one.key for one in stream.read(options.results)}
    for seed in options.seeds:
        arrivals = tracks.TRACKS["six_sites"](xrays, seed, options.order)
        for name in options.strategies:
            variant = f"Avalanche {name}{', our recipe' if options.recipe else ''}"
            key = "six_sites", variant, seed, options.order, protocol.digest
            if key in done:
                continue
            print(f"{options.order} seed {seed}: {variant}", flush=True)
            found = run(
                name,
                arrivals,
                recipe=protocol.recipe,
                seed=seed,
                ours=options.recipe,
                tell=lambda line: print("  " + line, flush=True),
            )
            named = dict(zip(("track", "variant", "seed", "order", "protocol_digest"), key, strict=True))
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(stream.Stream(**named, **found))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
