"""What a run may spend: a plan cut to so many sample-gradients, and as many epochs as fit into so many seconds.

Invariant: the first is known before the run starts. The second is decided at the end of each epoch from the seconds in
the history alone, which a checkpoint holds: a resumed run reads what was decided and does not look at the clock for it
again, so it ends with the weights that it would have had unbroken. The learning rate's schedule always ends with the
epochs, so a shorter run is one that was planned shorter and not one that was cut off on its way down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.recipe import Recipe
from pipelines.strategies import FEWEST_STEPS, Plan

SMALLEST_EPOCH = FEWEST_STEPS * 2
"""Cases drawn in an epoch below which there are rather fewer epochs."""


def affordable(plan: Plan, *, recipe: Recipe) -> Plan:
    """Return `plan` with as many draws, and if need be epochs, as the recipe's `maximum_sample_gradients` pay for."""
    most, whole = recipe.maximum_sample_gradients, plan.sample_gradients
    if most is None or whole <= most:
        return plan
    fixed = replace(plan, pools=tuple(replace(pool, draws=0) for pool in plan.pools)).sample_gradients
    share = max(0.0, (most - fixed - 1) / (whole - fixed))  # 1: what rounding may add
    epochs = plan.epochs and max(1, min(plan.epochs, int(share * plan.draws * plan.epochs / SMALLEST_EPOCH)))
    share *= plan.epochs / epochs if epochs else 1.0
    pools = tuple(replace(pool, draws=max(1, int(share * pool.draws))) for pool in plan.pools)
    draws = sum(pool.draws for pool in pools)
    batch_size = min(plan.batch_size, max(16, draws // FEWEST_STEPS))
    cut = replace(plan, pools=pools, epochs=epochs, batch_size=batch_size)
    over = "" if cut.sample_gradients <= most else f", though what it cannot go without costs {cut.sample_gradients}"
    return replace(cut, notes=(*plan.notes, f"cut from {whole} to the recipe's {most} sample-gradients{over}"))


def in_time(plan: Plan, history: Sequence[Mapping[str, Any]], *, recipe: Recipe) -> Plan:
    """Return `plan`, as it was made, with the epochs that fit into the recipe's `maximum_seconds`.

    `history` has a row with its `seconds` for each epoch that is done; those to come are taken to last as long as these
    did. There is always a first epoch, and never more of them than were planned.
    """
    if recipe.maximum_seconds is None or not history:
        return plan
    used = sum(float(row["seconds"]) for row in history)
    more = int(max(0.0, recipe.maximum_seconds - used) / max(used / len(history), 1e-9))
    return replace(plan, epochs=min(plan.epochs, len(history) + more))


def note(planned: Plan, *, ended: Plan, recipe: Recipe) -> list[str]:
    """Say that time ended the run; nothing where it did not."""
    if ended.epochs == planned.epochs:
        return []
    return [f"{ended.epochs} of {planned.epochs} epochs: the recipe allows {recipe.maximum_seconds:g} seconds"]
