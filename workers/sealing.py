"""What a use of the sealed test is worth: the ledger's rows become a level, and the level a row.

Invariant: spent before anything is scored, in a transaction of its own, by whoever holds the job's lease. The rows say
what is left of a wallet, so that an amendment of the protocol brings nothing back; an epoch that is worn out is
followed by one of cases that no candidate was judged by, or the candidate is refused with the way out in words.

Reference: Feng et al., UAI 2022; `pipelines.sealed_ledger`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.sealed_ledger import Plan, level_from
from registry import datasets, db, lines, promotions, runs, sealed_tests, strategy
from registry.candidates import Candidate
from registry.sealed_tests import Use
from workers.lease import Lease
from workers.supervise import ScienceRefused


def grant(lease: Lease, *, candidate: Candidate) -> tuple[Candidate | None, Use]:
    """Return whom a candidate is held against now (None: nobody), and the use of the sealed test that is paid for that.

    On record when it returns. Raises ScienceRefused where the sealed test is worn out, LeaseLost, Cancelled.
    """
    sys.audit("overread.fault", "sealed.spend.before")
    with lease.workshop.transaction() as connection:
        champion = promotions.champion(connection, candidate.line_id)
        use = spend(connection, lease, candidate=candidate, champion=champion)
    sys.audit("overread.fault", "sealed.spend.after")
    return champion, use


def spend(connection: db.Connection, lease: Lease, *, candidate: Candidate, champion: Candidate | None) -> Use:
    """Return the use in which `candidate` is held against `champion`, paying for it where that has not been done.

    Raises ScienceRefused where the sealed test is worn out, LeaseLost, Cancelled.
    """
    runs.lock(connection, candidate.run_id)  # before the job, and before the audit trail
    lease.hold(connection)
    return paid(connection, candidate=candidate, champion=champion) or sealed_tests.record_use(
        connection,
        **_hypothesis(candidate, champion),
        **_terms(connection, candidate=candidate, first=champion is None),
    )


def paid(connection: db.Connection, *, candidate: Candidate, champion: Candidate | None) -> Use | None:
    """Return the use in which `candidate` is held against `champion`, None where nothing was spent on that yet."""
    return sealed_tests.of_hypothesis(connection, **_hypothesis(candidate, champion))


def _hypothesis(candidate: Candidate, champion: Candidate | None) -> dict[str, Any]:
    return {
        "candidate_id": candidate.candidate_id,
        "champion_candidate_id": champion.candidate_id if champion else None,
        "protocol_id": candidate.protocol_id,
    }


def _terms(connection: db.Connection, *, candidate: Candidate, first: bool) -> dict[str, Any]:
    """Epoch, wallet, place and level of a candidate's use, as `record_use` takes them."""
    rules = lines.protocol(connection, candidate.protocol_id).document["gates"]
    uses = sealed_tests.list_uses(connection, candidate.line_id)
    epoch, after = (uses[-1].epoch, uses[-1].after_version) if uses else (1, 0)
    wallet = _wallet(connection, candidate, rules=rules, first=first)
    mine = [use for use in uses if (use.epoch, use.wallet) == (epoch, wallet)]
    terms = {"epoch": epoch, "after_version": after, "wallet": wallet, "place": len(mine) + 1}
    if wallet == "unlimited":
        return terms | {"wallet_before": None, "level": rules["alpha"]}
    plan = plan_of(rules)
    before = _remaining(mine, full=plan.wallet("recipe" if wallet == "recipe" else "adaptive"))
    level = level_from(before, uses_left=plan.uses - len(mine), success_weight=plan.success_weight)
    if level >= plan.smallest_level:
        return terms | {"wallet_before": before, "level": level}
    return _of_new_epoch(connection, candidate, uses=uses, wallet=wallet, rules=rules)


def plan_of(rules: Mapping[str, Any]) -> Plan:
    """Return the plan that a protocol's gates state for the wear of the sealed test."""
    stated = rules["sealed_test"]
    return Plan(
        alpha=rules["alpha"],
        success_weight=stated["success_weight"],
        uses=stated["uses"],
        recipe_share=stated["recipe_share"],
        smallest_level=stated["smallest_level"],
    )


def _wallet(connection: db.Connection, candidate: Candidate, *, rules: Mapping[str, Any], first: bool) -> str:
    """Whose money it is: the declared recipe's, where the protocol may come to strategy and seed, or the tinkerer's."""
    if rules.get("sealed_test") is None:
        return "unlimited"
    recipe = lines.protocol(connection, candidate.protocol_id).document["recipe"]
    run = runs.get(connection, candidate.run_id)
    declared = first or (run.strategy in strategy.declared(recipe) and run.seed == recipe["seed"])
    return "recipe" if declared else "adaptive"


def _remaining(uses: Sequence[Use], *, full: float) -> float:
    """What is left of a wallet: what passed hands its level on, and what has no answer counts as failed."""
    if not uses:
        return full
    last = uses[-1]
    left = last.level if last.passed else last.wallet_after
    assert left is not None, "a wallet with a plan knows what is left of it"
    return left


def _of_new_epoch(
    connection: db.Connection, candidate: Candidate, *, uses: Sequence[Use], wallet: str, rules: Mapping[str, Any]
) -> dict[str, Any]:
    """Terms of the first use of a new epoch. Raises ScienceRefused where too few cases are new for one."""
    plan, needed = plan_of(rules), rules["sealed_test"]["new_epoch_cases"]
    full = plan.wallet("recipe" if wallet == "recipe" else "adaptive")
    level = level_from(full, uses_left=plan.uses, success_weight=plan.success_weight)
    if not uses or level < plan.smallest_level:
        raise ScienceRefused(
            f"the protocol sets nothing aside for candidates of the {wallet} wallet, so candidate {candidate.number} "
            "was not held against the sealed test; train by the declared strategy, or amend "
            "gates.sealed_test.recipe_share"
        )
    epoch = uses[-1].epoch
    judged = [datasets.get(connection, use.dataset_version_id) for use in uses if use.epoch == epoch]
    newest = max(judged, key=lambda version: version.number)
    then = _sealed(newest)
    now = _sealed(datasets.get(connection, candidate.dataset_version_id))
    new = {name: max(count - then.get(name, 0), 0) for name, count in now.items()}
    if min(new.values()) < needed:
        raise ScienceRefused(
            f"the sealed test is worn out: epoch {epoch} has no level left for candidates of the {wallet} wallet, and "
            f"candidate {candidate.number} was not looked at. The way out is a new epoch, which opens by itself at the "
            f"next run that has {needed} newly confirmed sealed cases of each class; there are "
            + ", ".join(f"{count} of {name}" for name, count in new.items())
        )
    terms = {"epoch": epoch + 1, "after_version": newest.number, "wallet": wallet, "place": 1}
    return terms | {"wallet_before": full, "level": level}


def _sealed(version: datasets.DatasetVersion) -> dict[str, int]:
    found: dict[str, int] = version.manifest["counts"]["sealed_test"]
    return found
