"""What the models say of a line's unconfirmed cases, as far as the arms of its worklist want to know.

Invariant: no image is read that no arm needs. Scores on record count as they are; the rest is scored from the stored
images, and a case whose image cannot be read is left out. A blind case is not asked about: nothing depends on the
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import job, network
from pipelines.arms import SHORTLIST, Opinion, Pool, Rows, Shares, margins
from pipelines.embed import look_at_stored, width_of
from pipelines.predict import Model

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of whom. Models are {"weights": path, "weights_digest": hex, "metadata": document}."""

    shares: Shares
    blind_fraction: float
    champion: Row
    challenger: Row | None
    blobs: Path
    keep_going: Callable[[], None] = lambda: None


class View:
    """One model's view of the pool: `scores` (N, K) and `embeddings` (N, d), NaN where it has not looked."""

    def __init__(self, model: Model, digests: NDArray[Any], *, sites: NDArray[Any], question: Question) -> None:
        if model.several:
            raise job.Refused("a model of several findings cannot be asked what to read next: use the random arm alone")
        self.model, self._digests, self._sites, self._question = model, digests, sites, question
        self.scores = np.full((len(digests), len(model.classes)), np.nan, dtype=np.float32)
        self.embeddings = np.full((len(digests), width_of(model)), np.nan, dtype=np.float32)

    def see(self, rows: Rows) -> None:
        """Look at the images of these rows."""
        question = self._question
        self.scores[rows], self.embeddings[rows] = look_at_stored(
            self.model, self._digests[rows].tolist(), blobs=question.blobs, keep_going=question.keep_going
        )

    def opinion(self) -> Opinion:
        """Return scores and decisions; the first class where there are none."""
        known = ~np.isnan(self.scores).any(axis=1)
        predicted = np.zeros(len(self.scores), dtype=np.int64)
        predicted[known] = self.model.decided(self.scores[known], sites=self._sites[known])
        return Opinion(scores=self.scores, predicted=predicted)


def consulted(pool: Pool, *, cases: Sequence[Row], known: Sequence[Row], question: Question) -> Pool:
    """Return `pool` with what the models say of it; `cases` are its rows as the job has them, `known` confirmed ones.

    Rows whose image cannot be read are left out. Raises Refused where the champion's weights cannot be used.
    """
    shares = question.shares
    digests = np.array([row["image_digest"] for row in cases], dtype=str)
    champion = View(_model(question.champion), digests, sites=pool.sites, question=question)
    second = _second(digests, sites=pool.sites, champion=champion.model, question=question)
    asked_about = pool.lots >= question.blind_fraction
    _recall(champion, cases)
    everything = second is not None or shares.unlike > 0.0
    champion.see(np.flatnonzero(asked_about & (np.isnan(champion.scores).any(axis=1) | everything)))
    opinion = champion.opinion()
    if shares.diverse > 0.0:
        margin = np.where(asked_about, margins(opinion), np.nan)
        nearest = np.argsort(margin, kind="stable")[: 2 * SHORTLIST]  # NaN comes last
        unseen = asked_about[nearest] & np.isnan(champion.embeddings[nearest]).any(axis=1)
        champion.see(np.sort(nearest[unseen & ~np.isnan(margin[nearest])]))
    if second is not None:
        second.see(np.flatnonzero(asked_about))
    pool = replace(
        pool,
        classes=champion.model.classes,
        champion=champion.opinion(),
        second=None if second is None else second.opinion(),
        embeddings=np.nan_to_num(champion.embeddings),
        **_known(champion.model, known if shares.unlike > 0.0 else (), question=question),
    )
    return pool.of(np.flatnonzero(~asked_about | ~np.isnan(champion.scores).any(axis=1)))


def _recall(view: View, cases: Sequence[Row]) -> None:
    """Take scores from the record where they are of the model's classes."""
    for row, case in enumerate(cases):
        scores = case["scores"]
        if scores is not None and scores.keys() == set(view.model.classes):
            view.scores[row] = [scores[name] for name in view.model.classes]


def _second(digests: NDArray[Any], *, sites: NDArray[Any], champion: Model, question: Question) -> View | None:
    """The challenger, where an arm asks for it and it tells the same classes apart."""
    if question.challenger is None or question.shares.disagreement == 0.0:
        return None
    model = _model(question.challenger)
    return View(model, digests, sites=sites, question=question) if model.classes == champion.classes else None


def _known(model: Model, cases: Sequence[Row], *, question: Question) -> dict[str, Any]:
    digests = [str(row["image_digest"]) for row in cases]
    _, embeddings = look_at_stored(model, digests, blobs=question.blobs, keep_going=question.keep_going)
    readable = ~np.isnan(embeddings).any(axis=1)
    sites = np.array([row["site"] for row in cases], dtype=str)
    return {"known_embeddings": embeddings[readable], "known_sites": sites[readable]}


def _model(document: Row) -> Model:
    try:
        return Model.from_files(
            Path(document["weights"]), metadata=document["metadata"], expected_digest=document["weights_digest"]
        )
    except (network.NetworkError, OSError) as error:
        raise job.Refused(f"a model cannot be loaded: {error}") from error
