"""What a gate report shows besides its verdict: the points of its plots, measured once and kept with it.

Invariant: bounded (at most `POINTS` points a curve, `ROWS` rows a table, `CASES` ids a list), plain JSON values, and no
part of any verdict. A plot that cannot be made says why and stops nothing. Bands and intervals are 95 %, point by
point, patients together.

References: Fawcett, Pattern Recognition Letters 2006 (ROC); Macskassy and Provost, 2004 (vertical bands by bootstrap);
Vickers and Elkin, Medical Decision Making 2006 (decision curves); Chaudhry et al., ECCV 2018 (forgetting).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import blind, metrics, subgroups
from pipelines.comparison import Comparison, Scored
from pipelines.endpoints import Decision, among, decisions_of, right
from pipelines.findings import joined
from pipelines.paired import mean_difference
from pipelines.types import Estimate

POINTS, ROWS, CASES = 101, 60, 200
BINS, SIDE, SHOWN = 10, 12, 6
RESAMPLES = 200
FEWEST = 5
"""A slice or a cell of fewer cases is left empty: a share of three cases shows one person more than a rate."""

Floats = NDArray[np.float64]
Plot = Callable[[Comparison], Any]


def gather(comparison: Comparison) -> dict[str, Any]:
    """Measure every plot of a report; one that cannot be made is {"missing": why}.

    They show the cases that decide; `exposure` alone sets these beside the others.
    """
    decided = blind.deciding(comparison)
    return {name: _made(plot, decided) for name, plot in PLOTS.items()} | {"exposure": _made(blind.both, comparison)}


def roc(comparison: Comparison) -> dict[str, Any]:
    """ROC of each model against one class and the rest: `tpr` with its band at each `fpr`, and the operating point."""
    shown = []
    for view in [*comparison.questions().values()][:SHOWN]:
        index = view.protocol.positive_index
        classes = range(min(len(view.protocol.classes), SHOWN)) if index is None else [index]
        shown += [(view, k, index is not None) for k in classes]
    curves = [
        {"class": view.protocol.classes[k], "model": name}
        | _curve(view.sealed.labels == k, model.scores[:, k], groups=view.sealed.groups)
        | {"point": _point(view, model) if has_point else None}
        for view, k, has_point in shown
        for name, model in _models(view)
    ]
    return {"fpr": _rounded(_grid()), "curves": curves}


def reliability(comparison: Comparison) -> dict[str, Any]:
    """For each tenth of the cases by score: mean score, and how many are of the class, with its interval."""
    index = comparison.protocol.positive_index
    bins = {}
    for name, model in _models(comparison):
        if comparison.protocol.several:
            truth, score = comparison.sealed.labels.ravel(), model.scores.ravel()
        elif index is None:
            truth, score = model.scores.argmax(axis=1) == comparison.sealed.labels, model.scores.max(axis=1)
        else:
            truth, score = comparison.truth, model.scores[:, index]
        parts = np.array_split(np.argsort(score, kind="stable"), min(BINS, len(score)))
        bins[name] = [
            {"score": round(float(score[part].mean()), 4)} | asdict(metrics.wilson(int(truth[part].sum()), len(part)))
            for part in parts
        ]
    decisions = "the findings, taken together" if comparison.protocol.several else "right decisions"
    return {"of": decisions if index is None else "the positive class", "models": bins}


def decision_curve(comparison: Comparison) -> dict[str, Any]:
    """Net benefit per case at each threshold, of each model, of calling all and of calling none (0)."""
    index = comparison.protocol.positive_index
    if index is None:
        raise metrics.MetricError("a decision curve needs a positive class")
    thresholds = np.linspace(0.01, 0.99, POINTS - 2)
    weight, truth = thresholds / (1.0 - thresholds), comparison.truth
    share, n = float(truth.mean()), len(truth)
    curves = {"all": _rounded(share - (1.0 - share) * weight)}
    for name, model in _models(comparison):
        found = [np.sort(model.scores[:, index][members]) for members in (truth, ~truth)]
        hits, false_alarms = (len(part) - np.searchsorted(part, thresholds, "left") for part in found)
        curves[name] = _rounded((hits - false_alarms * weight) / n)
    return {"thresholds": _rounded(thresholds), "curves": curves}


def forest(comparison: Comparison) -> list[dict[str, Any]]:
    """For each slice and endpoint the candidate's share of right decisions, and its difference from the champion."""
    rule = comparison.protocol.gates.subgroups
    attributes = tuple(comparison.sealed.traits) if rule is None else rule.attributes
    critical = () if rule is None else rule.critical
    rows: list[dict[str, Any]] = []
    for name, members, tier in subgroups.declared(comparison.sealed.traits, attributes, critical):
        for finding, view in comparison.questions().items():
            words = f"{name}, {finding}" if finding else name
            for endpoint in decisions_of(view):
                chosen = members & among(view, endpoint)
                if chosen.sum() >= FEWEST:
                    row: dict[str, Any] = {"slice": words, "tier": tier, "endpoint": endpoint, "n": int(chosen.sum())}
                    rows.append(row | _shares(view, chosen, endpoint=endpoint))
    return sorted(_with_room(rows), key=lambda row: (row["endpoint"], row["tier"] != "critical", row["slice"]))


