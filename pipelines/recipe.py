"""How candidates are trained: what a protocol says of the network, of the strategy and its budget, and of the cases.

Invariant: what came later is left out of the document while it says nothing new, so that an older protocol keeps its
digest, and its meaning.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipelines.gate_rules import Name, Section, Share
from pipelines.types import AiExposure, Evidence, Strategy

Weight = Annotated[float, Field(gt=0.0, le=1.0)]


class CaseWeights(Section):
    """How often a case is drawn in training, beside another of its site and class that has weight 1.

    A case's weight is the product of what its reads' AI exposure and its evidence have; `blind` is 1.
    """

    aided: Weight = 1.0
    unknown: Weight = 1.0
    report_text: Weight = 1.0
    single_read: Weight = 1.0
    consensus: Weight = 1.0
    follow_up: Weight = 1.0
    pathology: Weight = 1.0

    def of(self, *, evidence: Evidence, ai_exposure: AiExposure) -> float:
        """Weight of a case by its evidence and the exposure of those who read it, in (0, 1]."""
        return float(getattr(self, evidence)) * (1.0 if ai_exposure == "blind" else float(getattr(self, ai_exposure)))


class InitialWeights(Section):
    """Weights that a training from nothing begins with; the file is there, nothing is fetched (`pipelines.initial`)."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$", max_length=100)]
    """Its name in the folder `weights` of the service's home."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of its bytes."""


class Recipe(Section):
    """How candidates are trained."""

    network: Name = "small_cnn"
    strategy: Strategy = "replay"
    anchor_growth: Annotated[float | None, Field(gt=1.0, exclude_if=lambda growth: growth is None)] = None
    """A run trains from nothing once there are so many times the cases that the last such training knew."""
    escalation: Annotated[tuple[Strategy, ...], Field(max_length=5, exclude_if=lambda ladder: not ladder)] = ()
    """What runs train by after one, two, … candidates in a row failed their gates, the last one ever after."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 20
    """Passes over the training split for a model made from nothing."""
    update_epochs: Annotated[int, Field(ge=1, le=1000)] = 8
    """Passes over the new cases for an update that starts from the champion."""
    maximum_sample_gradients: Annotated[int | None, Field(ge=1000, exclude_if=lambda most: most is None)] = None
    """Most sample-gradients of one run; a plan that costs more is cut to it."""
    maximum_seconds: Annotated[float | None, Field(gt=0.0, exclude_if=lambda most: most is None)] = None
    """Most seconds of one run's epochs, looked at after each of them; whichever of the two ends first."""
    initial_weights: Annotated[InitialWeights | None, Field(exclude_if=lambda weights: weights is None)] = None
    """None: a training from nothing begins with weights that the seed gives."""
    members: Annotated[int, Field(ge=1, le=16, exclude_if=lambda number: number == 1)] = 1
    """Networks that learn side by side and answer as one, by the mean of their probabilities."""
    equalise: Annotated[bool, Field(exclude_if=lambda asked: not asked)] = False
    """Show the network each image a second time, its grey levels equalised (`pipelines.tones`)."""
    test_time_shifts: Annotated[bool, Field(exclude_if=lambda asked: not asked)] = False
    """Score each image and copies moved by a 28th of its sides, and answer with the mean (`pipelines.predict`)."""
    precision: Annotated[Literal["float32", "bfloat16"], Field(exclude_if=lambda kind: kind == "float32")] = "float32"
    """What the network computes in while it learns; weights, sums and all that is scored are float32."""
    optimiser: Annotated[Literal["adamw", "muon"], Field(exclude_if=lambda kind: kind == "adamw")] = "adamw"
    """`muon` turns the steps of layers' matrices into orthogonal ones (`pipelines.optimisers`)."""
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 64
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-2
    replay_share: Share = 0.5
    """Share of each batch drawn from the archive when the strategy is `replay`."""
    augment: bool = True
    randomise: Share = 0.0
    """Share of the training images shown as an imagined other scanner would: the next one surprises less."""
    randomise_one_site: Annotated[Share, Field(exclude_if=lambda share: share == 0.0)] = 0.0
    """That share while there is one site to learn from; an S-th of it where there are S, never below `randomise`."""
    weights: Annotated[CaseWeights, Field(exclude_if=lambda weights: weights == CaseWeights())] = CaseWeights()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    """CPU threads; part of the recipe because floating-point sums depend on it."""

    @field_validator("escalation")
    @classmethod
    def _can_be_promoted(cls, ladder: tuple[Strategy, ...]) -> tuple[Strategy, ...]:
        if "finetune" in ladder:
            raise ValueError("finetune is never promoted, so it helps nobody after a failure")
        return ladder

    def imagined(self, *, sites: int) -> float:
        """Share of the training images, from so many sites, that are shown as another scanner would: [0, 1]."""
        return max(self.randomise, self.randomise_one_site / max(1, sites))

    @property
    def declared(self) -> tuple[Strategy, ...]:
        """Every strategy that runs may come to without anybody asking for it."""
        return (self.strategy, *self.escalation, *(("full",) if self.anchor_growth is not None else ()))
