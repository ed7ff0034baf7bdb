"""The protocol of a line: all that is said in advance about how its model may change.

A protocol is this project's form of the FDA's Predetermined Change Control Plan (FDA, final guidance, 2024-12).
It is written in YAML, checked here, and known ever after by the digest of its normalised document: every default
is filled in before digesting, so that a later change of a default cannot change what an old protocol said.

    python -m pipelines.protocol check pipelines/protocols/cxr-pneumonia.yaml
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines import findings
from pipelines.gate_rules import DataQuality, Gates, Name, Section, Share
from pipelines.recipe import Recipe
from pipelines.types import EVIDENCE_RANK, AiExposure, Digest, Evidence, Strategy, Task, digest_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One thing wrong with a protocol: where (dotted path) and what."""

    field: str
    message: str


class ProtocolError(ValueError):
    """The protocol is not valid; `errors` names each field at fault."""

    def __init__(self, errors: list[FieldError]) -> None:
        self.errors = errors
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))


MAX_VOXELS = 2**23
"""Most voxels of a volume that a network sees: 128 slices of 256 x 256."""


class InputSpec(Section):
    """What the network sees: images are resampled to (rows, columns) and scaled to [0, 1].

    With a `depth`, the cases are volumes and are resampled to (depth, rows, columns).
    """

    channels: Literal[1, 3] = 1
    depth: Annotated[int | None, Field(ge=8, le=512, exclude_if=lambda slices: slices is None)] = None
    """Slices of a volume; None: the line reads images, and its document says nothing of slices."""
    rows: Annotated[int, Field(ge=16, le=1024)]
    columns: Annotated[int, Field(ge=16, le=1024)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sides of what the network sees: (rows, columns), of a volume (depth, rows, columns)."""
        plane = (self.rows, self.columns)
        return plane if self.depth is None else (self.depth, *plane)

    @model_validator(mode="after")
    def _volumes_are_grey_and_fit(self) -> InputSpec:
        if self.depth is not None and self.channels != 1:
            raise ValueError("channels: volumes are grey; leave it out, or leave out `depth`")
        if self.depth is not None and math.prod(self.shape) > MAX_VOXELS:
            raise ValueError(f"depth: depth x rows x columns is {math.prod(self.shape)}, and {MAX_VOXELS} is the most")
        return self


class ReferenceStandardRule(Section):
    """From many confirmations to one answer: the strongest evidence decides, the majority within it."""

    minimum_evidence: Evidence = "single_read"
    minimum_reads: Annotated[int, Field(ge=1, le=10)] = 1
    minimum_agreement: Share | None = None
    """Share of the readers at the deciding tier who have to agree; None: a majority is enough."""
    exposures: tuple[AiExposure, ...] = ("blind", "unknown", "aided")

    @property
    def minimum_rank(self) -> int:
        """Rank of the weakest evidence that may settle a case."""
        return EVIDENCE_RANK[self.minimum_evidence]


class Splits(Section):
    """Shares of patients; a keyed hash of the patient decides, once and for ever."""

    train: Share = 0.6
    tune: Share = 0.15
    sealed_test: Share = 0.25

    @model_validator(mode="after")
    def _sum_to_one(self) -> Splits:
        if abs(self.train + self.tune + self.sealed_test - 1.0) > 1e-9:
            raise ValueError("train + tune + sealed_test must be 1")
        if min(self.train, self.tune, self.sealed_test) <= 0.0:
            raise ValueError("each split needs a share above 0")
        return self


class Envelope(Section):
    """What a candidate may be another in than its champion; one outside is stopped (`pipelines.envelope`)."""

    strategies: Annotated[tuple[Strategy, ...], Field(min_length=1)]
    maximum_parameters: Annotated[int, Field(ge=1)] | None = None
    maximum_threshold_change: Annotated[float, Field(gt=0.0, le=1.0)] | None = None


class OperatingPointRule(Section):
    """How the threshold is chosen, on the tune split only."""

    rule: Literal["youden", "sensitivity_at_specificity", "specificity_at_sensitivity", "net_benefit"] = "youden"
    target: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    second_look: Annotated[float | None, Field(gt=0.0, lt=0.5, exclude_if=lambda share: share is None)] = None
    """Share of the cases, those nearest to the threshold, of which a prediction says that they need a second look."""
    by_site: Annotated[bool, Field(exclude_if=lambda asked: not asked)] = False
    """Decide by a threshold of the site's own wherever `tune` has 30 of its cases of each class."""
    beside_champion: Annotated[bool, Field(exclude_if=lambda asked: not asked)] = False
    """Choose among the thresholds that cost least, best nothing, of the champion's sensitivity and specificity."""

    @model_validator(mode="after")
    def _target_where_needed_and_one_band_about_one_threshold(self) -> OperatingPointRule:
        if (self.rule == "youden") != (self.target is None):
            raise ValueError("`target` belongs to the rules other than youden, and they need it")
        if self.by_site and self.second_look is not None:
            raise ValueError("second_look is a band about one threshold: it does not go with by_site")
        return self


class Triggers(Section):
    """When retraining starts by itself."""

    new_confirmations: Annotated[int, Field(ge=1)] = 200
    every_hours: Annotated[float, Field(gt=0.0)] | None = None


class Approvals(Section):
    """Who has to sign: distinct people, none the requester, none who submitted more than this share of new labels."""

    required: Annotated[int, Field(ge=2, le=10)] = 2
    maximum_submitter_share: Share = 0.2


class Monitoring(Section):
    """How the champion is watched in use (`pipelines.watch`): by cases that were read before it was seen."""

    tolerance: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.05
    """How much more often than the sealed test allows the champion may err."""
    maturity_days: Annotated[float, Field(ge=0.0, le=3650.0)] = 30.0
    """A case counts at this age, when the labels of every class have come."""
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """Chance of a false alarm in all the time that the champion serves."""
    sample: Literal["blind_fraction", "every_case"] = "blind_fraction"
    """Which cases count: those whose lot makes them blind, a fair sample; or all, where all are read blind."""
    shadow_margin: Annotated[float, Field(gt=0.0, lt=0.5)] | None = None
    """Follow the challenger on the same cases, until it is shown to be worse by less than this; None: do not."""


class Protocol(Section):
    """A whole protocol. Two classes need no `positive` (the last one is meant); with more, None means arg-max."""

    line: Name
    title: Annotated[str, Field(min_length=3, max_length=200)]
    intended_use: Annotated[str, Field(min_length=20)]
    classes: Annotated[tuple[Name, ...], Field(min_length=2, max_length=100)]
    positive: Name | None = None
    task: Annotated[Task, Field(exclude_if=lambda task: task == "nominal")] = "nominal"
    """`ordinal`: the classes are grades, from the lowest to the highest (`pipelines.ordinal`). `multilabel`: they are
    findings, each present or absent by itself (`pipelines.findings`)."""
    input: InputSpec
    reference_standard: ReferenceStandardRule = ReferenceStandardRule()
    splits: Splits = Splits()
    recipe: Recipe = Recipe()
    envelope: Annotated[Envelope | None, Field(exclude_if=lambda section: section is None)] = None
    """None: whoever starts a run may choose any strategy."""
    operating_point: OperatingPointRule = OperatingPointRule()
    triggers: Triggers = Triggers()
    gates: Gates = Gates()
    data_quality: DataQuality | None = None
    """None asks nothing of the data; `{}` asks for the defaults."""
    approvals: Approvals = Approvals()
    monitoring: Annotated[Monitoring | None, Field(exclude_if=lambda section: section is None)] = None
    """None: the champion is not watched; `{}` asks for the defaults."""
    blind_fraction: Share = 0.05

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError("class names must differ")
        return classes

    @model_validator(mode="before")
    @classmethod
    def _last_of_two_is_positive(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("positive") is None and data.get("task") != "multilabel":
            classes = data.get("classes")
            if isinstance(classes, list | tuple) and len(classes) == 2:
                return {**data, "positive": classes[1]}
        return data

    @model_validator(mode="after")
    def _positive_is_a_class(self) -> Protocol:
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"positive: {self.positive!r} is not one of the classes {', '.join(self.classes)}")
        if self.positive is None and self.operating_point.beside_champion:
            raise ValueError("operating_point.beside_champion: only a positive class has a threshold; leave it out")
        return self

    @model_validator(mode="after")
    def _grades_are_measured_as_grades(self) -> Protocol:
        if self.task != "ordinal" and self.gates.kappa is not None:
            raise ValueError("gates.kappa: it measures grades; say `task: ordinal`, or leave it out")
        if self.task == "ordinal" and self.gates.kappa is None:
            raise ValueError("gates.kappa: grades need a floor and a margin, such as {floor: 0.6, margin: 0.1}")
        if self.task == "ordinal" and self.positive is not None:
            raise ValueError("task: grades are three classes or more, none of them `positive`")
        return self

    @model_validator(mode="after")
    def _several_findings_are_carried_through(self) -> Protocol:
        if wrong := findings.refusals(self):
            raise ValueError("; ".join(wrong))
        return self

    @model_validator(mode="after")
    def _recipe_is_in_the_envelope(self) -> Protocol:
        allowed = self.recipe.declared if self.envelope is None else self.envelope.strategies
        for strategy in self.recipe.declared:
            if strategy not in allowed:
                raise ValueError(f"envelope.strategies: the recipe's own strategy, {strategy}, is not among them")
        return self

    @model_validator(mode="after")
    def _there_is_a_sample_to_watch_by(self) -> Protocol:
        if self.monitoring is not None and self.monitoring.sample == "blind_fraction" and self.blind_fraction == 0.0:
            raise ValueError("monitoring.sample: no case is blind where blind_fraction is 0; raise it, or `every_case`")
        return self

    @property
    def several(self) -> bool:
        """Whether the classes are findings that are each present or absent by themselves."""
        return self.task == "multilabel"

    @property
    def positive_index(self) -> int | None:
        """Column of the positive class in a score array, None where decisions are by arg-max."""
        return None if self.positive is None else self.classes.index(self.positive)

    def document(self) -> dict[str, Any]:
        """The normalised protocol as plain JSON values, every default filled in."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> Digest:
        """SHA-256 of the normalised document."""
        return digest_of(self.document())


def parse(text: str) -> Protocol:
    """Check a protocol written in YAML (or JSON). Raises ProtocolError naming each field at fault."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "document"
        message = str(getattr(error, "problem", None) or error)
        raise ProtocolError([FieldError(field=where, message=message)]) from None
    if not isinstance(data, dict):
        raise ProtocolError([FieldError(field="document", message="a protocol is a mapping of fields to values")])
    return from_document(data)


def from_document(document: dict[str, Any]) -> Protocol:
    """Check a protocol given as plain values. Raises ProtocolError naming each field at fault."""
    try:
        return Protocol.model_validate(document)
    except ValidationError as error:
        raise ProtocolError(
            [
                FieldError(
                    field=".".join(str(part) for part in item["loc"]) or "document",
                    message=item["msg"].removeprefix("Value error, "),
                )
                for item in error.errors(include_url=False)
            ]
        ) from None


def main(arguments: list[str]) -> int:
    """Check each file named; print its digest, or what is wrong with it."""
    if len(arguments) < 2 or arguments[0] != "check":
        print("usage: python -m pipelines.protocol check FILE [FILE ...]", file=sys.stderr)
        return 2
    failed = 0
    for name in arguments[1:]:
        try:
            protocol = parse(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            print(f"{name}: {error.strerror}", file=sys.stderr)
            failed = 1
        except ProtocolError as error:
            for item in error.errors:
                print(f"{name}: {item.field}: {item.message}", file=sys.stderr)
            failed = 1
        else:
            print(f"{name}: ok, line {protocol.line}, digest {protocol.digest}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
