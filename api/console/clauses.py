"""The clauses of a protocol as people say them, and what an amendment changes, clause by clause.

Invariant: nothing is judged here. Which clauses change, and which of the changes ask for less evidence, is what the
record says (`registry.amendments`); a clause that has no words here stands under its own name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

WORDS = {
    "title": "Title",
    "intended_use": "Intended use",
    "classes": "Findings that the model tells apart",
    "positive": "Finding that the threshold applies to",
    "reference_standard.minimum_evidence": "Weakest evidence that settles a case",
    "reference_standard.minimum_reads": "Readers needed to settle a case",
    "reference_standard.minimum_agreement": "Share of the readers who have to agree",
    "reference_standard.exposures": "Answers that count, by whether the model was seen",
    "splits.train": "Share of the patients learnt from",
    "splits.tune": "Share of the patients tuned on",
    "splits.sealed_test": "Share of the patients kept for the sealed test",
    "recipe.network": "Network",
    "recipe.strategy": "How a model learns",
    "recipe.escalation": "How it learns after gates that failed",
    "recipe.epochs": "Passes over the images, from nothing",
    "recipe.maximum_seconds": "Most seconds of training",
    "recipe.maximum_sample_gradients": "Most images learnt from, counted as often as they are seen",
    "recipe.members": "Networks that answer as one",
    "recipe.equalise": "Sees each image a second time, its grey levels equalised",
    "recipe.test_time_shifts": "Answers with the mean over slightly moved copies",
    "recipe.update_epochs": "Passes over the images, for an update",
    "envelope.strategies": "Ways of learning that are allowed",
    "envelope.maximum_parameters": "Largest network that is allowed",
    "envelope.maximum_threshold_change": "How far the threshold may move",
    "operating_point.rule": "How the threshold is chosen",
    "operating_point.by_site": "A threshold of its own for each site with cases enough",
    "operating_point.beside_champion": "No threshold that costs what another would keep of the champion",
    "operating_point.target": "What the threshold aims at",
    "operating_point.second_look": "Share of the cases marked for a second look",
    "triggers.new_confirmations": "New confirmations until the line learns by itself",
    "triggers.every_hours": "Hours until it learns by itself",
    "gates.alpha": "Chance that a model passes that should not",
    "gates.minimum_cases_per_class": "Sealed cases needed of each finding",
    "gates.auroc.floor": "Lowest AUROC",
    "gates.auroc.margin": "How much worse in AUROC still counts as not worse",
    "gates.kappa.floor": "Lowest weighted kappa",
    "gates.kappa.margin": "How much worse in weighted kappa still counts as not worse",
    "gates.sensitivity.floor": "Lowest sensitivity",
    "gates.sensitivity.margin": "How much worse in sensitivity still counts as not worse",
    "gates.specificity.floor": "Lowest specificity",
    "gates.specificity.margin": "How much worse in specificity still counts as not worse",
    "gates.calibration.maximum_ece": "Largest error of the scores",
    "gates.calibration.margin": "How much worse the scores may become",
    "gates.submitters.maximum_disagreement": "How often one submitter may contradict the others",
    "gates.submitters.minimum_labels": "Labels of a submitter before that is looked at",
    "gates.approved_window": "Former champions that a model is held against",
    "gates.require_improvement": "A model has to be shown to be better",
    "gates.evidence": "Labels that decide at the gates",
    "gates.subgroups": "Subgroups that are looked at",
    "gates.subgroups.attributes": "Subgroups that are looked at",
    "gates.subgroups.critical": "Subgroups that have to be shown not worse",
    "gates.subgroups.tolerance": "How much worse a watched subgroup may be shown to be",
    "gates.screen": "What a model has to show on the tuned-on cases before the sealed test is used",
    "gates.screen.confidence": "How sure it has to be, on the tuned-on cases, that a model is better",
    "gates.subgroups.margin": "How much worse in a subgroup still counts as not worse",
    "gates.sealed_test": "Limits on how often the sealed test is used",
    "gates.sealed_test.uses": "Most uses of one epoch of the sealed test",
    "gates.sealed_test.recipe_share": "Share of the sealed test kept for the declared recipe",
    "approvals.required": "People who have to sign",
    "approvals.maximum_submitter_share": "Share of the new labels that a signer may have sent",
    "blind_fraction": "Share of the cases read before the model is seen",
    "data_quality.maximum_missing_patient_share": "Share of the cases that may come without a patient",
    "data_quality.maximum_unreadable_share": "Share of the images that may be unreadable",
    "data_quality.maximum_prior_shift": "How far the shares of the findings may move",
    "data_quality.near_duplicates.action": "What happens to a copy in another split",
    "monitoring.tolerance": "How much more often than promised the champion may err",
    "monitoring.maturity_days": "Days until a case counts in the watch",
    "monitoring.alpha": "Chance of a false alarm",
    "monitoring.sample": "Cases that the champion is watched by",
    "monitoring.shadow_margin": "How much worse a challenger in the shadow may be",
}
"""By dotted path; whoever adds a field to a protocol need not add it here."""

_LOOSER = "  (asks for less evidence)"
_JSON = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A clause that is another in a proposed protocol; `looser`: it asks for less evidence than before."""

    clause: str
    words: str
    before: str
    after: str
    looser: bool


def read(told: Iterable[str]) -> list[Change]:
    """Read what `overread protocol diff` says of each clause; those that ask for less come first."""
    return sorted((_read(line) for line in told), key=lambda change: not change.looser)


def _read(line: str) -> Change:
    looser = line.endswith(_LOOSER)
    clause, _, rest = line.removesuffix(_LOOSER).partition(": ")
    before, rest = _value(rest)
    after, _ = _value(rest.removeprefix(" -> "))
    return Change(clause=clause, words=words_of(clause), before=before, after=after, looser=looser)


def words_of(clause: str) -> str:
    """A clause as people say it."""
    return WORDS.get(clause) or re.sub(r"[._]", " ", clause).capitalize()


def _value(text: str) -> tuple[str, str]:
    """The value that `text` begins with, as people write it, and what follows it."""
    try:
        value, end = _JSON.raw_decode(text)
    except ValueError:  # `nothing`, or words
        value, _, rest = text.partition(" -> ")
        return ("not asked for" if value == "nothing" else value), f" -> {rest}"
    return _plain(value), text[end:]


def _plain(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(_plain, value)) or "none"
        case str():
            return value.replace("_", " ") if re.fullmatch(r"[a-z_]+", value) else value
        case dict() if not value:
            return "the defaults"
        case _:
            return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
