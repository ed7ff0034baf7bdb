"""A protocol in words: what it asks for, what of it is another than before, and its JSON Schema.

Invariant: a difference between two protocols names every clause that is another, by its dotted path, defaults filled
in, so that a person who agrees to an amendment knows what it changes. Nothing is judged here.

    python -m pipelines.wording check FILE ...        # digest, or each field at fault
    python -m pipelines.wording explain FILE          # what it asks for, in words
    python -m pipelines.wording diff BEFORE AFTER     # clause by clause; exit code 1 if they differ
    python -m pipelines.wording schema                # JSON Schema 2020-12
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import protocol
from pipelines.gate_rules import Screen, SealedTestPlan, SubgroupGate
from pipelines.protocol import Monitoring, Protocol, ProtocolError
from pipelines.recipe import Recipe
from pipelines.sealed_ledger import Plan, level_from

SCHEMA_ID = "https://overread.example/protocol.schema.json"
WIDTH = 100
LOOSER = {
    "gates.alpha": 1,
    "gates.auroc.floor": -1,
    "gates.auroc.margin": 1,
    "gates.sensitivity.floor": -1,
    "gates.sensitivity.margin": 1,
    "gates.specificity.floor": -1,
    "gates.specificity.margin": 1,
    "gates.kappa.floor": -1,
    "gates.kappa.margin": 1,
    "gates.calibration.maximum_ece": 1,
    "gates.calibration.margin": 1,
    "gates.submitters.maximum_disagreement": 1,
    "gates.minimum_cases_per_class": -1,
    "gates.approved_window": -1,
    "gates.require_improvement": -1,
    "gates.subgroups.margin": 1,
    "gates.subgroups.tolerance": 1,
    "gates.screen.confidence": -1,
    "reference_standard.minimum_reads": -1,
    "approvals.required": -1,
    "approvals.maximum_submitter_share": 1,
    "blind_fraction": -1,
    "monitoring.tolerance": 1,
    "monitoring.alpha": -1,
    "monitoring.shadow_margin": 1,
}
"""Numbers of which more (1) or less (-1) asks for less evidence than before."""
DEMANDS = ("data_quality", "envelope", "gates.screen", "gates.sealed_test", "gates.subgroups", "monitoring")
"""Sections that only ever ask for more: a clause of theirs that is gone asks for less evidence than before."""
UNSAID = {"gates.approved_window": 15, "gates.subgroups.tolerance": 0.0}
"""What a document that has their section means where it leaves these out."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a protocol as it is written, generated from the model that checks it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID} | Protocol.model_json_schema()


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Tell each clause that two protocols' documents have another value of; a change that asks for less says so."""
    old, new = _clauses(before), _clauses(after)
    told = []
    for clause in sorted(old.keys() | new.keys()):
        one, other = old.get(clause), new.get(clause)
        if one != other:
            words = "  (asks for less evidence)" if _is_looser(clause, one, other) else ""
            told.append(f"{clause}: {_value(one)} -> {_value(other)}{words}")
    return told


