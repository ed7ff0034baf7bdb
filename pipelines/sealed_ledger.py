"""The ledger of the sealed test: each use wears it out, so each use has its level, and the levels add up to alpha.

Invariant: whatever a developer makes of the answers so far, the chance that any bad candidate passes is at most alpha
for the whole life of the sealed test. A developer learns one bit a use. A use is refused once the wallet is spent, and
the way out is a new epoch from newly confirmed cases, never a fresh look at the same ones.

How a level comes about (Feng et al., UAI 2022: sequentially rejective graphical procedure, SRGP). Each node of a tree
is a history of answers. The root has weight 1; its child i is the test after i failures and gets the share
rho (1 - rho)^i of the weight, the last child all the rest. A node that passes hands its weight on to its own children;
one that fails is left, and its next sibling is tested. The level is alpha times the weight. Candidates made by the
declared recipe, which no answer can have steered, spend a part of alpha of their own.

References: Feng, Pennello, Petrick, Sahiner, Pirracchio, Gossmann, UAI 2022; Bretz et al., Statistics in Medicine 2009.

    python -m pipelines.simulate test-reuse
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipelines.types import Digest

Wallet = Literal["recipe", "adaptive"]

SMALLEST_LEVEL = 1e-6
"""No sealed test of a size that exists could pass a level below this."""


class LedgerError(ValueError):
    """The plan or the history of the ledger makes no sense; the message says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the protocol says in advance about the wear of one sealed test."""

    alpha: float = 0.05
    success_weight: float = 0.8
    """rho: how much of the weight the next test gets, and how much is kept for tests after a failure."""
    uses: int = 50
    """Most uses of one epoch, in each of the two wallets."""
    recipe_share: float = 0.6
    """Share of alpha that only candidates of the declared recipe may spend."""
    smallest_level: float = SMALLEST_LEVEL
    """A level below this is called spent."""

    def __post_init__(self) -> None:
        if not (0.0 < self.alpha < 0.5 and 0.0 < self.success_weight < 1.0 and 0.0 <= self.recipe_share <= 1.0):
            raise LedgerError("alpha in (0, 0.5), success_weight in (0, 1) and recipe_share in [0, 1] are needed")
        if self.uses < 1:
            raise LedgerError("a sealed test that may not be used once is of no use")

    def wallet(self, name: Wallet) -> float:
        """Return the part of alpha that is in a wallet."""
        return self.alpha * (self.recipe_share if name == "recipe" else 1.0 - self.recipe_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One row: which candidate met which hypothesis at which level, from which wallet, and whether it passed."""

    candidate: Digest
    hypothesis: str
    wallet: Wallet
    level: float
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A use that is refused, with the way out in words."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All uses of one epoch of a sealed test, oldest first."""

    plan: Plan
    epoch: int = 1
    uses: tuple[Use, ...] = ()

    def next_level(self, wallet: Wallet) -> float | Spent:
        """Return the level at which the next candidate of a wallet is to be judged, or why there is none."""
        answers = [use.passed for use in self.uses if use.wallet == wallet]
        level = local_level(answers, alpha=self.plan.wallet(wallet), plan=self.plan)
        if level < self.plan.smallest_level:
            return Spent(
                reason=(
                    f"epoch {self.epoch} of the sealed test is worn out for {wallet} candidates after {len(answers)} "
                    "uses: open a new epoch from newly confirmed cases, or wait for them"
                )
            )
        return level

    def earlier(self, candidate: Digest) -> Use | None:
        """Return the use that a candidate has had in this epoch: its answer stands, and asking again costs nothing."""
        return next((use for use in self.uses if use.candidate == candidate), None)

    def record(self, *, candidate: Digest, hypothesis: str, wallet: Wallet, passed: bool) -> Ledger:
        """Return the ledger with one more use. Raises LedgerError where the use ought to have been refused."""
        level = self.next_level(wallet)
        if isinstance(level, Spent):
            raise LedgerError(level.reason)
        if self.earlier(candidate) is not None:
            raise LedgerError(f"candidate {candidate[:12]} has had its answer in this epoch; it stands")
        use = Use(candidate=candidate, hypothesis=hypothesis, wallet=wallet, level=level, passed=passed)
        return replace(self, uses=(*self.uses, use))

    def new_epoch(self, *, new_cases: int, minimum: int) -> Ledger:
        """Return an unworn ledger for a sealed test that has at least `minimum` cases nobody was judged by.

        Raises LedgerError with fewer: renaming the same cases does not make them forget.
        """
        if new_cases < max(minimum, 1):
            raise LedgerError(
                f"a new epoch needs {max(minimum, 1)} newly confirmed sealed cases, there are {new_cases}"
            )
        return Ledger(plan=self.plan, epoch=self.epoch + 1)


def local_level(answers: Sequence[bool], *, alpha: float, plan: Plan) -> float:
    """Return the level of the test that follows `answers` (pass or fail, oldest first); 0 once the uses are spent."""
    rho, weight, failures, siblings = plan.success_weight, 1.0, 0, plan.uses
    for passed in answers:
        if passed:
            weight *= _share(failures, siblings=siblings, rho=rho)
            siblings, failures = siblings - failures - 1, 0
        else:
            failures += 1
    return alpha * weight * _share(failures, siblings=siblings, rho=rho)


def level_from(remaining: float, *, uses_left: int, success_weight: float) -> float:
    """Return the level of the next test from what is left of its wallet; the same as `local_level` from the answers.

    A test that fails leaves `remaining` less its level, one that passes leaves its level. So what was spent stays spent
    though the protocol's weights are changed by an amendment.
    """
    if uses_left < 1:
        return 0.0
    return remaining if uses_left == 1 else success_weight * remaining


def _share(failures: int, *, siblings: int, rho: float) -> float:
    """The edge to the test after so many failures; the last of the siblings takes what the others left."""
    if failures >= siblings:
        return 0.0
    rest: float = (1.0 - rho) ** failures
    return rest if failures == siblings - 1 else rho * rest
