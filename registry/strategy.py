"""What a run is trained by: the protocol's strategy, its anchors, and the ladder after failures.

Invariant: what is said here was said in the protocol before, so that a run by it is one of the declared recipe; the
reason is for people. Without a champion it is `full`. Nothing is promoted by it: every candidate meets the same gates.
"""

from __future__ import annotations

from typing import Any

from registry.db import Connection, fetch_value

SEVERAL = ("full", "auto", "warm", "replay", "interpolate", "finetune")
"""Those by which findings that do not exclude each other can be learned; the science says the same."""
STRATEGIES = ("full", "auto", "warm", "replay", "derpp", "gdumb", "lwf", "ewc", "interpolate", "analytic", "finetune")


def declared(recipe: dict[str, Any]) -> set[str]:
    """Name every strategy that the recipe of a protocol may come to by itself."""
    anchor = ["full"] if recipe.get("anchor_growth") else []
    return {recipe["strategy"], *recipe.get("escalation", ()), *anchor}


def due(conn: Connection, *, line_id: int, recipe: dict[str, Any]) -> tuple[str, str | None]:
    """Return what the next run of a line is trained by, and in words why, where it is not simply the recipe's own."""
    if not fetch_value(
        conn, "SELECT EXISTS (SELECT FROM promotions WHERE line_id = %s AND ended_at IS NULL)", (line_id,)
    ):
        return "full", None
    growth = recipe.get("anchor_growth")
    if growth is not None:
        now, then = _confirmed(conn, line_id)
        if now >= growth * then:
            return "full", f"from nothing, for {now} cases are confirmed and the last such training knew {then}"
    ladder, failed = recipe.get("escalation", ()), _failed(conn, line_id) if recipe.get("escalation") else 0
    if failed:
        step: str = ladder[min(failed, len(ladder)) - 1]
        return step, f"by {step}, for {failed} in a row did not pass the gates"
    return recipe["strategy"], None


def _confirmed(conn: Connection, line_id: int) -> tuple[int, int]:
    """Cases with a confirmation now, and those at the newest training from nothing that made a candidate."""
    row = conn.execute(
        "WITH anchor AS (SELECT max(last_confirmation_id) AS id FROM runs JOIN dataset_versions"
        " USING (dataset_version_id) JOIN candidates USING (run_id)"
        " WHERE runs.line_id = %(line_id)s AND strategy = 'full')"
        " SELECT count(DISTINCT case_id), count(DISTINCT case_id) FILTER (WHERE confirmation_id <= anchor.id)"
        " FROM confirmations JOIN cases USING (case_id), anchor"
        " WHERE confirmations.line_id = %(line_id)s AND erasure_id IS NULL",
        {"line_id": line_id},
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _failed(conn: Connection, line_id: int) -> int:
    """Candidates that failed their gates since the newest that was ever promoted."""
    return int(
        fetch_value(
            conn,
            "SELECT count(*) FROM candidates WHERE line_id = %(line_id)s AND state = 'gates_failed' AND number >"
            " (SELECT coalesce(max(number), 0) FROM candidates JOIN promotions USING (candidate_id)"
            " WHERE candidates.line_id = %(line_id)s)",
            {"line_id": line_id},
        )
    )
