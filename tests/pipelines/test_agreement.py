"""Agreement between readers, against published figures, another implementation and tables worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from pipelines.agreement import Reads, agreement_report, cohen, krippendorff, pairs, reads_of
from pipelines.types import CaseId, Confirmation, ConfirmedCase, Digest
from tests.pipelines.saying import adjudication, read, retraction

# Krippendorff 2011, section C: 4 observers, 12 units, a dot where one did not observe.
PUBLISHED = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def reads_from(rows: tuple[str, ...]) -> Reads:
    """One string a reader, one character a case."""
    found = [
        (case, reader, int(value)) for reader, row in enumerate(rows) for case, value in enumerate(row) if value != "."
    ]
    columns = np.array(found, dtype=np.int64)
    return Reads(
        cases=columns[:, 0],
        readers=columns[:, 1],
        findings=columns[:, 2],
        exposures=np.full(len(found), "blind"),
        names=tuple(f"reader-{number}" for number in range(len(rows))),
    )


def case(number: int, *items: Confirmation) -> ConfirmedCase:
    return ConfirmedCase(
        case_id=CaseId(number),
        image_digest=Digest(f"{number:064x}"),
        patient=None,
        site="a",
        scanner=None,
        sex=None,
        age_band=None,
        confirmations=items,
    )


def test_alpha_is_what_krippendorff_published() -> None:
    found = krippendorff(reads_from(PUBLISHED))
    assert found is not None
    assert found.chance_corrected is not None
    assert round(found.chance_corrected.value, 3) == 0.743
    assert found.chance_corrected.n == 11  # the twelfth unit has one observation, and says nothing


def test_alpha_is_what_wikipedia_works_out_with_three_coders() -> None:
    found = krippendorff(reads_from((".....34121133.3", "1.213343.......", "..21344.21133.4")))
    assert found is not None
    assert found.chance_corrected is not None
    assert round(found.chance_corrected.value, 3) == 0.691


def test_alpha_is_what_the_matrix_of_coincidences_gives() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        rows = tuple("".join(generator.choice(list(".012"), size=30)) for _ in range(4))
        found = krippendorff(reads_from(rows))
        assert found is not None
        assert found.chance_corrected is not None
        assert found.chance_corrected.value == pytest.approx(by_coincidences(rows))


def by_coincidences(rows: tuple[str, ...]) -> float:
    """Alpha the long way (Krippendorff 2011, section C)."""
    matrix = np.zeros((3, 3))
    for unit in zip(*rows, strict=True):
        values = [int(value) for value in unit if value != "."]
        for place, one in enumerate(values):
            for other in values[:place] + values[place + 1 :]:
                matrix[one, other] += 1 / (len(values) - 1)
    n, totals = matrix.sum(), matrix.sum(axis=0)
    observed = n - np.trace(matrix)
    return float(1 - (n - 1) * observed / (n * n - (totals**2).sum()))


def test_kappa_is_what_scikit_learn_gives() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        first = generator.integers(0, 3, size=80)
        second = np.where(generator.random(80) < 0.6, first, generator.integers(0, 3, size=80))
        table = np.zeros((3, 3), dtype=np.int64)
        np.add.at(table, (first, second), 1)
        found = cohen(table)
        assert found is not None
        assert found.chance_corrected is not None
        assert found.chance_corrected.value == pytest.approx(cohen_kappa_score(first, second))
        assert found.agreement.value == pytest.approx(np.mean(first == second))


def test_of_two_readers_each_table_holds_what_they_both_read() -> None:
    rows = ("0120.", "01120", "...21")
    tables = {(first, second): table for first, second, table in pairs(reads_from(rows))}
    assert set(tables) == {(0, 1), (0, 2), (1, 2)}
    for (first, second), table in tables.items():
        by_hand = np.zeros((3, 3), dtype=np.int64)
        for one, other in zip(rows[first], rows[second], strict=True):
            if "." not in one + other:
                by_hand[int(one), int(other)] += 1
        assert np.array_equal(table, by_hand)


def test_where_everybody_always_says_the_same_chance_has_no_value() -> None:
    found = krippendorff(reads_from(("0000", "0000")), generator=np.random.default_rng(0), resamples=50)
    assert found is not None
    assert (found.agreement.value, found.chance_corrected) == (1.0, None)
    assert krippendorff(reads_from(("00", ".."))) is None


def test_the_interval_is_that_of_drawing_cases_one_by_one() -> None:
    rows = tuple("".join(row) for row in simulated(n=200, readers=3, right=0.8, seed=5))
    found = krippendorff(reads_from(rows), generator=np.random.default_rng(1), resamples=2000)
    assert found is not None
    assert found.chance_corrected is not None
    generator, drawn = np.random.default_rng(2), []
    for _ in range(500):
        picked = generator.integers(0, 200, size=200)
        again = krippendorff(reads_from(tuple("".join(row[place] for place in picked) for row in rows)))
        assert again is not None
        assert again.chance_corrected is not None
        drawn.append(again.chance_corrected.value)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.chance_corrected.low == pytest.approx(low, abs=0.02)
    assert found.chance_corrected.high == pytest.approx(high, abs=0.02)
    assert found.chance_corrected.low < found.chance_corrected.value < found.chance_corrected.high


def simulated(*, n: int, readers: int, right: float, seed: int) -> NDArray[np.str_]:
    """Readers who are right this often, each by himself, about cases of two kinds."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, size=n)
    wrong = generator.random((readers, n)) > right
    return np.where(wrong, 1 - truth, truth).astype(str)


