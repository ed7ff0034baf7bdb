"""One sealed test, used again and again: by an adversary, by an honest developer, and as a board for choosing features.

The adversary (Feng et al., UAI 2022) starts from the perfect model and adds one useless feature after the other, twice
as far in a direction that passed: every candidate is worse, so every approval is a bad one. The honest developer
retrains as data come in. The board is the no-signal experiment of Dwork et al., Science 2015.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipelines import metrics
from pipelines.metrics import Floats, normal_quantile
from pipelines.sealed_ledger import Plan, local_level
from pipelines.simulate.table import Row, Table, mean, share
from pipelines.thresholdout import answer

ALPHA, USES, FEATURES = 0.10, 50, 100
PLAN = Plan(alpha=ALPHA, uses=USES, recipe_share=0.0)
SIGNAL, STEP = 0.8, 0.01
NUDGE = 3.5
"""How far a useless feature is turned up, in units of 1 / sqrt(cases): .5 with 50 cases, as in the paper."""
CYCLES, BATCH, INFORMATIVE, SEALED = 15, 60, 30, 2000
BOARD_CASES, BOARD_FEATURES, KEPT = 10_000, 10_000, 500

Level = Callable[[list[bool]], float | None]
"""Answers so far -> level of the next test; None takes the point value's word."""


