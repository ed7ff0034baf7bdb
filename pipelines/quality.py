"""Look at the cases of a dataset version before a model learns from them, and say what is wrong with them.

Invariant: the same version gives the same report; nothing is changed or dropped here. With a version before, images are
read only of what is new (and of the few hundred that it is compared with), so the cost does not grow with the archive;
without one, every image is.

    python -m pipelines.quality VERSION_DIR [--previous VERSION_DIR] [--protocol FILE] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import metrics, near_duplicates, quality_lines, shift
from pipelines.gate_rules import DataQuality
from pipelines.near_duplicates import Fetch, Rows
from pipelines.protocol import ProtocolError, parse
from pipelines.quality_lines import LEVEL, Table
from pipelines.quality_report import SCHEMA_VERSION, QualityLine, QualityReport, render_text
from pipelines.types import Digest

MOST_BLACK, MOST_WHITE = 0.7, 0.3
"""Shares of an image's pixels at the end of the scale beyond which it is called clipped."""
NOTABLE_LOOK = 0.05
"""Normalised energy distance that a person should see; two halves of one site stay below it."""
_SEEN_SIDE = 256
"""Features are measured on every k-th pixel of a larger image, so that they cost the same for any size."""
_AT_ONCE = 64
"""Images held in memory together."""

Scores = Callable[[Rows], NDArray[np.floating[Any]]]
"""Gives what a model says of some rows, (n, F): logits, or any embedding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What was seen of some images; all (n,) but `features`, which is (n, len(shift.FEATURES))."""

    flat: NDArray[np.bool_]
    black: NDArray[np.float64]
    white: NDArray[np.float64]
    features: NDArray[np.float64]


def assess(
    table: Table,
    *,
    previous: Table | None,
    rules: DataQuality,
    waiting: Mapping[str, int],
    fetch: Fetch,
    scores: Scores | None = None,
    seed: int = 0,
) -> tuple[QualityLine, ...]:
    """Look at a version and return the lines of its report.

    `previous` is the version before, None for the first. `waiting` counts the confirmed cases that did not enter by
    reason, `fetch` gives the stored pixels of rows, and `scores`, where there is a model, what it says of rows.
    """
    since = 0 if previous is None else previous.number
    new = np.flatnonzero(table.added_in > since).astype(np.int64)
    pairs = near_duplicates.among(table.phashes, new=new, rule=rules.near_duplicates, fetch=fetch)
    return (
        *quality_lines.exact_duplicates(table),
        *quality_lines.near_duplicates(table, pairs, rules),
        *quality_lines.missing(table, rules),
        *quality_lines.waiting(table, waiting, rules),
        *image_lines(table, rows=new, fetch=fetch),
        quality_lines.prior_shift(table, previous, rules, seed=seed),
        *quality_lines.mix_shift(table, previous, rules, seed=seed),
        *look_lines(table, since=since, rules=rules, fetch=fetch, scores=scores, seed=seed),
    )


def see(fetch: Fetch, rows: Rows) -> Seen:
    """Look at the images of some rows, a few at a time."""
    flat, black, white, features = [], [], [], []
    for start in range(0, len(rows), _AT_ONCE):
        for pixels in fetch(rows[start : start + _AT_ONCE]):
            top = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
            flat.append(bool(pixels.max() == pixels.min()))
            black.append(float((pixels == 0).mean()))
            white.append(float((pixels == top).mean()))
            features.append(_features(pixels))
    return Seen(
        flat=np.array(flat, dtype=np.bool_),
        black=np.array(black, dtype=np.float64),
        white=np.array(white, dtype=np.float64),
        features=np.array(features, dtype=np.float64).reshape(len(rows), len(shift.FEATURES)),
    )


def image_lines(table: Table, *, rows: Rows, fetch: Fetch) -> list[QualityLine]:
    """Find images that show nothing: of one grey value, or with most pixels at an end of the scale."""
    seen = see(fetch, rows)
    clipped = ~seen.flat & ((seen.black > MOST_BLACK) | (seen.white > MOST_WHITE))
    ends = f"more than {MOST_BLACK:.0%} of their pixels black or {MOST_WHITE:.0%} white: look at their window"
    found = []
    for name, bad, words in (
        ("flat_images", seen.flat, "are of one grey value and show nothing: take them out"),
        ("clipped_images", clipped, f"have {ends}"),
    ):
        n, count = len(rows), int(bad.sum())
        found.append(
            QualityLine(
                name=name,
                verdict="insufficient" if n == 0 else "warn" if count else "pass",
                reason=f"{count} of {n} images {words}" if count else "none found" if n else "no image is new",
                n=n,
                value=count / n if n else None,
                threshold=0.0,
                examples=table.cases(rows[bad]),
            )
        )
    return found


