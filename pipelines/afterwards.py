"""What follows the last epoch: the last layer, mixtures and BatchNorm as the plan asks, and what is chosen on tune.

Invariant: nothing here looks beyond train and tune, and everything follows from the weights, the cases and the seed, so
that a resumed run ends as an unbroken one does. What it finds becomes part of the model's metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipelines import analytic, blend, calibrate, champion, consolidate, network, predict, several, strategies
from pipelines.calibrate import LogLoss
from pipelines.champion import Base
from pipelines.metrics import auroc_estimate, macro_auroc_estimate
from pipelines.protocol import Protocol
from pipelines.types import Estimate

AFTERWARDS = 1 << 20
"""In place of an epoch's number, for the cases that are looked at after the last."""


def finish(
    average: nn.Module,
    *,
    plan: strategies.Plan,
    base: Base | None,
    architecture: network.Architecture,
    images: NDArray[np.float32],
    labels: NDArray[Any],
    tune: tuple[NDArray[np.float32], NDArray[Any], NDArray[Any]],
    seed: int,
) -> list[str]:
    """Do what the plan asks for after the last epoch: solve the last layer, mix with the champion; say so.

    `images` (N, C, H, W) and `labels` (N,) are the training split's, `tune` is images, labels and sites of the other.
    """
    rng = np.random.default_rng([seed, AFTERWARDS])
    if plan.ridge is not None:
        rows = np.sort(strategies.epoch_order(plan.pools, rng=rng))
        for member in network.members_of(average):
            analytic.solve_head(member, images=images[rows], labels=labels[rows], ridge=plan.ridge)
    if plan.blending is None:
        return []
    rows = np.sort(strategies.epoch_order((plan.blending.pool,), rng=rng))
    device = next(average.parameters()).device
    share = blend.choose(
        average,
        champion=champion.grown(architecture, base=base, seed=seed).to(device),
        shares=plan.blending.shares,
        images=images[rows],
        loss=lambda mixed: tune_log_loss(predict.in_batches(mixed, tune[0]), tune[1], tune[2]).value,
    )
    return [f"{share:g} of the candidate's weights, {1.0 - share:g} of the champion's"]


def state(
    module: nn.Module,
    *,
    plan: strategies.Plan,
    images: NDArray[np.float32],
    before: consolidate.Fisher,
    seed: int,
) -> dict[str, bytes]:
    """Return what the next update needs besides the weights, by name; nothing where the plan measures nothing.

    `images` (N, C, H, W) are the training split's; `before` is the Fisher information that the champion came with.
    """
    pool = plan.consolidates
    if pool is None:
        return {}
    rows = np.sort(strategies.epoch_order((pool,), rng=np.random.default_rng([seed, AFTERWARDS, 1])))
    carried = before if plan.carries else {}
    return {"fisher": consolidate.measure(module, images[rows], cases=len(pool.rows), seed=seed, before=carried)}


def fisher_of(
    base: Base | None, *, plan: strategies.Plan, like: nn.Module, columns: Sequence[int]
) -> consolidate.Fisher:
    """Return the Fisher information that a champion comes with, in the shapes of `like`, where the plan asks for it.

    Nothing where there is none. Raises WeightsCorrupt, OSError.
    """
    if base is None or base.fisher is None or not plan.carries:
        return {}
    return consolidate.read(
        base.fisher,
        expected_digest=str(base.fisher_digest),
        like=like,
        head=network.head_of(base.architecture),
        columns=columns,
    )


def tune_log_loss(logits: NDArray[np.float32], labels: NDArray[Any], sites: NDArray[Any]) -> LogLoss:
    """Return by what an epoch is chosen: the log-loss of `logits` (N, K) at the worst site, all classes weighing alike.

    `labels` are (N,) of classes that exclude each other, or (N, K) bool.
    """
    told = calibrate.worst_site_log_loss if labels.ndim == 1 else several.worst_site_log_loss
    return told(logits, labels, sites)


def tune_auroc(logits: NDArray[np.float32], labels: NDArray[Any], *, protocol: Protocol) -> Estimate:
    """Return the AUROC of `logits` (N, K) for `labels` (N,), macro one-vs-rest where no class is positive.

    For `labels` (N, K) bool it is the mean over the findings.
    """
    scores = several.probabilities(logits) if protocol.several else calibrate.softmax(logits)
    if protocol.positive_index is None:
        return macro_auroc_estimate(labels, scores)
    return auroc_estimate(labels == protocol.positive_index, scores[:, protocol.positive_index])


def decisions(
    scores: NDArray[np.floating[Any]],
    labels: NDArray[Any],
    sites: NDArray[Any],
    *,
    protocol: Protocol,
    champion: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Choose on the calibrated `scores` (N, K) of tune how the model decides; what the metadata say of it.

    `operating_point` decides everywhere, but where the protocol says `by_site` and the site has one of its own; else
    those of single sites are there to be looked at. None where decisions are by arg-max; `second_look` is None also
    where the protocol asks for none, or no threshold met the rule. Of several findings each has a point of its own.
    `champion` (N,) is which cases the champion calls positive, where the points are chosen beside it.
    """
    index, rule = protocol.positive_index, protocol.operating_point
    nothing: dict[str, Any] = {"operating_point": None, "operating_points_by_site": {}, "second_look": None}
    if protocol.several:
        return nothing | {"operating_points": several.operating_points(scores, labels, protocol=protocol)}
    if index is None:
        return nothing
    truth, own = labels == index, scores[:, index]
    by_site = calibrate.points_by_site(truth, own, sites, rule=rule.rule, target=rule.target, champion=champion)
    decided = [site for site, found in by_site.items() if rule.by_site and found.threshold is not None]
    elsewhere = np.where([site in decided for site in sites], "", sites)
    point = calibrate.choose_operating_point(
        truth, own, rule=rule.rule, target=rule.target, champion=champion, sites=elsewhere
    )
    band = None
    if rule.second_look is not None and point.threshold is not None:
        band = calibrate.second_look(truth, own, threshold=point.threshold, share=rule.second_look)
    return {
        "operating_point": asdict(point),
        "operating_points_by_site": {site: asdict(found) for site, found in by_site.items()},
        "second_look": None if band is None else asdict(band),
    } | ({"decides_by_site": True} if rule.by_site else {})
