"""How far readers agree with one another, beyond chance: Cohen's kappa for two, Krippendorff's alpha for any number.

Invariant: only reads of the same case at the same evidence tier are compared, one a reader: of each case the strongest
tier at which two readers or more have spoken. An adjudication is made in sight of the others, so it is no read here.

Blind and aided reads are told apart, because readers who saw the same prediction agree with it, and so with each other:
agreement among aided reads is inflated and says little about the cases (automation bias).

References: Cohen, Educational and Psychological Measurement 1960; Krippendorff, "Computing Krippendorff's
Alpha-Reliability" (2011), section C (nominal data, any number of observers, missing data); Efron and Tibshirani, "An
Introduction to the Bootstrap" (1993), ch. 13 (percentile intervals).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.types import EVIDENCE_RANK, ConfirmedCase, Estimate

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MINIMUM_CASES = 20
"""Cases that two readers have both read before a kappa of them is reported."""
_AT_ONCE = 10_000_000
"""Numbers of a bootstrap that are in memory at a time."""
AIDED_NOTE = (
    "aided readers saw the same prediction: their agreement is inflated, and is no measure of how hard the cases are"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reads:
    """Who said what of which case, one row a read; each (case, reader) at most once.

    `cases`, `readers`, `findings` (N,) are integers from 0 on, `exposures` (N,) text; `names` are the readers.
    """

    cases: Ints
    readers: Ints
    findings: Ints
    exposures: NDArray[np.str_]
    names: tuple[str, ...]

    def where(self, kept: NDArray[np.bool_]) -> Reads:
        """Keep some of the reads."""
        return replace(
            self,
            cases=self.cases[kept],
            readers=self.readers[kept],
            findings=self.findings[kept],
            exposures=self.exposures[kept],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What readers agree on: `agreement` is the share of pairs of reads that agree; None where chance has no value.

    `n` of each estimate is the number of cases with two reads or more.
    """

    agreement: Estimate
    chance_corrected: Estimate | None


def agreement_report(
    cases: Iterable[ConfirmedCase], *, resamples: int = 1000, seed: int = 0, minimum_cases: int = MINIMUM_CASES
) -> dict[str, Any]:
    """Report agreement as plain values: of all reads, of blind and of aided ones, and of each pair of readers.

    `alpha` and `kappa` are None where everybody said the same of everything: chance then explains all agreement.
    Intervals are percentile bootstraps over cases, two-sided at 0.95. Pairs with fewer than `minimum_cases` cases in
    common are counted, not reported.
    """
    reads = reads_of(cases)
    generator = np.random.default_rng(seed)
    report: dict[str, Any] = {"note": AIDED_NOTE}
    for name in ("all", "blind", "aided"):
        kept = reads if name == "all" else reads.where(reads.exposures == name)
        found = krippendorff(kept, generator=generator, resamples=resamples)
        report[name] = _plain(found, statistic="alpha")
    report["pairs"], report["pairs_with_too_few_cases"] = [], 0
    for first, second, table in pairs(reads):
        if table.sum() < minimum_cases:
            report["pairs_with_too_few_cases"] += 1
            continue
        found = cohen(table, generator=generator, resamples=resamples)
        readers = {"readers": [reads.names[first], reads.names[second]]}
        report["pairs"].append(readers | (_plain(found, statistic="kappa") or {}))
    return report


def reads_of(cases: Iterable[ConfirmedCase]) -> Reads:
    """Gather the reads that can be compared with one another: of each case, at one tier, the latest of each reader."""
    names: dict[str, int] = {}
    findings: dict[str, int] = {}
    rows: list[tuple[int, int, int]] = []
    exposures: list[str] = []
    for number, case in enumerate(cases):
        tiers: dict[int, dict[str, tuple[int, str, str]]] = {}
        for item in case.confirmations:
            if item.kind == "confirmation":
                said = tiers.setdefault(EVIDENCE_RANK[item.evidence], {})
                reader = f"{item.submitter}/{item.reader}"
                latest = (item.confirmation_id, str(item.finding), item.ai_exposure)
                said[reader] = max(latest, said.get(reader, latest))
        spoken = max((rank for rank, said in tiers.items() if len(said) > 1), default=None)
        if spoken is None:
            continue
        for reader, (_, finding, exposure) in tiers[spoken].items():
            rows.append((number, names.setdefault(reader, len(names)), findings.setdefault(finding, len(findings))))
            exposures.append(exposure)
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Reads(
        cases=columns[:, 0],
        readers=columns[:, 1],
        findings=columns[:, 2],
        exposures=np.array(exposures, dtype=np.str_),
        names=tuple(names),
    )


def krippendorff(reads: Reads, *, generator: np.random.Generator | None = None, resamples: int = 0) -> Agreement | None:
    """Return Krippendorff's alpha for nominal data; None where no case has two reads.

    Without `resamples` the bounds are the value itself.
    """
    tables, times = _patterns(reads)
    if not len(times):
        return None
    sizes = tables.sum(axis=1)  # (P,) reads of a case of this pattern
    alike = (tables * (tables - 1)).sum(axis=1)  # (P,) ordered pairs of reads that agree
    sums = np.column_stack([tables, alike / (sizes - 1), alike, sizes * (sizes - 1)])
    drawn = np.concatenate([chunk @ sums for chunk in _drawn(times, generator=generator, resamples=resamples)])
    reads_each, alike_each = drawn[:, : tables.shape[1]], drawn[:, -3]  # (B, K), (B,)
    total = reads_each.sum(axis=1)
    return _agreement(
        drawn[:, -2] / drawn[:, -1],
        observed=1.0 - alike_each / total,
        expected=1.0 - (reads_each * (reads_each - 1)).sum(axis=1) / (total * (total - 1)),
        n=int(times.sum()),
    )


