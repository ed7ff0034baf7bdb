"""Who may read what of a gate report, and when: whoever makes candidates learns one bit of the sealed test a use.

Invariant: until a person has decided, the report of a candidate is open to those who decide (reviewers, approvers) and
to auditors, and to none of them who asked for its run. Others learn whether it passed, and what the gates say that look
at no sealed score. A candidate that failed is decided by nobody: its report opens when its epoch of the sealed test is
over.
The report of a candidate that was stopped before the sealed test was used is open to all.

Why. Every number that comes back from the sealed test can be fitted to; the levels of `pipelines.sealed_ledger` hold
for answers of one bit. Reference: Dwork et al., Science 2015; Feng et al., UAI 2022; decision 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from registry import candidates, runs, sealed_tests
from registry.candidates import Candidate, GateReport
from registry.db import Connection
from registry.users import User
from registry.watches import Watch

OPEN_GATES = frozenset(
    {
        *("minimum_cases", "screen", "envelope", "strategy", "leakage", "submitters"),
        *("missing_patients", "unreadable_images", "near_duplicates", "prior_shift"),
    }
)
"""Gates that look at the data, or at the open tune split, and at no sealed score; anybody may read what they say."""
DECIDED = frozenset({"rejected", "champion", "retired"})
DECIDERS = frozenset({"reviewer", "approver", "auditor"})
_TEXTS = {
    "pass": "This candidate passed its gates. People may now decide on it.",
    "not_passed": "This candidate did not pass its gates.",
}
_CLOSED = (
    "The report is open to reviewers, approvers and auditors who did not ask for this run, and to everyone once a "
    "person has decided, or once this epoch of the sealed test is over."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A gate report as somebody may read it; `withheld` says that only the bit is in it."""

    report: GateReport
    withheld: bool


def latest_report(conn: Connection, candidate_id: int, *, reader: User) -> Shown | None:
    """Return the gate report that counts as `reader` may see it, None before the first. Raises NotFound."""
    candidate = candidates.get(conn, candidate_id)
    report = candidates.latest_report(conn, candidate_id)
    if report is None:
        return None
    if may_read(conn, candidate, report=report, reader=reader):
        return Shown(report=report, withheld=False)
    return Shown(report=closed(report), withheld=True)


def may_read(conn: Connection, candidate: Candidate, *, report: GateReport, reader: User) -> bool:
    """Say whether somebody may read the whole report on a candidate now."""
    if candidate.state in DECIDED or _looked_at_no_score(report) or _epoch_is_over(conn, report):
        return True
    asked = runs.get(conn, candidate.run_id).requested_by
    return bool(DECIDERS & set(reader.roles)) and asked != reader.user_id


def watch_for(conn: Connection, watch: Watch, *, reader: User) -> Watch:
    """Return a look at the champion as `reader` may see it: without the challenger in its shadow, for who makes those.

    The cases of the look may enter the sealed test later, so what a challenger is worth on them is not for its makers.
    """
    if watch.shadow is None:
        return watch
    asked = runs.get(conn, candidates.get(conn, watch.shadow["candidate_id"]).run_id).requested_by
    return watch if DECIDERS & set(reader.roles) and asked != reader.user_id else replace(watch, shadow=None)


def closed(report: GateReport) -> GateReport:
    """Leave of a report what everybody may know: the bit, what it is bound to, and the open gates."""
    verdict = "pass" if report.verdict == "pass" else "not_passed"
    kept = ("schema_version", "line", "candidate_digest", "champion_digest", "dataset_digest", "protocol_digest")
    document = {name: report.document[name] for name in (*kept, "sealed_test") if name in report.document}
    results = [_open_row(row) for row in report.document["results"]]
    text = f"{_TEXTS[verdict]}\n{_CLOSED}\n"
    return replace(report, verdict=verdict, document=document | {"verdict": verdict, "results": results}, text=text)


def _open_row(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["name"] in OPEN_GATES:
        return dict(row)
    return {"name": row["name"], "requirement": row["requirement"], "verdict": "withheld"}


def _looked_at_no_score(report: GateReport) -> bool:
    """Whether the candidate was stopped before a level was spent; a report from before the ledger is another."""
    return report.sealed_test_use_id is None and "sealed_test" in report.document


def _epoch_is_over(conn: Connection, report: GateReport) -> bool:
    if report.sealed_test_use_id is None:  # from before there was a ledger
        return False
    use = sealed_tests.get(conn, report.sealed_test_use_id)
    return sealed_tests.list_uses(conn, use.line_id)[-1].epoch > use.epoch