def look_lines(
    table: Table, *, since: int, rules: DataQuality, fetch: Fetch, scores: Scores | None, seed: int
) -> list[QualityLine]:
    """Compare how new images look with those before, site by site; those of a new site with those of all sites.

    One case a patient; features of the image, and where there is a model also what it says of them. Holm over all the
    tests of one kind.
    """
    new = table.added_in > since
    if since == 0 or not new.any():
        reason = "there is no version before to compare with" if since == 0 else "no case is new"
        return [QualityLine(name="image_shift", verdict="insufficient", reason=reason, n=int(new.sum()))]
    rng = np.random.default_rng([seed, 1])
    lines = []
    kinds: list[tuple[str, Scores, Sequence[str]]] = [
        ("image_shift", lambda rows: see(fetch, rows).features, shift.FEATURES)
    ]
    if scores is not None:
        kinds.append(("model_shift", scores, ()))
    for kind, features, names in kinds:
        looks: dict[str, shift.Look | str] = {}
        for site in np.unique(table.sites[new].astype(str)).tolist():
            here = table.sites.astype(str) == site
            old = here & ~new if (here & ~new).any() else ~new
            sides = [_drawn(table, side, rng=rng) for side in (old, here & new)]
            if min(map(len, sides)) < rules.minimum_cases:
                looks[site] = f"{len(sides[1])} new patients against {len(sides[0])} before: too few to tell"
                continue
            values = [np.asarray(features(side), dtype=np.float64) for side in sides]
            looks[site] = shift.look(
                *values, names=names or [f"output {k}" for k in range(values[0].shape[1])], rng=rng
            )
        lines += _look_lines(kind, looks, fresh=set(looks) - set(table.sites[~new].astype(str).tolist()))
    return lines


def report_of(
    version: Any, *, previous: Any = None, rules: DataQuality | None = None, scores: Scores | None = None
) -> QualityReport:
    """Make the quality report of an opened dataset version against the opened version before it (None for the first).

    `rules` are the protocol's, or the defaults where it has none.
    """
    rules = rules or DataQuality()
    lines = assess(
        table_of(version),
        previous=None if previous is None else table_of(previous),
        rules=rules,
        waiting=version.waiting_counts,
        fetch=version.images,
        scores=scores,
    )
    return QualityReport(
        schema_version=SCHEMA_VERSION,
        line=version.line,
        number=version.number,
        dataset_digest=Digest(version.digest),
        previous_digest=None if previous is None else Digest(previous.digest),
        rules=rules.model_dump(mode="json"),
        lines=lines,
    )


def main(arguments: list[str]) -> int:
    """Print the quality report of a checked-out version; exit code 1 where its verdict is fail, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.quality", description="Data quality of a version")
    parser.add_argument("version", type=Path, help="directory of a checked-out dataset version")
    parser.add_argument("--previous", type=Path, help="directory of the version before it")
    parser.add_argument("--protocol", type=Path, help="its data_quality section; the defaults without")
    parser.add_argument("--json", action="store_true", help="print the document instead of text")
    options = parser.parse_args(arguments)
    from pipelines.data_repository import DatasetError  # noqa: PLC0415 - dvc comes with it, and arrays need none
    from pipelines.dataset import open_version  # noqa: PLC0415 - the same

    try:
        rules = parse(options.protocol.read_text(encoding="utf-8")).data_quality if options.protocol else None
        previous = open_version(options.previous) if options.previous else None
        report = report_of(open_version(options.version), previous=previous, rules=rules)
    except (OSError, DatasetError, ProtocolError, near_duplicates.TooAlike) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(report.document(), indent=1, allow_nan=False) if options.json else render_text(report), end="")
    return 1 if report.verdict == "fail" else 0


def _look_lines(kind: str, looks: Mapping[str, shift.Look | str], *, fresh: set[str]) -> list[QualityLine]:
    tested = {site: look for site, look in looks.items() if isinstance(look, shift.Look)}
    answers = metrics.holm([look.p for look in tested.values()], alpha=LEVEL)
    shown = {site: rejected for site, (rejected, _) in zip(tested, answers, strict=True)}
    lines = []
    for site, look in looks.items():
        name = f"{kind}:{site}"
        if isinstance(look, str):
            lines.append(QualityLine(name=name, verdict="insufficient", reason=look, n=0))
            continue
        moved = shown[site] and look.distance > NOTABLE_LOOK
        against = "all other sites, for it is new" if site in fresh else "its cases before"
        change = f"{look.moved} by {look.by:+.1f} standard deviations"
        lines.append(
            QualityLine(
                name=name,
                verdict="warn" if moved else "pass",
                reason=f"{'unlike' if moved else 'like'} {against}: distance {look.distance:.3f}, "
                f"p {look.p:.2g}; most moved {change}",
                n=look.after,
                value=look.distance,
                p=look.p,
                threshold=NOTABLE_LOOK,
                details={"before": look.before, "after": look.after, "moved": look.moved, "by": look.by},
            )
        )
    return lines


def _drawn(table: Table, chosen: NDArray[np.bool_], *, rng: np.random.Generator) -> Rows:
    """One row of each patient among the chosen, at most as many as are compared, ascending."""
    rows = np.flatnonzero(chosen)
    rows = rows[shift.one_of_each(table.groups[rows], rng=rng)]
    if len(rows) > shift.MOST_COMPARED:
        rows = np.sort(rng.permutation(rows)[: shift.MOST_COMPARED])
    return rows.astype(np.int64)


def _features(pixels: NDArray[Any]) -> NDArray[np.float64]:
    plane = pixels if pixels.ndim == 2 or pixels.shape[2] == 3 else pixels[len(pixels) // 2]
    step = tuple(slice(None, None, max(1, side // _SEEN_SIDE)) for side in plane.shape[:2])
    features = shift.image_features(plane[step])
    features[shift.FEATURES.index("size")] = np.log(pixels.size)
    return features


def table_of(version: Any) -> Table:
    """Read the columns of an opened dataset version: the one place that knows what they are called there."""
    return Table(
        number=version.number,
        classes=version.classes,
        case_ids=version.case_ids,
        image_digests=version.image_digests,
        phashes=version.phashes,
        labels=version.labels,
        splits=version.splits,
        groups=version.groups,
        sites=version.sites,
        scanners=version.scanners,
        sexes=version.sexes,
        age_bands=version.age_bands,
        added_in=version.added_in,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
