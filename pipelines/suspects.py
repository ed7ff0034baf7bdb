"""Which confirmed diagnoses look wrong: ranked within each class by models that were not trained on the case.

Each case is scored by a network trained without it and without its patient (cross-fitting in three folds, stratified by
site and class), starting from the champion where there is one. A champion has seen the cases of its own dataset, so a
network that can learn labels by heart (small data, no augmentation, many epochs) repeats what is wrong there: the list
is of most worth for what came since, and from nothing it is free of that, at the cost of a training. Invariant: nothing
is dropped or changed; the sealed test takes no part, because re-reading just those of its cases that a model doubts
would flatter the next model. Cases are never ranked by disagreement with the champion alone: at a site it has not
learnt it is the champion that is wrong.

Reference: Northcutt, Jiang, Chuang, "Confident Learning", JAIR 2021 (cleanlab).

    python -m pipelines.suspects JOB_DIR                          # config.json in; result.json out
    python -m pipelines.suspects VERSION_DIR --protocol FILE      # prints the list
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import champion, job, predict, train
from pipelines.protocol import Protocol, ProtocolError, from_document, parse
from pipelines.types import digest_of

FOLDS = 3
EPOCHS = 4
"""Passes over two thirds of the cases for each fold that starts from the champion."""
EPOCHS_FROM_NOTHING = 8
LARGEST_SHARE = 0.2
"""Of a class, the most that are sent to a second reader at once."""
SHOWN = 10
"""Cases of a class that the text shows; the document has them all."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossFit:
    """What networks that have not seen a case say of it."""

    probabilities: NDArray[np.float64]
    """(N, classes) in [0, 1], rows sum to 1."""
    folds: NDArray[np.int64]
    """(N,) the fold in which the case was scored."""
    sample_gradients: int
    """What it cost."""
    started_from: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """How well each given label agrees with the out-of-sample scores."""

    quality: NDArray[np.float64]
    """(N,) in [0, 1], 0 the most doubtful; to be compared within a class only."""
    doubted: NDArray[np.bool_]
    """(N,) whether confident learning counts the label among the wrong ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A case for a second reader."""

    case_id: int
    finding: str
    instead: str
    """The likeliest other class."""
    quality: float
    probability: float
    """Of the given finding, out of sample."""
    site: str


def cross_fit(
    cases: train.Cases,
    groups: NDArray[Any],
    *,
    protocol: Protocol,
    base: champion.Base | None = None,
    epochs: int | None = None,
    seed: int = 0,
    folds: int = FOLDS,
    tell: Callable[[dict[str, Any]], None] = lambda _row: None,
    keep_going: Callable[[], None] = lambda: None,
) -> CrossFit:
    """Score each case by a network trained on the other folds; `groups` (N,) names the patient of each.

    A tenth of the patients trained on choose epoch and temperature. `label_since` of the cases is not looked at.
    Raises TrainingRefused where there are too few cases of a class to be in every fold, or training goes wrong.
    """
    strata = np.char.add(np.char.add(cases.sites.astype(str), "\n"), cases.labels.astype(str))
    rng = np.random.default_rng(seed)
    fold = deal(strata, groups, hands=folds, rng=rng)
    probabilities = np.empty((len(cases.labels), len(protocol.classes)))
    cost, started = 0, set()
    for k in range(folds):
        rows, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        choosing = deal(strata[rows], groups[rows], hands=10, rng=rng) == 0
        if set(cases.labels[rows[choosing]].tolist()) != set(range(len(protocol.classes))):
            choosing = np.ones(len(rows), dtype=np.bool_)
            learning = rows
        else:
            learning = rows[~choosing]
        trained = train.fit(
            _part(cases, learning, base=base),
            _part(cases, rows[choosing], base=base),
            protocol=_short(protocol, epochs=epochs, update=base is not None),
            strategy="finetune" if base else "full",
            seed=seed + k,
            base=base,
            tell=lambda row, k=k: tell({"fold": k + 1, "folds": folds, **row}),  # type: ignore[misc]
            keep_going=keep_going,
        )
        probabilities[held] = predict.Model(trained.module, trained.metadata).scores(np.array(cases.images[held]))
        cost += int(trained.metadata["sample_gradients"])
        started.add(str(trained.metadata["started_from"]))
    return CrossFit(
        probabilities=probabilities / probabilities.sum(axis=1, keepdims=True),
        folds=fold,
        sample_gradients=cost,
        started_from=" and ".join(sorted(started)),
    )