def forgetting(comparison: Comparison) -> dict[str, Any]:
    """Share of right decisions on each site and batch of sealed cases, of each model: who gets worse on what is old."""
    batches, sites = comparison.sealed.batches, comparison.sealed.traits.get("site")
    if batches is None or sites is None:
        raise metrics.MetricError("the sealed cases do not say from which site and dataset version they are")
    columns = _spans(np.unique(batches).tolist())
    names, counts = np.unique(sites, return_counts=True)
    rows = sorted(names[np.argsort(-counts, kind="stable")][:SIDE].tolist())
    ours = {name: comparison.agrees(model) for name, model in _models(comparison)}
    cells = [
        [_cell((sites == site) & (batches >= first) & (batches <= last), ours) for first, last in columns]
        for site in rows
    ]
    return {"sites": rows, "versions": [list(span) for span in columns], "cells": cells}


def flips(comparison: Comparison) -> dict[str, Any]:
    """Cases that only one of the two models has right, the clearest first: `lost` by the candidate, and `gained`."""
    champion, ids = comparison.champion, comparison.sealed.case_ids
    if champion is None or ids is None:
        raise metrics.MetricError("there is no champion to differ from" if champion is None else "cases have no ids")
    candidate = comparison.candidate
    ours, theirs = comparison.agrees(candidate), comparison.agrees(champion)
    gain = _credit(comparison, candidate) - _credit(comparison, champion)
    found = {"lost": np.flatnonzero(theirs & ~ours), "gained": np.flatnonzero(ours & ~theirs)}
    listed = {
        name: [_flip(comparison, int(row)) for row in rows[np.argsort(-np.abs(gain[rows]), kind="stable")][:CASES]]
        for name, rows in found.items()
    }
    return listed | {"counts": {name: len(rows) for name, rows in found.items()}, "n": len(gain)}


PLOTS: dict[str, Plot] = {
    "roc": roc,
    "reliability": reliability,
    "decision_curve": decision_curve,
    "forest": forest,
    "forgetting": forgetting,
    "flips": flips,
    "changed": lambda comparison: dict(comparison.changed),
}


def _made(plot: Plot, comparison: Comparison) -> Any:
    try:
        return plot(comparison)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a plot is told, and stops no verdict
        return {"missing": f"{error}" if isinstance(error, metrics.MetricError) else f"{type(error).__name__}: {error}"}


def _models(comparison: Comparison) -> list[tuple[str, Scored]]:
    champion = [] if comparison.champion is None else [("champion", comparison.champion)]
    return [("candidate", comparison.candidate), *champion]


def _grid() -> Floats:
    return np.linspace(0.0, 1.0, POINTS)


def _curve(truth: NDArray[np.bool_], scores: NDArray[Any], *, groups: NDArray[Any]) -> dict[str, Any]:
    """The highest sensitivity at each false positive rate, and where 95 % of resamples of the patients have it."""
    if truth.all() or not truth.any():
        raise metrics.MetricError("a ROC curve needs cases of the class and others")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # where equal scores end
    _, patient = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(0)
    drawn = [np.bincount(rng.integers(0, patient.max() + 1, patient.max() + 1)) for _ in range(RESAMPLES)]
    weights = [np.pad(counts, (0, patient.max() + 1 - len(counts)))[patient][order] for counts in drawn]
    positive = truth[order]
    draws = np.array([_at_grid(positive, weight, ends=ends) for weight in weights])
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
    value = _at_grid(positive, np.ones(len(order)), ends=ends)
    return {
        "tpr": _rounded(value),
        "low": _rounded(np.minimum(low, value)),
        "high": _rounded(np.maximum(high, value)),
        "auroc": asdict(metrics.auroc_estimate(truth, scores, groups=groups)),
    }