def cohen(table: NDArray[Any], *, generator: np.random.Generator | None = None, resamples: int = 0) -> Agreement | None:
    """Return Cohen's kappa of two readers; `table` (K, K) counts cases by what the first and the second said.

    None for a table without cases. Without `resamples` the bounds are the value itself.
    """
    classes, n = len(table), int(table.sum())
    if n == 0:
        return None
    cells = np.asarray(table, dtype=np.int64).ravel()
    shares = np.concatenate(list(_drawn(cells, generator=generator, resamples=resamples))) / n
    shares = shares.reshape(-1, classes, classes)
    agreed = np.trace(shares, axis1=1, axis2=2)
    expected = 1.0 - (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
    return _agreement(agreed, observed=1.0 - agreed, expected=expected, n=n)


def pairs(reads: Reads) -> Iterator[tuple[int, int, Ints]]:
    """Yield each two readers who have read a case in common, with the (K, K) table of what they said."""
    order = np.argsort(reads.cases, kind="stable")
    cases, readers, findings = reads.cases[order], reads.readers[order], reads.findings[order]
    classes, people = int(findings.max(initial=0)) + 1, len(reads.names)
    keys = []
    start = np.arange(len(cases))
    for distance in range(1, len(cases)):  # as far as the case with the most reads
        start = start[: np.searchsorted(start, len(cases) - distance)]
        start = start[cases[start] == cases[start + distance]]
        if not len(start):
            break
        first, second = readers[start], readers[start + distance]
        said, other = findings[start], findings[start + distance]
        swapped = first > second
        pair = np.where(swapped, second, first) * people + np.where(swapped, first, second)
        cell = np.where(swapped, other, said) * classes + np.where(swapped, said, other)
        keys.append(pair * classes**2 + cell)
    if not keys:
        return
    found, times = np.unique(np.concatenate(keys), return_counts=True)
    pair = found // classes**2
    edges = np.flatnonzero(np.diff(pair, prepend=-1))
    for begin, end in zip(edges, [*edges[1:], len(pair)], strict=True):
        table = np.zeros(classes**2, dtype=np.int64)
        table[found[begin:end] % classes**2] = times[begin:end]
        yield int(pair[begin]) // people, int(pair[begin]) % people, table.reshape(classes, classes)


def _patterns(reads: Reads) -> tuple[Ints, Ints]:
    """Return what cases with two reads or more look like: (P, K) reads by finding, and (P,) how many cases do.

    Cases that look the same are exchangeable, so drawing patterns is drawing cases; there are few patterns.
    """
    classes = int(reads.findings.max(initial=0)) + 1
    if not len(reads.cases):
        return np.zeros((0, classes), dtype=np.int64), np.zeros(0, dtype=np.int64)
    key, times = np.unique(reads.cases * classes + reads.findings, return_counts=True)
    case, finding = key // classes, key % classes
    begin = np.flatnonzero(np.diff(case, prepend=-1))
    end = np.append(begin[1:], len(case))
    # The sum of a random number for each (finding, count) names the pattern of a case.
    marks = np.random.default_rng(0).integers(0, 2**63, size=(classes, int(times.max()) + 1), dtype=np.uint64)
    names = np.add.reduceat(marks[finding, times], begin)
    several = np.add.reduceat(times, begin) > 1
    _, example, of = np.unique(names[several], return_index=True, return_inverse=True)
    tables = np.zeros((len(example), classes), dtype=np.int64)
    for row, (first, last) in enumerate(zip(begin[several][example], end[several][example], strict=True)):
        tables[row, finding[first:last]] = times[first:last]
    return tables, np.bincount(of, minlength=len(example)).astype(np.int64)


def _drawn(times: Ints, *, generator: np.random.Generator | None, resamples: int) -> Iterator[Ints]:
    """Yield (B, P) how often each of P kinds of case is there: as measured first, then in each resample."""
    yield times[None, :]
    if generator is not None:
        rows = max(1, _AT_ONCE // len(times))
        for begin in range(0, resamples, rows):
            size = min(rows, resamples - begin)
            yield generator.multinomial(int(times.sum()), times / times.sum(), size=size)


def _agreement(agreed: Floats, *, observed: Floats, expected: Floats, n: int) -> Agreement:
    """Row 0 is the measured value, the others are resamples; those in which chance has no value are left out."""
    defined = expected > 0.0
    corrected = 1.0 - observed[defined] / expected[defined]
    return Agreement(
        agreement=_estimate(agreed, n=n), chance_corrected=_estimate(corrected, n=n) if defined[0] else None
    )


def _estimate(values: Floats, *, n: int) -> Estimate:
    low, high = np.quantile(values[1:] if len(values) > 1 else values, [0.025, 0.975])
    return Estimate(value=float(values[0]), low=float(low), high=float(high), n=n)


def _plain(found: Agreement | None, *, statistic: str) -> dict[str, Any] | None:
    if found is None:
        return None
    value = None if found.chance_corrected is None else asdict(found.chance_corrected)
    return {"agreement": asdict(found.agreement), statistic: value}
