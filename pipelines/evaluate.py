"""Score the sealed test, once for each model, and gather what the gates look at.

Invariant: candidate and champion see the same prepared images in the same order, each decides at its own operating
point, and weights are used only if their bytes match their digest. Nothing here chooses anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines import job, network
from pipelines.approved import held_against
from pipelines.comparison import Comparison, Opinion, Placement, Scored, Sealed, Tuned
from pipelines.dataset import DatasetVersion, open_version
from pipelines.findings import joined, matrix
from pipelines.gate_rules import Attribute
from pipelines.predict import Model
from pipelines.protocol import Protocol
from pipelines.quality import report_of
from pipelines.types import EVIDENCE_RANK, CaseId, Confirmation, Digest


def gather(
    dataset: Path,
    *,
    protocol: Protocol,
    candidate: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    approved: Sequence[Mapping[str, Any]] = (),
    previous: Path | None = None,
    use: Mapping[str, Any] | None = None,
    scored: bool = True,
    keep_going: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda _stage: None,
) -> tuple[Comparison, Digest]:
    """Score the sealed test of a checked-out version; returns the comparison and the version's digest.

    `previous` is the checked-out version before it, with which its data are compared; None for the first.
    `candidate` and `champion` are {"weights": path, "weights_digest": hex, "metadata": document}, and so is each of
    `approved`, every model that was ever champion, oldest first. A model with other classes cannot be compared. Raises
    Refused where a model cannot be used. `use` is the use of the sealed test that the ledger granted: in a later epoch
    only cases that came after the `after_version` of the epochs before are looked at. Without `scored` nobody scores a
    sealed case, and the comparison is for `gates.decide(before_use=True)` alone.
    """
    version = open_version(dataset)
    images, sites = version.prepared(protocol.input), version.sites
    rows = unworn(version, use=use)
    keep_going()
    looked_at = rows if scored else rows[:0]
    tell("scoring the candidate")
    offered = _model(candidate, protocol=protocol)
    first = _scored(offered, candidate, images=images[looked_at], sites=sites[looked_at])
    second, tuned, opinions_of_champion = None, None, {}
    fresh = version.indices(new_only=True)
    if champion is not None:
        keep_going()
        tell("scoring the champion")
        model = _model(champion, protocol=protocol)
        second = _scored(model, champion, images=images[looked_at], sites=sites[looked_at])
        if protocol.gates.screen is not None:
            tell("screening on the tune split")
            open_rows = version.indices("tune")
            tuned = Tuned(
                cases=_answers(version, rows=open_rows),
                candidate=_scored(offered, candidate, images=images[open_rows], sites=sites[open_rows]),
                champion=_scored(model, champion, images=images[open_rows], sites=sites[open_rows]),
            )
        opinions_of_champion = dict(
            zip(fresh.tolist(), _said(model, images=images[fresh], sites=sites[fresh]), strict=True)
        )
    earlier = []
    for document in _before(champion, approved=approved, window=protocol.gates.approved_window) if scored else ():
        keep_going()
        tell("scoring models approved earlier")
        earlier.append(_scored(_model(document, protocol=protocol), document, images=images[rows], sites=sites[rows]))
    quality = None
    if protocol.data_quality is not None:
        tell("looking at the data")
        before = None if previous is None else open_version(previous)
        quality = report_of(version, previous=before, rules=protocol.data_quality)
    tell("deciding")
    comparison = Comparison(
        protocol=protocol,
        sealed=_answers(version, rows=rows),
        candidate=first,
        champion=second,
        tuned=tuned,
        opinions=tuple(opinions(version, rows=fresh.tolist(), champion=opinions_of_champion)),
        placements=tuple(
            Placement(image_digest=digest, group=group, split=split)
            for digest, group, split in zip(
                version.image_digests, version.groups.tolist(), version.splits.tolist(), strict=True
            )
        ),
        approved=tuple(earlier),
        quality=quality,
        use=use,
        made={name: candidate["metadata"].get(name) for name in ("strategy", "parameters")},
        changed=_changed(version, candidate=candidate["metadata"], champion=champion and champion["metadata"]),
        fine_tuned=candidate["metadata"]["strategy"] == "finetune"
        and candidate["metadata"]["started_from"] == "champion",
    )
    return comparison, version.digest


def unworn(version: DatasetVersion, *, use: Mapping[str, Any] | None) -> NDArray[np.int64]:
    """Rows of the sealed test that the epoch of this use may look at: nobody was judged by them in an earlier one."""
    rows = version.indices("sealed_test")
    return rows if use is None else rows[version.added_in[rows] > use["after_version"]]


def opinions(version: DatasetVersion, *, rows: Iterable[int], champion: Mapping[int, str]) -> list[Opinion]:
    """List what each submitter said about the cases with a new label (`rows`), and about cases that wait for agreement.

    Of a submitter with several confirmations of a case, the last of the strongest evidence counts. `champion` maps rows
    to decisions. An adjudication is nobody's opinion: it is what opinions are held against.
    """
    row_of = {CaseId(int(version.case_ids[row])): row for row in rows}
    said = {
        case_id: [item for item in items if item.finding is not None]
        for case_id, items in version.said([*row_of, *(case.case_id for case in version.waiting())]).items()
    }
    found = []
    for case_id in sorted(said):
        row = row_of.get(case_id)
        own = [item for item in said[case_id] if item.kind == "confirmation"]
        for submitter in sorted({item.submitter for item in own}):
            mine = max(
                (item for item in own if item.submitter == submitter),
                key=lambda item: (EVIDENCE_RANK[item.evidence], item.confirmation_id),
            )
            others = [item for item in said[case_id] if item.submitter != submitter]
            found.append(
                Opinion(
                    submitter=submitter,
                    finding=str(mine.finding),
                    champion=None if row is None else champion.get(row),
                    others=outweighing(mine, others=others, findings=version.classes if version.several else ()),
                )
            )
    return found


def outweighing(mine: Confirmation, *, others: list[Confirmation], findings: Sequence[str] = ()) -> str | None:
    """Finding of somebody else's adjudication, or of stronger evidence, or of two other submitters with equal evidence.

    Evidence counts by majority, on each of several `findings` by itself. None without any, or where it is tied: of two
    equal voices that differ, nobody can say which is wrong.
    """
    if decided := [item.finding for item in others if item.kind == "adjudication"]:
        return decided[-1]
    strongest = max((EVIDENCE_RANK[item.evidence] for item in others), default=-1)
    voices = [item for item in others if EVIDENCE_RANK[item.evidence] == strongest]
    equal = strongest == EVIDENCE_RANK[mine.evidence]
    if strongest < EVIDENCE_RANK[mine.evidence] or (equal and len({item.submitter for item in voices}) < 2):
        return None
    if findings:
        shares = matrix([str(item.finding) for item in voices], findings).mean(axis=0)
        return None if (shares == 0.5).any() else joined(shares > 0.5, findings)
    counts = Counter(item.finding for item in voices).most_common(2)
    return None if len(counts) == 2 and counts[0][1] == counts[1][1] else counts[0][0]


def _changed(
    version: DatasetVersion, *, candidate: Mapping[str, Any], champion: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What is another in the candidate than in the champion, by name: [champion's, candidate's]; and the data."""
    kept = ("strategy", "started_from", "parameters", "seed", "epochs", "chosen_epoch", "batch_size", "temperature")
    now, before = (
        {"threshold": (model.get("operating_point") or {}).get("threshold")}
        | {f"threshold of {name}": point["threshold"] for name, point in model.get("operating_points", {}).items()}
        | {name: model.get(name) for name in kept}
        for model in (candidate, champion or {})
    )
    return {
        "dataset": version.number,
        "examples": len(version),
        "new_labels": int((version.label_since == version.number).sum()),
        "models": {name: [before.get(name), value] for name, value in now.items() if before.get(name) != value},
    }