def test_only_reads_of_the_same_tier_are_compared_and_each_reader_counts_once() -> None:
    cases = [
        case(1, read("normal"), read("pneumonia", number=2), read("pneumonia", number=3, reader="ben")),
        case(2, read("normal"), read("normal", number=2, reader="lab", evidence="pathology")),
        case(3, read("normal"), read("normal", number=2, reader="ben"), read("normal", number=3, evidence="pathology")),
        case(4, read("normal"), adjudication("pneumonia", number=2), retraction(number=3)),
    ]
    reads = reads_of(cases)
    assert reads.cases.tolist() == [0, 0, 2, 2]
    assert [reads.names[reader] for reader in reads.readers] == ["north/ana", "north/ben"] * 2
    assert reads.findings.tolist() == [0, 0, 1, 1]


def test_blind_and_aided_reads_are_told_apart() -> None:
    cases = []
    blind, aided = (simulated(n=60, readers=2, right=right, seed=7) for right in (0.7, 1.0))
    for number in range(60):
        items = [
            read(said[place][number], number=10 * number + step, reader=f"{exposure}-{place}", exposure=exposure)  # type: ignore[arg-type]
            for step, (exposure, place, said) in enumerate(
                (exposure, place, said) for exposure, said in (("blind", blind), ("aided", aided)) for place in (0, 1)
            )
        ]
        cases.append(case(number, *items))
    report = agreement_report(cases, resamples=200)
    assert report["aided"]["alpha"]["value"] == 1.0
    assert report["blind"]["alpha"]["value"] < 0.5
    assert report["blind"]["alpha"]["n"] == 60
    assert "inflated" in report["note"]
    pair = next(pair for pair in report["pairs"] if pair["readers"] == ["north/blind-0", "north/blind-1"])
    assert pair["kappa"]["value"] == pytest.approx(cohen_kappa_score(blind[0], blind[1]))
    assert len(report["pairs"]) == 6
    assert agreement_report(cases, resamples=200) == report


def test_a_line_without_second_reads_has_no_agreement_to_report() -> None:
    report = agreement_report([case(1, read("normal")), case(2)])
    assert (report["all"], report["blind"], report["pairs"]) == (None, None, [])
    few = agreement_report([case(1, read("normal"), read("normal", number=2, reader="ben"))])
    assert (few["pairs"], few["pairs_with_too_few_cases"]) == ([], 1)
