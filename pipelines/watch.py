"""The champion in use: scored on cases that were read before it was seen, mature ones only, in order of arrival.

Invariant: what is looked at was fixed before anybody looked. A case takes its place in the order once it is both mature
and confirmed, and no later case comes before it, so that the alarm may be looked at every day (`pipelines.alarm`). Half
of the protocol's alpha pays for the sealed test's bound, half for the watch: a false alarm has chance alpha at most, in
all the time that the champion serves. Only blind words count, and a blind word that was overruled by a reader who had
seen the model still counts: otherwise the cases in which it misled somebody would be the ones to drop out.

A challenger is followed (`pipelines.shadow`) on those of the same cases that it cannot have learned from either.

References: Podkopaev and Ramdas, ICLR 2022; Begg and Greenes, Biometrics 1983 (verification bias).

    python -m pipelines.watch JOB_DIR       # config.json, sample.ndjson in; result.json out
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import alarm, job, maturity, network, shadow
from pipelines.metrics import MetricError
from pipelines.paired import MINIMUM_CASES
from pipelines.protocol import Monitoring, Protocol, ReferenceStandardRule, from_document
from pipelines.reference_standard import settle
from pipelines.types import Confirmation, Estimate

SHOWN = 20
"""So many of the newest wrong cases are named, to be looked at."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """The mature cases that the protocol watches by, those confirmed first, in order of arrival."""

    case_ids: NDArray[np.int64]
    """(N,)"""
    sites: NDArray[Any]
    """(N,) text"""
    scores: NDArray[np.floating[Any]]
    """(N, classes) in [0, 1], the champion's; NaN where an image cannot be read."""
    decided: NDArray[np.int64]
    """(N,) class decided by the champion."""
    labels: NDArray[np.int64]
    """(N,) class that blind readers confirmed, -1 where none has."""
    delays: NDArray[np.float64]
    """(N,) days from the case to its first word, NaN where none was blind."""
    ages: NDArray[np.float64]
    """(N,) days."""

    @property
    def watched(self) -> NDArray[np.intp]:
        """Rows of the cases that were confirmed, and whose image can be read."""
        return np.flatnonzero((self.labels >= 0) & np.isfinite(self.scores).all(axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """How often the champion was wrong on its sealed test."""

    errors: int
    n: int


def look(sample: Sample, *, sealed: Sealed | None, rule: Monitoring, asked: Protocol) -> dict[str, Any]:
    """Look at the champion: verdict, reason, risk with its bound and limit, and which cases to see; plain values.

    The verdict is `alarm`, `in_order`, or `insufficient` while fewer than 20 cases have been confirmed, or where the
    sealed test told nothing. The weighted risk is beside it, for people: the alarm counts each confirmed case once.
    """
    watched = sample.watched
    wrong = sample.decided[watched] != sample.labels[watched]
    found = {
        "sample": len(sample.case_ids),
        "n": len(watched),
        "errors": int(wrong.sum()),
        "risk": float(wrong.mean()) if len(watched) else None,
        "verified_share": len(watched) / len(sample.case_ids) if len(sample.case_ids) else None,
        "weighted_risk": _weighted(sample, watched, wrong, positive=asked.positive_index),
        "mature_after_days": _mature_after(sample, watched, classes=asked.classes),
        "cases_to_see": sample.case_ids[watched[wrong]][::-1][:SHOWN].tolist(),
    }
    return found | _judged(wrong.astype(np.float64), sealed=sealed, rule=rule)


def follow(
    sample: Sample, *, decided: NDArray[np.int64], unknown: NDArray[np.bool_], margin: float, alpha: float
) -> dict[str, Any]:
    """Follow a challenger that decides `decided` (N,), on confirmed cases `unknown` (N,) to it; plain values.

    `pass` as soon as it is shown to be worse than the champion by less than `margin`, `insufficient` until then.
    """
    rows = sample.watched[unknown[sample.watched]]
    labels = sample.labels[rows]
    differences = (decided[rows] == labels).astype(np.float64) - (sample.decided[rows] == labels)
    seen = shadow.follow(differences, margin=margin, alpha=alpha)
    return {
        "verdict": seen.verdict,
        "reason": seen.reason,
        "n": len(rows),
        "passed_at": seen.passed_at,
        "difference": float(differences.mean()) if len(rows) else None,
    }


def label_of(said: Sequence[Confirmation], *, asked: Protocol) -> int:
    """Return the class that a case's blind words come to, -1 where they come to none."""
    rule = ReferenceStandardRule(
        minimum_evidence=asked.reference_standard.minimum_evidence,
        minimum_agreement=asked.reference_standard.minimum_agreement,
        exposures=("blind",),
    )
    settled = settle(said, rule)
    return -1 if isinstance(settled, str) else asked.classes.index(settled.finding)


def main(arguments: list[str]) -> int:
    """Look at the champion that a job directory describes."""
    job.hide_pandas()
    return job.run(arguments, work=_work)


def _work(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    del directory
    asked = from_document(config["protocol"])
    assert asked.monitoring is not None, "a protocol that watches nobody asks for no look"
    with Path(config["sample"]).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    sealed = None if config["sealed"] is None else Sealed(**config["sealed"])
    blobs, keep_going = Path(config["blobs"]), job.orphan_watch()
    sample = _scored(rows, asked=asked, document=config["champion"], blobs=blobs, keep_going=keep_going)
    found = look(sample, sealed=sealed, rule=asked.monitoring, asked=asked)
    challenger, margin = config["challenger"], asked.monitoring.shadow_margin
    if challenger is None or margin is None:
        return found | {"shadow": None}
    other = _scored(rows, asked=asked, document=challenger, blobs=blobs, keep_going=keep_going)
    known = challenger["last_confirmation_id"]
    first = [row["first_confirmation_id"] for row in rows]
    unknown = np.array([number is not None and number > known for number in first], dtype=np.bool_)
    followed = follow(sample, decided=other.decided, unknown=unknown, margin=margin, alpha=asked.monitoring.alpha)
    return found | {"shadow": {"candidate_id": challenger["candidate_id"], **followed}}


def _scored(
    rows: Sequence[Mapping[str, Any]],
    *,
    asked: Protocol,
    document: Mapping[str, Any],
    blobs: Path,
    keep_going: Callable[[], None],
) -> Sample:
    from pipelines.embed import look_at_stored  # noqa: PLC0415 - torch comes with it, and `look` needs none
    from pipelines.predict import Model  # noqa: PLC0415

    try:
        model = Model.from_files(
            Path(document["weights"]), metadata=document["metadata"], expected_digest=document["weights_digest"]
        )
    except network.NetworkError as error:
        raise job.Refused(f"the model {document['weights_digest'][:12]} cannot be loaded: {error}") from error
    if model.classes != asked.classes:
        raise job.Refused("this model answers other classes than the protocol in force; it cannot be watched by it")
    scores, _ = look_at_stored(model, [row["image_digest"] for row in rows], blobs=blobs, keep_going=keep_going)
    sites = np.array([row["site"] for row in rows], dtype=str)
    said = [[Confirmation(**item) for item in row["said"]] for row in rows]
    return Sample(
        case_ids=np.array([row["case_id"] for row in rows], dtype=np.int64),
        sites=sites,
        scores=scores,
        decided=model.decided(np.nan_to_num(scores), sites=sites),
        labels=np.array([label_of(items, asked=asked) for items in said], dtype=np.int64),
        delays=np.array([np.nan if row["delay_days"] is None else row["delay_days"] for row in rows]),
        ages=np.array([row["age_days"] for row in rows], dtype=np.float64),
    )


def _judged(losses: NDArray[np.float64], *, sealed: Sealed | None, rule: Monitoring) -> dict[str, Any]:
    nothing = {"lower_bound": None, "risk_limit": None, "raised_at": None, "verdict": "insufficient"}
    if sealed is None or sealed.n < MINIMUM_CASES:
        return nothing | {"reason": "the champion's gate report does not tell how often it erred on the sealed test"}
    half = rule.alpha / 2.0
    limit = alarm.limit_of(errors=sealed.errors, n=sealed.n, tolerance=rule.tolerance, alpha=half)
    if not len(losses):
        few = "no blind case is mature and confirmed yet"
        return nothing | {"risk_limit": min(limit, 1.0), "reason": few}
    raised = alarm.watch(losses, limit=limit, alpha=half)
    found = {
        "lower_bound": alarm.lower_bound(losses, alpha=half),
        "risk_limit": min(limit, 1.0),
        "raised_at": raised.raised_at,
    }
    if raised.raised:
        return found | {"verdict": "alarm", "reason": raised.reason}
    if len(losses) < MINIMUM_CASES:
        reason = f"only {len(losses)} blind cases are mature and confirmed, at least {MINIMUM_CASES} are needed"
        return found | {"verdict": "insufficient", "reason": reason}
    return found | {"verdict": "in_order", "reason": raised.reason}


def _weighted(
    sample: Sample, watched: NDArray[np.intp], wrong: NDArray[np.bool_], *, positive: int | None
) -> dict[str, Any]:
    """The risk with each confirmed case standing for those like it that nobody read; or why there is none."""
    verified = np.zeros(len(sample.case_ids), dtype=np.bool_)
    verified[watched] = True
    readable = np.isfinite(sample.scores).all(axis=1)
    errors = np.zeros(len(sample.case_ids), dtype=np.bool_)
    errors[watched] = wrong
    try:
        weights = maturity.verification_weights(
            verified[readable], _told_by(sample.scores[readable], positive=positive), sample.sites[readable]
        )
        found: Estimate = maturity.weighted_share(errors[readable], weights.weights)
    except MetricError as error:
        return {"missing": str(error)}
    return asdict(found)


def _told_by(scores: NDArray[Any], *, positive: int | None) -> NDArray[Any]:
    """What may have decided which cases were read: the positive class's score, or the highest."""
    return scores.max(axis=1) if positive is None else scores[:, positive]


def _mature_after(sample: Sample, watched: NDArray[np.intp], *, classes: Sequence[str]) -> float | None:
    """At which age 95 % of the labels of every class have come, as far as the confirmed cases tell."""
    try:
        arrivals = {
            name: maturity.arrivals(sample.delays[mine], sample.ages[mine])
            for index, name in enumerate(classes)
            for mine in [watched[sample.labels[watched] == index]]
        }
        return maturity.maturity_day(arrivals)
    except MetricError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
