"""The champion beside which a candidate's operating point is chosen: as it is served, on the tune split.

Invariant: the champion decides by its own calibration and its own threshold, by site where it does so in use, and no
case of the sealed test enters. Of the candidate nothing but its threshold depends on it, and the metadata say beside
whom that was chosen and what it could not keep. A champion that cannot be asked is left out, and the notes say why: a
training from nothing is the way on where its weights are damaged.

Why: a champion that has never seen a site stands far out on that site's curve, at a threshold that nobody chose for it,
and a much better model in the middle of its own is worse there in one of the two errors (docs/decisions/0026).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import predict
from pipelines.network import WeightsCorrupt
from pipelines.protocol import Protocol
from pipelines.types import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The champion of when a training began: weights that are checked against their digest, and its metadata."""

    weights: Path
    weights_digest: Digest
    metadata: Mapping[str, Any]

    @classmethod
    def from_job(cls, document: Mapping[str, Any] | None) -> Beside | None:
        """Read the champion out of a job's configuration; None where there is none."""
        if document is None:
            return None
        return cls(
            weights=Path(document["weights"]),
            weights_digest=Digest(document["weights_digest"]),
            metadata=document["metadata"],
        )


def calls(
    champion: Beside | None, images: NDArray[np.float32], sites: NDArray[Any], *, protocol: Protocol
) -> tuple[NDArray[np.bool_] | None, list[str]]:
    """Return (N,) which of `images` (N, C, H, W) from `sites` (N,) the champion calls positive, and what to say of it.

    None where the protocol does not ask, there is no champion, or this one cannot be asked; the notes say so of the
    last.
    """
    if champion is None or not protocol.operating_point.beside_champion:
        return None, []
    alone = "so the threshold was chosen by the rule alone"
    if (*champion.metadata["classes"], champion.metadata["positive"]) != (*protocol.classes, protocol.positive):
        return None, [f"the champion has other classes, {alone}"]
    try:
        model = predict.Model.from_files(
            champion.weights, metadata=champion.metadata, expected_digest=champion.weights_digest
        )
    except (WeightsCorrupt, FileNotFoundError) as error:
        return None, [f"the champion cannot be asked ({error}), {alone}"]
    return model.decided(model.scores(images), sites=sites) == protocol.positive_index, []


def losses(found: Mapping[str, Any]) -> list[str]:
    """Say of the points in a model's metadata where no threshold was both as sensitive and as specific as the champion.

    Points that were not chosen beside one have nothing to say.
    """
    points = {"all sites together": found["operating_point"], **found["operating_points_by_site"]}
    return [
        f"{where}: no threshold is as sensitive and as specific as the champion on tune; {point['shortfall']:.3f} lost"
        for where, point in points.items()
        if point is not None and point["shortfall"]
    ]