def _model(document: Mapping[str, Any], *, protocol: Protocol) -> Model:
    metadata = document["metadata"]
    if (tuple(metadata["classes"]), metadata.get("several", False)) != (protocol.classes, protocol.several):
        raise job.Refused(
            f"a model for the classes {', '.join(metadata['classes'])} cannot be held against a protocol "
            f"with {', '.join(protocol.classes)}"
        )
    try:
        return Model.from_files(
            Path(document["weights"]), metadata=metadata, expected_digest=document["weights_digest"]
        )
    except network.NetworkError as error:
        raise job.Refused(f"a model cannot be loaded: {error}") from error


def _before(
    champion: Mapping[str, Any] | None, *, approved: Sequence[Mapping[str, Any]], window: int
) -> list[Mapping[str, Any]]:
    """The approved models that the candidate is held against besides the champion."""
    reigning = None if champion is None else champion["weights_digest"]
    return [document for document in held_against(approved, window=window) if document["weights_digest"] != reigning]


def _answers(version: DatasetVersion, *, rows: NDArray[np.int64]) -> Sealed:
    return Sealed(
        labels=version.labels[rows],
        groups=version.groups[rows],
        traits=_traits(version, rows=rows),
        case_ids=version.case_ids[rows],
        batches=version.added_in[rows],
        exposures=version.ai_exposures[rows],
    )


def _traits(version: DatasetVersion, *, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    table = version.columns(*get_args(Attribute)).take(rows)
    return {
        name: np.array([value or "" for value in table.column(name).to_pylist()], dtype=str)
        for name in get_args(Attribute)
    }


def _said(model: Model, *, images: NDArray[np.float32], sites: NDArray[np.str_]) -> list[str]:
    return model.decision(model.scores(images), sites=sites) if len(images) else []


def _scored(
    model: Model, document: Mapping[str, Any], *, images: NDArray[np.float32], sites: NDArray[np.str_]
) -> Scored:
    scores = model.scores(images) if len(images) else np.empty((0, len(model.classes)), dtype=np.float32)
    return Scored(
        digest=Digest(document["weights_digest"]),
        scores=scores,
        decided=model.decided(scores, sites=sites),
        threshold=model.threshold,
        thresholds=model.thresholds,
    )