def simulate(*, repeats: int, rng: np.random.Generator) -> Table:
    """Run the adversary `repeats` times, the developer, who is slow, a fifth as often, and the board a hundredth."""
    return Table(
        title="Reuse of the sealed test (G3, G4)",
        setting=(
            f"Adversary: {FEATURES} useless features, {USES} submissions, alpha {ALPHA:g}. Developer: logistic "
            f"regression on {BATCH} more cases each cycle, {CYCLES} cycles, sealed test of {SEALED}, alpha {ALPHA:g}. "
            f"Board: {BOARD_CASES} cases, {BOARD_FEATURES} features of noise, the best {KEPT} kept."
        ),
        repeats=repeats,
        rows=(
            *_fooled(repeats, rng=rng),
            *_honest(max(2, repeats // 5), rng=rng),
            *_shown(max(2, repeats // 100), rng=rng),
        ),
    )


def _fooled(repeats: int, *, rng: np.random.Generator) -> list[Row]:
    expected = {("point estimate", 50): 1.0, ("point estimate", 500): 1.0, ("level alpha each time", 50): 0.61}
    expected |= {("level alpha each time", 500): 0.525, ("graph", 50): 0.027, ("graph", 500): 0.020}
    rows = []
    for name, level in _levels().items():
        for n in (50, 500):
            bad = [any(_adversary(level, n=n, rng=rng)) for _ in range(repeats)]
            rows.append(share(name, f"any bad approval, n = {n}", bad, expected=expected.get((name, n))))
        subtle = [any(_adversary(level, n=500, rng=rng, nudge=NUDGE / 4.0)) for _ in range(repeats)]
        rows.append(share(name, "any bad approval, n = 500, steps of a quarter", subtle))
    return rows


def _honest(repeats: int, *, rng: np.random.Generator) -> list[Row]:
    rows = []
    for name, every, expected in (
        ("graph, every cycle submitted", 1, (None, None)),
        ("graph, best of five on tune submitted", 5, (2.75, 0.99)),
    ):
        found = [_developer(every=every, rng=rng) for _ in range(repeats)]
        gained, there = np.array([gains for _, gains in found]).T
        ratio = float(gained.mean() / there.mean())
        error = float(np.std(gained - ratio * there) / there.mean() / np.sqrt(repeats))  # delta method
        rows.append(mean(name, f"approvals in {CYCLES} cycles", [count for count, _ in found], expected=expected[0]))
        rows.append(Row(rule=name, what="share of the attainable gain", value=ratio, error=error, expected=expected[1]))
    return rows


def _shown(repeats: int, *, rng: np.random.Generator) -> list[Row]:
    board = np.array([_board(rng=rng) for _ in range(repeats)])
    return [
        mean("plain hold-out", "accuracy shown, truth .5", board[:, 0], expected=0.633),
        mean("Thresholdout", "accuracy shown, truth .5", board[:, 1], expected=0.525),
    ]


def _levels() -> dict[str, Level]:
    return {
        "point estimate": lambda _answers: None,
        "level alpha each time": lambda _answers: ALPHA,
        "alpha / 50 each time": lambda _answers: ALPHA / USES,
        "graph": lambda answers: local_level(answers, alpha=ALPHA, plan=PLAN),
    }


def _passes(first: tuple[float, Floats], second: tuple[float, Floats], *, above: float, level: float | None) -> bool:
    """Whether AUROC first - second is above `above`: by its point value, or one-sided at `level`. DeLong."""
    difference = first[0] - second[0]
    if level is None:
        return difference > above
    if level <= 0.0:
        return False
    error = float(np.sqrt(np.sum((first[1] - second[1]) ** 2)))
    return difference - normal_quantile(1.0 - level) * error > above


def _adversary(level: Level, *, n: int, rng: np.random.Generator, nudge: float = NUDGE) -> list[bool]:
    """Tune on one sealed test of `n` cases; returns the answers, of which each pass is a bad approval."""
    x = rng.normal(size=(n, FEATURES))
    signal = SIGNAL * rng.normal(size=n)
    labels = rng.random(n) < special.expit(signal)
    original = metrics.auroc_influence(labels, special.expit(signal))
    answers: list[bool] = []
    logits, above = signal, 0.0
    for feature in range(FEATURES):
        for direction in (1.0, -1.0):
            scale, passed = 1.0, True
            while passed and len(answers) < USES:
                tried = logits + direction * scale * nudge / np.sqrt(n) * x[:, feature]
                found = metrics.auroc_influence(labels, special.expit(tried))
                passed = _passes(found, original, above=above, level=level(answers))
                answers.append(passed)
                if passed:
                    logits, above, scale = tried, above + STEP, 2.0 * scale
            if len(answers) >= USES:
                return answers
            if scale > 1.0:
                break
    return answers


def _developer(*, every: int, rng: np.random.Generator) -> tuple[int, tuple[float, float]]:
    """Retrain on more data each cycle and submit every so manyth; approvals, and gains of champion and last model.

    Where fewer are submitted, the one submitted is the best of its five on the tune split.
    """
    weights = rng.normal(size=INFORMATIVE) * 0.25
    train, truth = _cases(BATCH, weights=weights, rng=rng), _cases(20_000, weights=weights, rng=rng)
    tune, sealed = _cases(500, weights=weights, rng=rng), _cases(SEALED, weights=weights, rng=rng)
    first = champion = _fit(*train)
    made: list[Floats] = []
    answers: list[bool] = []
    approved = 0
    for cycle in range(1, CYCLES + 1):
        more = _cases(BATCH, weights=weights, rng=rng)
        train = (np.concatenate([train[0], more[0]]), np.concatenate([train[1], more[1]]))
        made.append(_fit(*train))
        if cycle % every:
            continue
        best = max(made[-every:], key=lambda model: metrics.auroc(tune[1], special.expit(tune[0] @ model)))
        level = local_level(answers, alpha=ALPHA, plan=PLAN)
        pair = [metrics.auroc_influence(sealed[1], special.expit(sealed[0] @ model)) for model in (best, champion)]
        answers.append(_passes(pair[0], pair[1], above=0.0, level=level))
        if answers[-1]:
            champion, approved = best, approved + 1
    worth = [metrics.auroc(truth[1], special.expit(truth[0] @ model)) for model in (first, champion, made[-1])]
    return approved, (worth[1] - worth[0], worth[2] - worth[0])


def _cases(n: int, *, weights: Floats, rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    x = rng.normal(size=(n, len(weights)))
    return x, rng.random(n) < special.expit(x @ weights)


def _fit(x: Floats, labels: NDArray[np.bool_]) -> Floats:
    """Logistic regression with a little ridge, by Newton's steps."""
    beta = np.zeros(x.shape[1])
    for _ in range(8):
        p = special.expit(x @ beta)
        hessian = (x * (p * (1.0 - p))[:, None]).T @ x + np.eye(x.shape[1])
        beta = beta + np.linalg.solve(hessian, x.T @ (labels - p) - beta)
    return np.asarray(beta, dtype=np.float64)


def _board(*, rng: np.random.Generator) -> tuple[float, float]:
    """Accuracy shown by a plain hold-out, and by Thresholdout, for features chosen with their help; the truth is .5."""
    root = np.sqrt(BOARD_CASES)
    labels = {name: rng.choice([-1.0, 1.0], BOARD_CASES).astype(np.float32) for name in ("train", "holdout")}
    columns = {name: rng.standard_normal((BOARD_CASES, BOARD_FEATURES), dtype=np.float32) for name in labels}
    train, holdout = (labels[name] @ columns[name] / BOARD_CASES for name in ("train", "holdout"))
    told = answer(train, holdout, threshold=4.0 / root, tolerance=1.0 / root, left=BOARD_FEATURES, rng=rng).values
    shown = []
    for seen in (holdout, told):
        agreeing = (np.sign(train) == np.sign(seen)) & (np.abs(train) >= 1.0 / root) & (np.abs(seen) >= 1.0 / root)
        best = np.argsort(np.where(agreeing, np.abs(train), 0.0))[-KEPT:]
        votes = np.sign(train[best]) * agreeing[best]
        shown.append([float((columns[name][:, best] @ votes * labels[name] > 0.0).mean()) for name in labels])
    (_, plain), (on_train, on_holdout) = shown
    noisy = answer(
        np.array([on_train]), np.array([on_holdout]), threshold=4.0 / root, tolerance=1.0 / root, left=1, rng=rng
    )
    return plain, float(noisy.values[0])
