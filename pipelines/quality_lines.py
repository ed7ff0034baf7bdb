"""The lines of a quality report that need no pixels: what is missing, what waits, what is there twice, what shifted.

Invariant: pure functions of a table's columns; each line says what it counted, of how many, and which cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import metrics, shift
from pipelines.gate_rules import DataQuality
from pipelines.near_duplicates import Hashes, Pairs, Rows
from pipelines.quality_report import EXAMPLES, QualityLine

UNKNOWN = ("", "None", "unknown")
"""How a column spells what is not known."""
UNREADABLE = "image unreadable"
"""The reason, in a version's waiting list, of a case whose image could not be read."""
MANY_MISSING = 0.2
"""Share of cases without a scanner, a sex or an age beyond which results by these say little."""
NOTABLE_MIX = 0.1
"""Change of a mix that a person should see; smaller ones can be significant and mean nothing."""
LEVEL = 0.01
"""Of the tests, after Holm's correction where there are several: the report is read at every freeze."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """The columns of a dataset version that quality is judged by, all (N,), in order of case id."""

    number: int
    classes: tuple[str, ...]
    case_ids: NDArray[np.int64]
    image_digests: NDArray[Any]
    phashes: Hashes
    labels: NDArray[Any]
    """Index into `classes`; of several findings (N, K) bool, which are present."""
    splits: NDArray[Any]
    groups: NDArray[Any]
    """Text that begins with `image:` where the patient is unknown."""
    sites: NDArray[Any]
    scanners: NDArray[Any]
    sexes: NDArray[Any]
    age_bands: NDArray[Any]
    added_in: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.case_ids)

    def cases(self, rows: NDArray[Any]) -> tuple[int, ...]:
        """Return the case ids of some rows, the first EXAMPLES of them."""
        return tuple(self.case_ids[np.asarray(rows, dtype=np.int64)[:EXAMPLES]].tolist())


def missing(table: Table, rules: DataQuality) -> list[QualityLine]:
    """Count the cases without a patient (which the protocol bounds), scanner, sex and age."""
    alone = np.char.startswith(table.groups.astype(str), "image:")
    lines = [
        _share(
            table,
            "missing_patient",
            np.flatnonzero(alone),
            threshold=rules.maximum_missing_patient_share,
            beyond="fail",
            words="have no patient: the same patient may be on both sides of a split",
        )
    ]
    for name, column in (("scanner", table.scanners), ("sex", table.sexes), ("age", table.age_bands)):
        rows = np.flatnonzero(unknown(column))
        words = f"have no {name}: results by {name} will be wide or wrong"
        lines.append(_share(table, f"missing_{name}", rows, threshold=MANY_MISSING, beyond="warn", words=words))
    return lines


def waiting(table: Table, counts: Mapping[str, int], rules: DataQuality) -> list[QualityLine]:
    """Count the confirmed cases that did not enter, by reason, and those of them whose image is unreadable."""
    total = sum(counts.values())
    confirmed = len(table) + total
    lost = counts.get(UNREADABLE, 0)
    share = lost / confirmed if confirmed else 0.0
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return [
        QualityLine(
            name="unreadable_images",
            verdict="fail" if share > rules.maximum_unreadable_share else "warn" if lost else "pass",
            reason=f"{lost} of {confirmed} confirmed cases have an image that cannot be read: send these again"
            if lost
            else "every confirmed case has an image that can be read",
            n=confirmed,
            value=share,
            threshold=rules.maximum_unreadable_share,
        ),
        QualityLine(
            name="waiting",
            verdict="warn" if total > len(table) else "pass",
            reason=f"{total} of {confirmed} confirmed cases wait: {reasons}" if total else "no confirmed case waits",
            n=confirmed,
            value=total / confirmed if confirmed else 0.0,
            details=dict(sorted(counts.items())),
        ),
    ]


def exact_duplicates(table: Table) -> list[QualityLine]:
    """Find cases with the same pixels as another: within a split they count twice, across splits they leak."""
    _, head, inverse = np.unique(table.image_digests.astype("S64"), return_index=True, return_inverse=True)
    # Each with the first of its kind, so that a picture there n times makes n - 1 pairs.
    first = head[inverse]
    second = np.flatnonzero(first != np.arange(len(table)))
    first = first[second]
    pairs = Pairs(first=first, second=second, distance=np.zeros(len(first), dtype=np.uint8))
    return twins(table, pairs, name="exact_duplicates", words="have the very pixels of another")


def near_duplicates(table: Table, pairs: Pairs, rules: DataQuality) -> list[QualityLine]:
    """Report pairs that look like copies: within a split, across splits, and with two answers."""
    radius, least = rules.near_duplicates.radius, rules.near_duplicates.minimum_likeness
    pairs = pairs.where(table.image_digests[pairs.first] != table.image_digests[pairs.second])
    words = f"look like a copy of another (within {radius} bits, likeness {least:g} or more)"
    lines = twins(table, pairs, name="near_duplicates", words=words)
    unlike = table.labels[pairs.first] != table.labels[pairs.second]
    differ = pairs.where(unlike if unlike.ndim == 1 else unlike.any(axis=1))
    return [*lines, _pairs_line(table, differ, name="copies_with_two_answers", bad="warn", words=_TWO_ANSWERS)]


def twins(table: Table, pairs: Pairs, *, name: str, words: str) -> list[QualityLine]:
    """Report pairs within a split, and those across splits, which are worse."""
    crossing = table.splits[pairs.first] != table.splits[pairs.second]
    within = _pairs_line(table, pairs.where(~crossing), name=name, bad="warn", words=f"{words} in the same split")
    across = pairs.where(crossing)
    name, words = f"{name}_across_splits", f"{words} in another split, and would be learnt and tested"
    return [within, _pairs_line(table, across, name=name, bad="fail", words=words)]


def prior_shift(table: Table, previous: Table | None, rules: DataQuality, *, seed: int) -> QualityLine:
    """Compare the shares of the classes with those of the version before, and those of the new cases alone.

    The value is of the two versions, all their cases, so few newcomers cannot move it; the test is of the newcomers.
    Of several findings it is that of the share that changed most, and the test of the finding that it doubts most; one
    that changed by little is never doubted more than one that a person should see.
    """
    if previous is None:
        return _first("prior_shift", n=len(table))
    several = table.labels.ndim == 2
    shares = [_shares(t) for t in (previous, table)]
    changes = np.abs(shares[1] - shares[0])
    value = float(changes.max() if several else changes.sum() / 2.0)
    new = table.added_in > previous.number
    # Compared with the cases that were there before as they are labelled now.
    mixes = (
        [np.where(present, name, f"no {name}") for name, present in zip(table.classes, table.labels.T, strict=True)]
        if several
        else [np.array(table.classes)[table.labels]]
    )
    lines = [
        _mix_line("prior_shift", names, new, what="new cases", seed=seed, minimum=rules.minimum_cases, among=len(mixes))
        for names in mixes
    ]
    line = min(lines, key=lambda one: (one.verdict != "warn", 1.0 if one.p is None else one.p))
    moved = int(changes.argmax())
    change = f"{table.classes[moved]} {shares[0][moved]:.1%} before, {shares[1][moved]:.1%} now"
    line = replace(line, value=value, low=None, high=None, threshold=rules.maximum_prior_shift)
    if value > rules.maximum_prior_shift:
        what = "findings" if several else "classes"
        return replace(line, verdict="fail", reason=f"the {what} of the whole version shifted by {value:.3f}: {change}")
    return replace(line, reason=f"{line.reason}; the whole version: {change}")


def mix_shift(table: Table, previous: Table | None, rules: DataQuality, *, seed: int) -> list[QualityLine]:
    """Compare where the new cases come from, by site and by scanner, with where those before came from."""
    if previous is None:
        return [_first(name, n=len(table)) for name in ("site_mix", "scanner_mix")]
    new = table.added_in > previous.number
    lines = []
    for name, column in (("site_mix", table.sites), ("scanner_mix", table.scanners)):
        known = np.where(unknown(column), "unknown", column.astype(str))
        line = _mix_line(name, known, new, what="new cases", seed=seed, minimum=rules.minimum_cases)
        unseen = sorted(set(known[new].tolist()) - set(known[~new].tolist()))
        if unseen:
            line = replace(line, verdict="warn", reason=f"never seen before: {', '.join(unseen[:10])}; {line.reason}")
        lines.append(line)
    return lines


def unknown(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (N,) where a column holds nothing: None, an empty text, or the word `unknown`."""
    return np.isin(column.astype(str), UNKNOWN)


