"""What a protocol says of its gates: what is asked of a candidate, and of the data before a model learns from them.

Each default has its reason and source in `docs/protocol.md`; `pipelines.protocol` is the protocol as a whole.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*([_-][a-z0-9]+)*$", max_length=60)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Attribute = Literal["site", "scanner", "sex", "age_band"]


class Section(BaseModel):
    """A part of a protocol: it never changes, and a field that it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class Margin(Section):
    """An absolute floor, and how much worse than the champion is still called not worse."""

    floor: Share
    margin: Annotated[float, Field(gt=0.0, lt=0.5)]


class CalibrationGate(Section):
    """Expected calibration error, equal-mass bins, on the sealed test."""

    maximum_ece: Share = 0.15
    margin: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05


class SubmitterGate(Section):
    """A submitter whose new labels contradict the champion, or other evidence on the same cases, beyond chance."""

    maximum_disagreement: Share = 0.35
    minimum_labels: Annotated[int, Field(ge=5)] = 15


class SubgroupGate(Section):
    """Slices by attribute: a critical one has to be shown not worse by `margin`, any other must not be harmed."""

    attributes: tuple[Attribute, ...] = ("site", "scanner", "sex", "age_band")
    critical: tuple[Annotated[str, Field(pattern=r"^(site|scanner|sex|age_band)=\S.*$")], ...] = ()
    """Slices by name, for instance `sex=F`."""
    margin: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.10
    tolerance: Annotated[float, Field(ge=0.0, lt=0.5, exclude_if=lambda points: points == 0.0)] = 0.0
    """How much worse a slice that is not critical may be shown to be before that counts as harm."""
    minimum_cases: Annotated[int, Field(ge=20)] = 50
    """Positives (for sensitivity) or negatives (for specificity) below which a slice has insufficient data."""


class Screen(Section):
    """What a candidate has to show on the open tune split before a level of the sealed test is spent on it."""

    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.9
    """One-sided, that its AUROC is above the champion's; at .5 the point value alone has to be."""


class SealedTestPlan(Section):
    """What alpha is spent on: the wear of the sealed test, in advance (`pipelines.sealed_ledger`)."""

    success_weight: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8
    """How much of what is left the next use gets; the rest is kept for uses after a failure."""
    recipe_share: Share = 0.6
    """Share of alpha that only candidates of the declared strategy may spend."""
    uses: Annotated[int, Field(ge=1, le=1000)] = 50
    """Most uses of one epoch, in each of the two wallets."""
    smallest_level: Annotated[float, Field(gt=0.0, lt=0.05)] = 1e-4
    """A wallet whose next level is below this is spent."""
    new_epoch_cases: Annotated[int, Field(ge=1)] = 100
    """Newly confirmed sealed cases of each class that open a new epoch once a wallet is spent."""


class Gates(Section):
    """The pre-stated requirements; `docs/protocol.md` gives the reason and source of each default."""

    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    minimum_cases_per_class: Annotated[int, Field(ge=1)] = 20
    auroc: Margin = Margin(floor=0.80, margin=0.03)
    sensitivity: Margin = Margin(floor=0.70, margin=0.06)
    specificity: Margin = Margin(floor=0.60, margin=0.10)
    kappa: Annotated[Margin | None, Field(exclude_if=lambda rule: rule is None)] = None
    """Quadratic weighted kappa of decisions and answers: for grades, and only for them."""
    calibration: CalibrationGate = CalibrationGate()
    submitters: SubmitterGate = SubmitterGate()
    # Left out of the document while they say what a protocol without them says, which keeps its digest.
    subgroups: Annotated[SubgroupGate | None, Field(exclude_if=lambda section: section is None)] = None
    approved_window: Annotated[int, Field(ge=1, le=100, exclude_if=lambda window: window == 15)] = 15
    """Besides the original, how many approved models, newest first, a candidate must not fall below."""
    sealed_test: Annotated[SealedTestPlan | None, Field(exclude_if=lambda plan: plan is None)] = None
    """None: every use is judged at alpha, however many there were; `{}` asks for the default plan."""
    screen: Annotated[Screen | None, Field(exclude_if=lambda section: section is None)] = None
    """None: every candidate uses the sealed test; `{}` asks for the default screen."""
    evidence: Annotated[Literal["all", "blind"], Field(exclude_if=lambda used: used == "all")] = "all"
    """On which labels of the sealed test the gates decide: all, or those given before the model was seen."""
    require_improvement: bool = True
    """Ask for superiority in AUROC over the champion, not only for non-inferiority."""


class NearDuplicates(Section):
    """When two images count as copies of one another, and what then happens to the newcomer in another split."""

    radius: Annotated[int, Field(ge=0, le=12)] = 6
    """Bits, of 64, in which the perceptual hashes may differ."""
    minimum_likeness: Annotated[float, Field(ge=0.5, le=1.0)] = 0.95
    """Correlation of the pictures' fine structure."""
    action: Literal["wait", "report"] = "wait"


class DataQuality(Section):
    """What the cases of a version have to be like before a model is trained on them."""

    maximum_missing_patient_share: Share = 0.2
    maximum_unreadable_share: Share = 0.02
    maximum_prior_shift: Share = 0.25
    """Half the sum of the absolute changes in the classes' shares, against the version before."""
    near_duplicates: NearDuplicates = NearDuplicates()
    minimum_cases: Annotated[int, Field(ge=10)] = 30
    """A side of a comparison with fewer is `insufficient`."""