def deal(strata: NDArray[Any], groups: NDArray[Any], *, hands: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Deal rows into `hands` so that a group stays together and each stratum is spread; returns the hand of each row.

    A group counts for the stratum of its first row, the largest groups are dealt first.
    """
    _, first, inverse, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    hand = np.empty(len(first), dtype=np.int64)
    of_group = strata[first]
    start = 0
    for stratum in np.unique(of_group):
        members = rng.permutation(np.flatnonzero(of_group == stratum))
        members = members[np.argsort(-sizes[members], kind="stable")]
        hand[members] = (start + np.arange(len(members))) % hands
        start += len(members)  # the next stratum goes on where this one ended, so that hands stay equal
    return hand[inverse]


def rank(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Ranking:
    """Rank labels (N,) by out-of-sample probabilities (N, classes), with cleanlab.

    Raises ValueError where a class has no case: its own scores cannot then be judged.
    """
    from cleanlab import filter as cleanlab_filter  # noqa: PLC0415 - a second to import, and only this function needs it
    from cleanlab import rank as cleanlab_rank  # noqa: PLC0415 - the same

    if len(np.unique(labels)) != probabilities.shape[1]:
        raise ValueError("every class needs a case before its labels can be doubted")
    quality = cleanlab_rank.get_label_quality_scores(labels, probabilities, method="normalized_margin")
    doubted = cleanlab_filter.find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    return Ranking(quality=np.asarray(quality, dtype=np.float64), doubted=np.asarray(doubted, dtype=np.bool_))


def for_a_second_reader(
    ranking: Ranking,
    *,
    case_ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    sites: NDArray[Any],
    probabilities: NDArray[np.float64],
    classes: tuple[str, ...],
) -> dict[str, list[Suspect]]:
    """List the doubted cases of each class, the most doubtful first, at most LARGEST_SHARE of the class."""
    found = {}
    for index, finding in enumerate(classes):
        rows = np.flatnonzero(labels == index)
        most = int(np.ceil(LARGEST_SHARE * len(rows)))
        rows = rows[ranking.doubted[rows]]
        rows = rows[np.argsort(ranking.quality[rows], kind="stable")][:most]
        found[finding] = [
            Suspect(
                case_id=int(case_ids[row]),
                finding=finding,
                instead=classes[int(np.argmax(np.where(np.arange(len(classes)) == index, -1.0, probabilities[row])))],
                quality=round(float(ranking.quality[row]), 4),
                probability=round(float(probabilities[row, index]), 4),
                site=str(sites[row]),
            )
            for row in rows
        ]
    return found


def suspects_of(
    version: Any,
    *,
    protocol: Protocol,
    base: champion.Base | None = None,
    seed: int = 0,
    tell: Callable[[dict[str, Any]], None] = lambda _row: None,
    keep_going: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Cross-fit the train and tune cases of an opened version; returns the document, plain JSON values.

    Raises TrainingRefused.
    """
    if protocol.several:
        raise train.TrainingRefused("labels of several findings cannot be doubted yet: have cases read again by lot")
    if tuple(version.classes) != protocol.classes:
        raise train.TrainingRefused("the dataset version has other classes than the protocol: freeze a new version")
    rows = np.flatnonzero(version.splits != "sealed_test")
    cases = train.Cases(
        images=version.prepared(protocol.input)[rows],
        labels=version.labels[rows],
        sites=version.sites[rows],
        label_since=version.label_since[rows],
    )
    fitted = cross_fit(
        cases, version.groups[rows], protocol=protocol, base=base, seed=seed, tell=tell, keep_going=keep_going
    )
    found = for_a_second_reader(
        rank(cases.labels, fitted.probabilities),
        case_ids=version.case_ids[rows],
        labels=cases.labels,
        sites=cases.sites,
        probabilities=fitted.probabilities,
        classes=protocol.classes,
    )
    counts = np.bincount(cases.labels, minlength=len(protocol.classes)).tolist()
    return {
        "schema_version": 1,
        "line": version.line,
        "number": version.number,
        "dataset_digest": version.digest,
        "protocol_digest": protocol.digest,
        "base_digest": None if base is None else base.weights_digest,
        "started_from": fitted.started_from,
        "folds": FOLDS,
        "seed": seed,
        "cases": len(rows),
        "sample_gradients": fitted.sample_gradients,
        "classes": {
            finding: {"cases": n, "suspects": [asdict(suspect) for suspect in found[finding]]}
            for finding, n in zip(protocol.classes, counts, strict=True)
        },
    }


def render_text(document: Mapping[str, Any]) -> str:
    """Render the document of `suspects_of` for a terminal or a mail."""
    cost = document["sample_gradients"] / max(1, document["cases"])
    lines = [
        f"Suspect labels · {document['line']} · version {document['number']}",
        "For a second reader, the most doubtful of each class first; nothing is dropped.",
        f"{document['cases']} cases of train and tune, {document['folds']} folds from {document['started_from']}",
        f"cost {document['sample_gradients']} sample-gradients, {cost:.1f} a case",
    ]
    for finding, of_class in document["classes"].items():
        listed = of_class["suspects"]
        lines += ["", f"{finding}: {len(listed)} of {of_class['cases']} are doubted"]
        for suspect in listed[:SHOWN]:
            lines.append(
                f"  case {suspect['case_id']:<8} rather {suspect['instead']}, {suspect['finding']} at "
                f"{suspect['probability']:.3f} (quality {suspect['quality']:.3f}, site {suspect['site']})"
            )
        if len(listed) > SHOWN:
            lines.append(f"  and {len(listed) - SHOWN} more")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run the job that a directory with config.json describes, or print the list for a checked-out version."""
    if len(arguments) == 1 and (Path(arguments[0]) / "config.json").is_file():
        return job.run(arguments, work=_work)
    parser = argparse.ArgumentParser(prog="python -m pipelines.suspects", description="Labels for a second reader")
    parser.add_argument("directory", type=Path, help="a job, or a checked-out dataset version")
    parser.add_argument("--protocol", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the document instead of text")
    options = parser.parse_args(arguments)
    from pipelines.data_repository import DatasetError  # noqa: PLC0415 - dvc comes with it, and arrays need none
    from pipelines.dataset import open_version  # noqa: PLC0415 - the same

    try:
        protocol = parse(options.protocol.read_text(encoding="utf-8"))
        document = suspects_of(open_version(options.directory), protocol=protocol, seed=options.seed)
    except (OSError, ProtocolError, DatasetError, job.Refused) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(document, indent=1) if options.json else render_text(document), end="")
    return 0


def _work(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    from pipelines.dataset import open_version  # noqa: PLC0415 - as in `main`

    document = suspects_of(
        open_version(Path(config["dataset"])),
        protocol=from_document(config["protocol"]),
        base=champion.from_job(config.get("base")),
        seed=int(config.get("seed", 0)),
        tell=lambda row: job.append_progress(directory, row),
        keep_going=job.orphan_watch(),
    )
    return {"suspects": document, "digest": digest_of(document), "text": render_text(document)}


def _part(cases: train.Cases, rows: NDArray[np.int64], *, base: champion.Base | None) -> train.Cases:
    """Some rows, every one of them new to the champion, so that all are learnt from."""
    since = np.full(len(rows), 1 if base is None else base.dataset_number + 1, dtype=np.int64)
    return train.Cases(
        images=np.array(cases.images[rows]), labels=cases.labels[rows], sites=cases.sites[rows], label_since=since
    )


def _short(protocol: Protocol, *, epochs: int | None, update: bool) -> Protocol:
    """The protocol with a recipe of so many epochs. A plan lets an update cost half a training from nothing."""
    wanted = epochs or (EPOCHS if update else EPOCHS_FROM_NOTHING)
    recipe = protocol.recipe.model_copy(
        update={
            "epochs": 2 * wanted if update else wanted,
            "update_epochs": wanted,
            "maximum_seconds": None,  # the document's digest must not hang on the clock
            "initial_weights": None,
        }
    )
    return protocol.model_copy(update={"recipe": recipe})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
