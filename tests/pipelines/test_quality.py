"""The quality report: each fault planted in a version is found, counted, and named by case."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipelines import dataset, near_duplicates, perceptual, quality, quality_lines, quality_report
from pipelines.gate_rules import DataQuality, NearDuplicates
from pipelines.images import Pixels, image_digest
from pipelines.quality_report import QualityLine, QualityReport

_RNG = np.random.default_rng(8)
_FIELDS = ndimage.gaussian_filter(_RNG.normal(size=(240, 40, 40)), (0.0, 2.5, 2.5))
PICTURES = np.clip(128.0 + 200.0 * _FIELDS, 1, 254).astype(np.uint8)
"""Clouds: unlike radiographs, no two of them look alike."""
TRUTH = (_RNG.random(240) < 0.6).astype(np.int64)


@dataclass(kw_only=True)
class Version:
    """A stand-in for an opened dataset version: the columns and methods that the adapter uses."""

    number: int
    pictures: list[Pixels]
    labels: NDArray[np.int64]
    added_in: NDArray[np.int64]
    waiting_counts: dict[str, int] = field(default_factory=dict)
    line: str = "toy"
    classes: tuple[str, ...] = ("normal", "pneumonia")
    read: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.pictures)
        self.digest = f"{self.number:064d}"
        self.case_ids = np.arange(1, n + 1) * 10
        self.image_digests = np.array([image_digest(picture) for picture in self.pictures])
        self.phashes = np.array([perceptual.perceptual_hash(p) for p in self.pictures], dtype=np.uint64)
        self.splits = np.array(["train", "tune", "sealed_test", "train"])[np.arange(n) % 4]
        self.groups = np.array([f"patient:p{row}" for row in range(n)])
        self.sites = np.array(["north", "south"])[np.arange(n) // 4 % 2]
        self.scanners = np.array(["one"] * n, dtype=object)
        self.sexes = np.array(["F", "M"])[np.arange(n) % 2]
        self.age_bands = np.array(["20-30"] * n, dtype=object)

    def images(self, indices: Iterable[int]) -> list[Pixels]:
        rows = [int(index) for index in indices]
        self.read += rows
        return [self.pictures[row] for row in rows]


def first(n: int = 160, **changes: Any) -> Version:
    values = {"number": 1, "pictures": list(PICTURES[:n]), "labels": TRUTH[:n], "added_in": np.ones(n, dtype=np.int64)}
    return Version(**{**values, **changes})


def second(**changes: Any) -> Version:
    added = np.repeat([1, 2], [160, 80])
    return Version(**{"number": 2, "pictures": list(PICTURES), "labels": TRUTH.copy(), "added_in": added, **changes})


def named(report: QualityReport, name: str) -> QualityLine:
    return report.named(name)


def test_a_clean_version_against_a_clean_one_passes() -> None:
    report = quality.report_of(second(), previous=first())
    assert {line.name: line.verdict for line in report.lines if line.verdict != "pass"} == {}
    assert report.verdict == "pass"
    assert [line.name for line in report.lines] == [
        *["exact_duplicates", "exact_duplicates_across_splits", "near_duplicates", "near_duplicates_across_splits"],
        *["copies_with_two_answers", "missing_patient", "missing_scanner", "missing_sex", "missing_age"],
        *["unreadable_images", "waiting", "flat_images", "clipped_images", "prior_shift", "site_mix", "scanner_mix"],
        *["image_shift:north", "image_shift:south"],
    ]


def test_the_first_version_says_that_there_is_nothing_to_compare_with() -> None:
    report = quality.report_of(first())
    open_lines = {line.name for line in report.lines if line.verdict == "insufficient"}
    assert open_lines == {"prior_shift", "site_mix", "scanner_mix", "image_shift"}
    assert report.verdict == "insufficient"  # and nothing worse
    assert report.previous_digest is None


def test_the_same_pixels_twice_are_found_within_a_split_and_across() -> None:
    pictures = list(PICTURES[:160])
    pictures[3] = pictures[0]  # cases 10 and 40, train and train
    pictures[9] = pictures[4]  # cases 50 and 100, train and tune
    pictures[12] = pictures[4]  # and 130, train: three of a kind
    report = quality.report_of(first(pictures=pictures))
    within, across = named(report, "exact_duplicates"), named(report, "exact_duplicates_across_splits")
    assert (within.verdict, within.value, within.details["first_pairs"]) == ("warn", 2.0, [[10, 40, 0], [50, 130, 0]])
    assert (across.verdict, across.value, across.examples) == ("fail", 1.0, (50, 100))
    assert report.verdict == "fail"
    assert named(report, "near_duplicates").value == 0.0  # said once, not twice


def test_copies_with_other_pixels_are_found_by_newcomers_and_by_a_first_look() -> None:
    pictures = list(PICTURES)
    pictures[201] = (pictures[8] // 2 + 60).astype(np.uint8)  # case 2020 (tune) of 90 (train), less contrast
    pictures[200] = pictures[204].astype(np.uint16) * 257  # cases 2010 and 2050, both new, both train
    labels = TRUTH.copy()
    labels[201] = 1 - labels[8]
    later = second(pictures=pictures, labels=labels)
    for report in (quality.report_of(later, previous=first()), quality.report_of(later)):
        across, within = named(report, "near_duplicates_across_splits"), named(report, "near_duplicates")
        assert (across.verdict, across.examples, across.value) == ("fail", (90, 2020), 1.0)
        assert (within.verdict, within.examples) == ("warn", (2010, 2050))
        assert named(report, "copies_with_two_answers").examples[:2] == (90, 2020)


def test_with_a_version_before_only_new_images_and_what_they_are_compared_with_are_read() -> None:
    rules = DataQuality(near_duplicates=NearDuplicates(radius=2))
    later = second()
    later.sites[160:] = "east"
    later.sites[:160] = "west"
    later.groups[:158] = "patient:one"  # so that three old patients are left to compare with
    quality.report_of(later, previous=first(), rules=rules)
    assert set(range(160, 240)) <= set(later.read)
    assert len(set(later.read) - set(range(160, 240))) <= 3 + len(
        near_duplicates.among(later.phashes, new=np.arange(160, 240), rule=rules.near_duplicates, fetch=later.images)
    )


def test_missing_patients_scanners_sexes_and_ages_are_counted() -> None:
    version = first()
    version.groups = np.where(np.arange(160) < 48, np.char.add("image:", version.image_digests), version.groups)
    version.scanners = np.array([None, "", "unknown", "one"] * 40, dtype=object)
    report = quality.report_of(version)
    line = named(report, "missing_patient")
    assert (line.verdict, line.value, line.n) == ("fail", 0.3, 160)
    assert line.low is not None
    assert line.high is not None
    assert line.low < 0.3 < line.high
    assert line.examples == tuple(range(10, 210, 10))
    assert (named(report, "missing_scanner").verdict, named(report, "missing_scanner").value) == ("warn", 0.75)
    assert named(report, "missing_sex").verdict == "pass"
    allowed = quality.report_of(version, rules=DataQuality(maximum_missing_patient_share=0.3))
    assert named(allowed, "missing_patient").verdict == "pass"


def test_cases_that_wait_are_counted_by_reason_and_unreadable_images_apart() -> None:
    report = quality.report_of(first(waiting_counts={"image unreadable": 40, "discordant": 5}))
    unreadable, waiting = named(report, "unreadable_images"), named(report, "waiting")
    assert (unreadable.verdict, unreadable.value) == ("fail", 40 / 205)
    assert (waiting.verdict, waiting.details) == ("pass", {"discordant": 5, "image unreadable": 40})
    assert "image unreadable 40, discordant 5" in waiting.reason
    few = quality.report_of(first(waiting_counts={"image unreadable": 1}))
    assert named(few, "unreadable_images").verdict == "warn"


def test_flat_and_clipped_images_are_found() -> None:
    pictures = list(PICTURES[:160])
    pictures[7] = np.full((40, 40), 90, dtype=np.uint8)
    pictures[8] = np.where(pictures[8] > 110, 255, pictures[8]).astype(np.uint8)
    report = quality.report_of(first(pictures=pictures))
    assert named(report, "flat_images").examples == (80,)
    assert 90 in named(report, "clipped_images").examples
    assert 80 not in named(report, "clipped_images").examples


def test_a_shift_of_the_classes_fails_beyond_the_limit_and_shows_below() -> None:
    labels = TRUTH.copy()
    labels[160:] = 1
    rules = DataQuality(maximum_prior_shift=0.05)
    line = named(quality.report_of(second(labels=labels), previous=first(), rules=rules), "prior_shift")
    before, now = TRUTH[:160].mean(), labels.mean()
    assert (line.verdict, line.value) == ("fail", pytest.approx(now - before))
    line = named(quality.report_of(second(labels=labels), previous=first()), "prior_shift")
    assert line.verdict == "warn"  # the version as a whole is within .25, the new cases are not like the old ones
    assert line.p is not None
    assert line.p < 0.001
    assert "normal" in line.reason or "pneumonia" in line.reason


def test_of_few_new_cases_nothing_is_said() -> None:
    version = Version(
        number=2, pictures=list(PICTURES[:170]), labels=TRUTH[:170], added_in=np.repeat([1, 2], [160, 10])
    )
    report = quality.report_of(version, previous=first())
    for name in ("prior_shift", "site_mix", "scanner_mix", "image_shift:north", "image_shift:south"):
        assert named(report, name).verdict == "insufficient", name
    assert "fewer than 30" in named(report, "site_mix").reason


def test_a_new_site_is_named_and_its_images_are_held_against_all_others() -> None:
    pictures = [*PICTURES[:160], *(PICTURES[160:] // 2 + 20)]
    later = second(pictures=pictures)
    later.sites[160:] = "east"
    report = quality.report_of(later, previous=first())
    assert named(report, "site_mix").verdict == "warn"
    assert "never seen before: east" in named(report, "site_mix").reason
    line = named(report, "image_shift:east")
    assert line.verdict == "warn"
    assert "all other sites, for it is new" in line.reason
    assert line.value is not None
    assert line.value > 0.05


def test_what_a_model_says_of_the_images_is_compared_too() -> None:
    later = second()

    def scores(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        rng = np.random.default_rng(int(rows[0]))
        moved = (later.added_in[rows, None] == 2) & (later.sites[rows, None] == "north")
        return rng.normal(size=(len(rows), 2)) + 3.0 * moved

    report = quality.report_of(later, previous=first(), scores=scores)
    assert named(report, "model_shift:north").verdict == "warn"
    assert named(report, "model_shift:south").verdict == "pass"


def test_the_same_version_gives_the_same_report_and_it_survives_being_written() -> None:
    report, again = (quality.report_of(second(), previous=first()) for _ in range(2))
    assert report.digest == again.digest
    document = json.loads(json.dumps(report.document(), allow_nan=False))
    assert quality_report.from_document(document).digest == report.digest
    with pytest.raises(ValueError, match="schema"):
        quality_report.from_document({**document, "schema_version": 9})
    with pytest.raises(ValueError, match="not a quality report"):
        quality_report.from_document({**document, "lines": [{"name": "x"}]})


def test_a_report_without_lines_is_no_pass() -> None:
    report = quality.report_of(first())
    assert replace(report, lines=()).verdict == "fail"
    with pytest.raises(KeyError, match="no line"):
        report.named("beauty")


def test_the_text_has_every_line_the_worst_first_and_fits_the_width() -> None:
    pictures = list(PICTURES[:160])
    pictures[9] = pictures[4]
    report = quality.report_of(first(pictures=pictures))
    text = quality_report.render_text(report)
    assert all(f"{line.name}:" in text for line in report.lines)
    assert text.splitlines()[1].startswith("FAIL")
    assert text.index("FAIL    exact_duplicates_across_splits") < text.index("too few prior_shift")
    assert "cases 50, 100" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_command_prints_the_report_and_its_exit_code_tells_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    versions = {"v1": first(), "v2": second()}
    monkeypatch.setattr(dataset, "open_version", lambda path: versions[path.name])
    assert quality.main(["v2", "--previous", "v1"]) == 0
    assert capsys.readouterr().out.startswith("Data quality · toy · version 2\nPASS")
    assert quality.main(["v2", "--previous", "v1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "pass"
    versions["v2"].groups = np.char.add("image:", versions["v2"].image_digests)
    assert quality.main(["v2", "--previous", "v1"]) == 1
    (tmp_path / "protocol.yaml").write_text("line: x", encoding="utf-8")
    capsys.readouterr()
    assert quality.main(["v2", "--protocol", str(tmp_path / "protocol.yaml")]) == 2
    assert "intended_use" in capsys.readouterr().err


def test_an_empty_version_has_no_passing_report() -> None:
    empty = Version(number=1, pictures=[], labels=np.empty(0, dtype=np.int64), added_in=np.empty(0, dtype=np.int64))
    report = quality.report_of(empty)
    assert named(report, "missing_patient").verdict == "insufficient"
    assert report.verdict == "insufficient"


def test_unknown_is_spelt_in_several_ways() -> None:
    assert quality_lines.unknown(np.array([None, "", "unknown", "Ada"], dtype=object)).tolist() == [True] * 3 + [False]