def _at_grid(positive: NDArray[np.bool_], weight: NDArray[Any], *, ends: NDArray[np.intp]) -> Floats:
    """Sensitivity at each rate of the grid, cases by falling score with `weight`; NaN where a class has none."""
    hits, alarms = np.cumsum(weight * positive)[ends], np.cumsum(weight * ~positive)[ends]
    if not hits[-1] or not alarms[-1]:
        return np.full(POINTS, np.nan)
    tpr, fpr = np.append(0.0, hits / hits[-1]), np.append(0.0, alarms / alarms[-1])
    return np.asarray(tpr[np.searchsorted(fpr, _grid() + 1e-12, "right") - 1])


def _point(comparison: Comparison, model: Scored) -> dict[str, Any] | None:
    if model.threshold is None:
        return None
    called = model.decided == comparison.protocol.positive_index
    return {
        "threshold": model.threshold,
        "sensitivity": asdict(metrics.sensitivity(comparison.truth, called)),
        "specificity": asdict(metrics.specificity(comparison.truth, called)),
    }


def _with_room(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first `ROWS` rows: critical slices, then the largest, of one endpoint as many as of another."""
    ranked, before = [], Counter[str]()
    for row in sorted(rows, key=lambda row: (row["tier"] != "critical", -row["n"])):
        ranked.append((before[row["endpoint"]], row))
        before[row["endpoint"]] += 1
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])[:ROWS]]


def _shares(comparison: Comparison, chosen: NDArray[np.bool_], *, endpoint: Decision) -> dict[str, Any]:
    own = right(comparison, comparison.candidate, endpoint)[chosen]
    row: dict[str, Any] = {"candidate": asdict(metrics.wilson(int(own.sum()), len(own))), "difference": None}
    if comparison.champion is not None:
        other = right(comparison, comparison.champion, endpoint)[chosen]
        found: Estimate = mean_difference(
            own.astype(np.float64) - other, groups=comparison.sealed.groups[chosen], level=0.95
        )
        row["difference"] = asdict(found)
    return row


def _spans(versions: list[int]) -> list[tuple[int, int]]:
    """At most `SIDE` spans of dataset versions: the newest alone, all that are older together."""
    kept = versions[-(SIDE - 1) :] if len(versions) > SIDE else versions
    older = versions[: len(versions) - len(kept)]
    return [*([(older[0], older[-1])] if older else []), *((number, number) for number in kept)]


def _cell(members: NDArray[np.bool_], ours: Mapping[str, NDArray[np.bool_]]) -> dict[str, Any]:
    n = int(members.sum())
    if n < FEWEST:
        return {"n": n}
    cell = {"n": n} | {name: round(float(hit[members].mean()), 4) for name, hit in ours.items()}
    if "champion" in ours:
        candidate, champion = ours["candidate"][members], ours["champion"][members]
        cell |= {"lost": int((champion & ~candidate).sum()), "gained": int((candidate & ~champion).sum())}
    return cell


def _flip(comparison: Comparison, row: int) -> dict[str, Any]:
    champion, ids = comparison.champion, comparison.sealed.case_ids
    assert champion is not None
    assert ids is not None
    return {
        "case": int(ids[row]),
        "site": str(comparison.sealed.traits["site"][row]) if "site" in comparison.sealed.traits else "",
        "finding": _worded(comparison, comparison.sealed.labels[row]),
        "candidate": _worded(comparison, comparison.candidate.decided[row]),
        "champion": _worded(comparison, champion.decided[row]),
        "candidate_score": round(float(_credit(comparison, comparison.candidate)[row]), 4),
        "champion_score": round(float(_credit(comparison, champion)[row]), 4),
    }


def _credit(comparison: Comparison, model: Scored) -> Floats:
    """The score (N,) of the right class; of several findings the mean of what each is given for what is right."""
    labels = comparison.sealed.labels
    if comparison.protocol.several:
        return np.asarray(np.where(labels, model.scores, 1.0 - model.scores).mean(axis=1), dtype=np.float64)
    return np.asarray(model.scores[np.arange(len(labels)), labels], dtype=np.float64)


def _worded(comparison: Comparison, answer: Any) -> str:
    classes = comparison.protocol.classes
    return joined(answer, classes) if comparison.protocol.several else classes[int(answer)]


def _rounded(values: NDArray[Any]) -> list[float]:
    return [float(value) for value in np.round(np.asarray(values, dtype=np.float64), 4)]