_TWO_ANSWERS = "have a copy with another finding: one of the two is wrong, have both read again"


def _share(
    table: Table, name: str, rows: NDArray[np.int64], *, threshold: float, beyond: Any, words: str
) -> QualityLine:
    n, found = len(table), len(rows)
    if n == 0:
        return QualityLine(name=name, verdict="insufficient", reason="there is no case", n=0, threshold=threshold)
    estimate = metrics.wilson(found, n)
    return QualityLine(
        name=name,
        verdict=beyond if estimate.value > threshold else "pass",
        reason=f"{found} of {n} cases ({found / n:.1%}; at most {threshold:.0%}) {words}" if found else "none missing",
        n=n,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        threshold=threshold,
        examples=table.cases(rows),
    )


def _pairs_line(table: Table, pairs: Pairs, *, name: str, bad: Any, words: str) -> QualityLine:
    rows = np.unique(np.concatenate([pairs.first, pairs.second]))
    later = np.unique(np.maximum(pairs.first, pairs.second))
    shown = sorted(zip(pairs.distance.tolist(), pairs.first.tolist(), pairs.second.tolist(), strict=True))
    listed: Sequence[Rows] = [np.array(pair[1:]) for pair in shown[: EXAMPLES // 2]]
    return QualityLine(
        name=name,
        verdict=bad if len(pairs) else "pass",
        reason=f"{len(later)} of {len(table)} cases {words}" if len(pairs) else "none found",
        n=len(table),
        value=float(len(later)),
        threshold=0.0,
        examples=table.cases(np.concatenate(listed)) if listed else (),
        details={
            "pairs": len(pairs),
            "cases": len(rows),
            "same_patient": int((table.groups[pairs.first] == table.groups[pairs.second]).sum()),
            "first_pairs": [[int(table.case_ids[a]), int(table.case_ids[b]), d] for d, a, b in shown[: EXAMPLES // 2]],
        },
    )


def _shares(table: Table) -> NDArray[np.float64]:
    """The share of the cases (K,) that each class has, or in which each of several findings is present."""
    labels = table.labels
    found = np.bincount(labels, minlength=len(table.classes)) if labels.ndim == 1 else labels.sum(axis=0)
    return np.asarray(found / max(1, len(table)), dtype=np.float64)


def _mix_line(
    name: str, values: NDArray[Any], new: NDArray[np.bool_], *, what: str, seed: int, minimum: int, among: int = 1
) -> QualityLine:
    """The mix of the new cases beside that of those before; `among` tests like it, which Bonferroni pays for."""
    before, after = int((~new).sum()), int(new.sum())
    if min(before, after) < minimum:
        reason = f"{after} {what} against {before} before: fewer than {minimum} on a side tell nothing"
        return QualityLine(name=name, verdict="insufficient", reason=reason, n=after)
    found = shift.mix(values[~new], values[new], rng=np.random.default_rng(seed))
    p = min(1.0, found.p * among)
    moved = p < LEVEL and found.distance > NOTABLE_MIX
    change = f"{found.moved} {found.share_before:.1%} of those before, {found.share_after:.1%} of the {what}"
    return QualityLine(
        name=name,
        verdict="warn" if moved else "pass",
        reason=f"{change} (changed by {found.distance:.3f}, p {p:.2g}, {after} {what})",
        n=after,
        value=found.distance,
        low=found.low,
        high=found.high,
        p=p,
        threshold=NOTABLE_MIX,
        details={what.replace(" ", "_"): asdict(found)},
    )


def _first(name: str, *, n: int) -> QualityLine:
    return QualityLine(name=name, verdict="insufficient", reason="there is no version before to compare with", n=n)
