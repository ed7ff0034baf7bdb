"""Predictions: what the champion said of an image, to whom, and which bytes said it. Append-only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg.types.json import Jsonb

from registry.db import Connection, fetch_all, fetch_one


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answer; `scores` is class -> probability in [0, 1], `case_id` None for an image that was not kept."""

    prediction_id: int
    line_id: int
    case_id: int | None
    candidate_id: int
    weights_digest: str
    image_digest: str
    scores: dict[str, float]
    decision: str
    threshold: float | None
    shown: bool
    latency_seconds: float
    requested_by: int
    created_at: datetime


def log_prediction(
    conn: Connection,
    *,
    line_id: int,
    case_id: int | None,
    candidate_id: int,
    weights_digest: str,
    image_digest: str,
    scores: Mapping[str, float],
    decision: str,
    threshold: float | None,
    shown: bool,
    latency_seconds: float,
    requested_by: int,
) -> Prediction:
    """Note an answer; `shown` says whether a person was given it (a reader who saw it is `aided` from then on)."""
    prediction = fetch_one(
        conn,
        Prediction,
        "INSERT INTO predictions (line_id, case_id, candidate_id, weights_digest, image_digest, scores, decision,"
        " threshold, shown, latency_seconds, requested_by) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " RETURNING *",
        (
            line_id,
            case_id,
            candidate_id,
            weights_digest,
            image_digest,
            Jsonb(dict(scores)),
            decision,
            threshold,
            shown,
            latency_seconds,
            requested_by,
        ),
    )
    assert prediction is not None
    return prediction


def list_for_case(conn: Connection, case_id: int) -> list[Prediction]:
    """Every prediction on a case, oldest first."""
    return fetch_all(
        conn, Prediction, "SELECT * FROM predictions WHERE case_id = %s ORDER BY prediction_id", (case_id,)
    )