def as_read_today(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fill in what a registered document leaves unsaid, as it is read today; as it stands where it cannot be read."""
    try:
        return protocol.from_document(dict(document)).document()
    except ProtocolError:
        return document


def explain(asked: Protocol) -> str:
    """Say what a protocol asks for, paragraph by paragraph, at most 100 columns wide."""
    gates, recipe = asked.gates, asked.recipe
    whose = ", the site's own where it has cases enough" if asked.operating_point.by_site else ""
    where = "on the tune split"
    if asked.operating_point.beside_champion:
        where += " so that it costs neither error of the champion's there, or as little as can be"
    decisions = "by arg-max" if asked.positive is None else f"{asked.positive} at or above a threshold{whose}"
    decisions = "grades by their median" if asked.task == "ordinal" else decisions
    classes = " or ".join(asked.classes)
    if asked.several:
        classes = f"of each of {', '.join(asked.classes)} by itself whether it is there"
        decisions = "at or above a threshold of its own"
    question = (
        f"A model answers {classes}, {decisions} (rule {asked.operating_point.rule}, chosen {where}), on "
        f"{'images' if asked.input.depth is None else 'volumes'} of {' x '.join(map(str, asked.input.shape))} pixels."
    )
    tier = asked.reference_standard.minimum_evidence.replace("_", " ")
    evidence = (
        f"A case counts once {asked.reference_standard.minimum_reads} or more confirmations of at least "
        f"{tier} agree; {asked.splits.train:.0%} of the patients "
        f"are learnt from, {asked.splits.tune:.0%} tuned on, {asked.splits.sealed_test:.0%} sealed."
    )
    hours = f", or {asked.triggers.every_hours:g} hours" if asked.triggers.every_hours else ""
    learning = (
        f"A run starts after {asked.triggers.new_confirmations} new confirmations{hours}, and trains {recipe.network} "
        f"by {recipe.strategy}{_anchors(recipe)}{_budget(recipe)}. {_seen(recipe)}{_envelope(asked)}"
    )
    better = "; and its AUROC is shown to be better than the champion's" if gates.require_improvement else ""
    passing = (
        f"It passes only if AUROC is at least {gates.auroc.floor:g} and not worse than the champion's by "
        f"{gates.auroc.margin:g}, sensitivity {gates.sensitivity.floor:g} by {gates.sensitivity.margin:g}, specificity "
        f"{gates.specificity.floor:g} by {gates.specificity.margin:g}{_grades(asked)}; calibration error at most "
        f"{gates.calibration.maximum_ece:g}{better}."
    )
    if asked.several:
        passing += (
            " AUROC and the margins are of the mean over the findings; the floors of sensitivity and specificity and "
            "the calibration error hold for each, and no finding may be shown to be worse than the champion's."
        )
    if gates.evidence == "blind":
        passing += " All of it is measured on labels that were given before the model was seen."
    people = (
        f"Then {asked.approvals.required} people sign, none of whom asked for the run or submitted more than "
        f"{asked.approvals.maximum_submitter_share:.0%} of its new labels. {asked.blind_fraction:.0%} of the cases are "
        "read before the model is seen."
    )
    paragraphs = [
        f"{asked.title} ({asked.line}), protocol {asked.digest[:12]}.",
        f"Intended use: {asked.intended_use.strip()}",
        *(question, evidence, learning, passing + _slices(gates.subgroups)),
        _screen(gates.screen) + _wear(gates.sealed_test, alpha=gates.alpha),
        people,
        "Nobody watches a champion of several findings yet." if asked.several else _watch(asked.monitoring),
    ]
    return "\n\n".join(textwrap.fill(paragraph, width=WIDTH) for paragraph in paragraphs) + "\n"


def main(arguments: list[str]) -> int:
    """Check, explain or compare protocols, or print their schema; returns the exit code."""
    match arguments:
        case ["check", _, *_]:
            return protocol.main(arguments)
        case ["schema"]:
            print(json.dumps(schema(), indent=1, ensure_ascii=False))
            return 0
        case ["explain", name]:
            return _explain(name)
        case ["diff", first, second]:
            return _diff(first, second)
    usage = "check FILE ... | explain FILE | diff BEFORE AFTER | schema"
    print(f"usage: python -m pipelines.wording {usage}", file=sys.stderr)
    return 2


def _explain(name: str) -> int:
    read = _read(name)
    if read is None:
        return 2
    print(explain(read), end="")
    return 0


def _diff(first: str, second: str) -> int:
    before, after = _read(first), _read(second)
    if before is None or after is None:
        return 2
    told = differences(before.document(), after.document())
    print("\n".join(told) if told else f"no difference: both have digest {before.digest}")
    return 1 if told else 0


def _read(name: str) -> Protocol | None:
    try:
        return protocol.parse(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        print(f"{name}: {error.strerror}", file=sys.stderr)
    except ProtocolError as error:
        for item in error.errors:
            print(f"{name}: {item.field}: {item.message}", file=sys.stderr)
    return None


def _clauses(document: Mapping[str, Any]) -> dict[str, Any]:
    clauses = dict(_leaves(document))
    for clause, meant in UNSAID.items():
        section = clause.rpartition(".")[0]
        if clause not in clauses and any(name.startswith(f"{section}.") for name in clauses):
            clauses[clause] = meant
    return clauses


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _is_looser(clause: str, before: Any, after: Any) -> bool:
    if after is None:
        return before is not None and clause.startswith((*DEMANDS, "gates.evidence"))
    return clause in LOOSER and before is not None and (after - before) * LOOSER[clause] > 0


def _value(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def _anchors(recipe: Recipe) -> str:
    """Say when a run trains by something else than the recipe's strategy."""
    words = ""
    if recipe.anchor_growth is not None:
        words += f", but from nothing once there are {recipe.anchor_growth:g} times the cases of the last such training"
    if recipe.escalation:
        words += f"; after failed gates by {', then '.join(recipe.escalation)}"
    return words


def _seen(recipe: Recipe) -> str:
    ways = ["sees each image also with its grey levels equalised"] if recipe.equalise else []
    if (most := recipe.imagined(sites=1)) > 0.0:
        fewer = (
            f" (fewer the more sites it knows, {recipe.randomise:.0%} at the least)" if most > recipe.randomise else ""
        )
        ways.append(f"learns from {most:.0%} of the images as an imagined other machine would show them{fewer}")
    ways += ["answers with the mean over slightly moved copies"] if recipe.test_time_shifts else []
    *before, last = ways or [""]
    return f"It {', '.join(before)} and {last}. " if before else f"It {last}. " if last else ""


def _grades(asked: Protocol) -> str:
    kappa = asked.gates.kappa
    return "" if kappa is None else f", weighted kappa {kappa.floor:g} by {kappa.margin:g}"


def _budget(recipe: Recipe) -> str:
    """Say with what a run begins, how many networks learn, and what it may spend."""
    words = f"; from nothing means from {recipe.initial_weights.file}" if recipe.initial_weights is not None else ""
    words += f"; {recipe.members} networks answer as one" if recipe.members > 1 else ""
    limits = []
    if recipe.maximum_sample_gradients is not None:
        limits.append(f"{recipe.maximum_sample_gradients} sample-gradients")
    if recipe.maximum_seconds is not None:
        limits.append(f"{recipe.maximum_seconds:g} seconds")
    return words + (f"; a run ends after {' or '.join(limits)}" if limits else "")


def _envelope(asked: Protocol) -> str:
    if asked.envelope is None:
        return "Whoever starts a run may choose another strategy: the protocol sets no envelope."
    parts = [f"Allowed are the strategies {', '.join(asked.envelope.strategies)}"]
    if asked.envelope.maximum_parameters is not None:
        parts.append(f"at most {asked.envelope.maximum_parameters} parameters")
    if asked.envelope.maximum_threshold_change is not None:
        parts.append(f"a threshold within {asked.envelope.maximum_threshold_change:g} of the champion's")
    return ", ".join(parts) + "; a candidate outside is stopped."


def _slices(stated: SubgroupGate | None) -> str:
    if stated is None:
        return " No subgroup is looked at: add gates.subgroups."
    beyond = f" by more than {stated.tolerance:g}" if stated.tolerance else ""
    shown = f"; {', '.join(stated.critical)} shown not worse by {stated.margin:g}" if stated.critical else ""
    return f" No slice by {', '.join(stated.attributes)} is shown to be harmed{beyond}{shown}."


def _screen(stated: Screen | None) -> str:
    if stated is None:
        return ""
    return (
        "A candidate uses the sealed test only if its AUROC is above the champion's on the tune split, at confidence "
        f"{stated.confidence:g}; one that is stopped there spends nothing. "
    )


def _wear(stated: SealedTestPlan | None, *, alpha: float) -> str:
    if stated is None:
        return (
            f"Every use of the sealed test is judged at alpha {alpha:g}, however many there were. Whoever tries often "
            "enough gets a bad model approved: add gates.sealed_test."
        )
    plan = Plan(alpha=alpha, success_weight=stated.success_weight, uses=stated.uses, recipe_share=stated.recipe_share)
    full = plan.wallet("recipe")
    first = level_from(full, uses_left=stated.uses, success_weight=stated.success_weight)
    failed = level_from(full - first, uses_left=stated.uses - 1, success_weight=stated.success_weight)
    passed = level_from(first, uses_left=stated.uses - 1, success_weight=stated.success_weight)
    return (
        f"Over the whole life of a sealed test at most {alpha:g} is spent, {stated.recipe_share:.0%} of it by "
        f"candidates of the declared strategy: the first is judged at level {first:.3g}, the next at {passed:.3g} if "
        f"that passed and at {failed:.3g} if not. Once nothing is left, {stated.new_epoch_cases} new sealed cases of "
        "each class open a new epoch."
    )


def _watch(stated: Monitoring | None) -> str:
    if stated is None:
        return "Nobody watches the champion in use: add monitoring."
    followed = (
        f" A challenger is followed on the same cases until it is shown not to be worse by {stated.shadow_margin:g}."
        if stated.shadow_margin is not None
        else ""
    )
    cases = "the cases that are blind by lot" if stated.sample == "blind_fraction" else "every case that was read blind"
    return (
        f"The champion is watched by {cases}, at the age of {stated.maturity_days:g} days: an alarm rises once it is "
        f"shown to err more often than its sealed test allows and {stated.tolerance:g} more; falsely with chance "
        f"{stated.alpha:g} at most, in all the time that it serves." + followed
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
