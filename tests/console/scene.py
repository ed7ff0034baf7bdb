"""What the console shows in the tests: made through the record as the service would, one line for each test."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines import evidence, images, synthetic
from registry import audit, blobs, candidates, cases, lines, promotions, users, worklists
from registry.amendments import Amendment
from registry.candidates import Candidate
from registry.db import Connection
from registry.lines import Line
from registry.users import Role
from tests import factories
from tests.api.service import Service
from tests.api.test_predictions import crown
from tests.pipelines.test_evidence import comparison
from tests.waiting import until

PEOPLE: dict[str, tuple[str, tuple[Role, ...]]] = {
    "clara": ("Dr Clara Clinician, radiology", ("submitter",)),
    "carl": ("Dr Carl Colleague, radiology", ("submitter",)),
    "rita": ("Rita Reviewer, ML engineer", ("reviewer",)),
    "anna": ("Dr Anna Approver, clinical safety", ("approver",)),
    "ben": ("Dr Ben Approver, radiology", ("approver",)),
    "otto": ("Otto Operator", ("operator", "auditor")),
}

EVIDENCE = evidence.gather(comparison())
"""Points of the plots of a report, from a computer's numbers."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A line and what is on it; `worklist` are case ids in their order, `amendment` waits for signatures."""

    line: str
    champion: Candidate
    candidate: Candidate
    failed: Candidate
    worklist: list[int]
    discordant: int
    amendment: Amendment


def make_scene(service: Service, *, to_read: int = 24, blind_fraction: float = 0.0) -> Scene:
    """Make a line with a champion that serves, a candidate that passed, one that failed, and cases to read."""
    name = service.new_line(
        blind_fraction=blind_fraction,
        gates={"minimum_cases_per_class": 5},
        monitoring={"sample": "every_case", "shadow_margin": 0.05},
    )
    crown(service, name)
    with service.connect() as connection:
        line = lines.get_line(connection, name)
        read = images_in(connection, service, line, count=to_read + 1)
        discordant = read.pop()
        for reader, finding in (("clara", "pneumonia"), ("carl", "normal")):
            person = users.by_name(connection, reader)
            case = cases.get_case(connection, discordant)
            factories.confirmation(connection, case, actor=person, reader=reader, finding=finding)
        rank(connection, line, read)
        champion = promotions.champion(connection, line.line_id)
        assert champion is not None
        failed = gated(connection, line, verdict="fail", flipped=read)
        passed = gated(connection, line, verdict="pass", flipped=read)
        proposed = proposal(connection, line)
        connection.commit()
    return Scene(
        line=name,
        champion=champion,
        candidate=passed,
        failed=failed,
        worklist=read,
        discordant=discordant,
        amendment=proposed,
    )


def proposal(connection: Connection, line: Line) -> Amendment:
    """An amendment that asks for more in one clause and for less in another, by the operator."""
    gates = lines.current_protocol(connection, line.line_id).document["gates"]
    return factories.amendment(
        connection,
        line,
        actor=users.by_name(connection, "otto"),
        told=["gates.alpha: 0.05 -> 0.1  (asks for less evidence)", "gates.minimum_cases_per_class: 5 -> 30"],
        gates={**gates, "alpha": 0.1, "minimum_cases_per_class": 30},
    )


def watch(connection: Connection, scene: Scene, *, weeks: int = 4) -> None:
    """Looks at the champion, all in order, with a challenger in its shadow."""
    for week in range(1, weeks + 1):
        n = 20 * week
        seen = {
            "n": n,
            "sample": n + 6,
            "errors": n // 10,
            "risk": n // 10 / n,
            "lower_bound": 0.02,
            "risk_limit": 0.16,
        }
        shadow = {
            "candidate_id": scene.candidate.candidate_id, "verdict": "insufficient", "n": n, "difference": 0.02,
            "reason": f"evidence {1.0 + week:.1f} of 20 after {n} cases", "passed_at": None,
        }  # fmt: skip
        reason = f"no harm is shown in {n} cases"
        weighted = {"value": 0.11, "low": 0.05, "high": 0.2, "n": n}
        words = {"verdict": "in_order", "reason": reason, "raised_at": None, "cases_to_see": scene.worklist[:3]}
        factories.watch(connection, scene.champion, **seen, **words, shadow=shadow, weighted_risk=weighted)


def images_in(connection: Connection, service: Service, line: Line, *, count: int, size: int = 96) -> list[int]:
    """Synthetic radiographs as cases; every third has 12 bits in 16. Returns their ids."""
    pictures, _ = synthetic.radiographs(count, rng=np.random.default_rng(next(_numbers)), size=size)
    made = []
    for place, picture in enumerate(pictures):
        pixels = picture if place % 3 else picture.astype(np.uint16) * 16
        digest = blobs.put(connection, service.blob_root, images.npy_bytes(pixels), media_type="application/x-npy")
        sender = users.by_name(connection, "second-submitter")
        made.append(
            factories.case(
                connection, line, actor=sender, image_digest=digest, site=("north", "south")[place % 2],
                external_id=f"{line.name}-{next(_numbers):04d}", scanner="dx-2", age_band="1-5",
            ).case_id
        )  # fmt: skip
    return made


def rank(connection: Connection, line: Line, case_ids: list[int]) -> None:
    """Leave a ranking as a worker would."""
    last_case_id, last_confirmation_id = worklists.reach(connection, line.line_id)
    champion = promotions.champion(connection, line.line_id)
    arms = ["random", "uncertain", "coverage"]
    words = {
        "random": "random, so that the rest can be trusted",
        "uncertain": "uncertain: .52 for pneumonia",
        "coverage": "site south has 12 confirmations of 340 cases",
    }
    chosen = [arms[place % 3] for place in range(len(case_ids))]
    worklists.replace(
        connection,
        line_id=line.line_id,
        candidate_id=champion.candidate_id if champion else None,
        protocol_id=lines.current_protocol(connection, line.line_id).protocol_id,
        shares={"random": 1.0},
        left_out=0,
        last_case_id=last_case_id,
        last_confirmation_id=last_confirmation_id,
        case_ids=case_ids,
        arms=chosen,
        reasons=[words[arm] for arm in chosen],
    )


def gated(connection: Connection, line: Line, *, verdict: str, flipped: Sequence[int] = ()) -> Candidate:
    """A candidate whose gate report says something of each kind of gate; `flipped` are cases that changed sides."""
    made = factories.candidate(connection, line)
    values = factories.gate_report_values(connection, made, verdict=verdict)
    document = {**values["document"], "results": results(verdict), "evidence": EVIDENCE | {"flips": flips(flipped)}}
    changes = {"document": document, "digest": audit.digest_of(document)}
    candidates.record_gate_report(connection, **{**values, **changes})
    return candidates.get(connection, made.candidate_id)


def flips(case_ids: Sequence[int]) -> dict[str, Any]:
    """Cases that changed sides, those of the record first."""
    ids, found = iter(case_ids), dict(EVIDENCE["flips"])
    for kind in ("lost", "gained"):
        found[kind] = [one | {"case": next(ids, one["case"])} for one in found[kind]]
    return found


def results(verdict: str) -> list[dict[str, Any]]:
    """Rows of a gate report."""

    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02, "n": 315, "level": 0.9}

    def row(name: str, requirement: str, reason: str, verdict: str = "pass", **measured: Any) -> dict[str, Any]:
        nothing = {"candidate": None, "champion": None, "difference": None, "details": {}}
        return {"name": name, "requirement": requirement, "reason": reason, "verdict": verdict, **nothing, **measured}

    poisoned = "pacs-east disagrees in 96 % of 40 labels" if verdict == "fail" else "at most 8 %"
    auroc = {"candidate": estimate(0.968), "champion": estimate(0.947), "difference": estimate(0.021)}
    return [
        row("minimum_cases", "at least 5 sealed cases of each class", "normal 120, pneumonia 195"),
        row("auroc", "at least 0.80, not worse by more than 0.03", "0.968, 0.021 better than the champion", **auroc),
        row("submitters", "nobody disagrees with the others in more than 35 %", poisoned, verdict),
    ]


def wait_for_champion(service: Service, scene: Scene) -> None:
    """Wait until the inference process serves the scene's champion."""
    path = f"/v1/cases/{scene.worklist[-1]}/predictions"
    with service.client("operator") as client:
        until(lambda: client.post(path, params={"shown": False}).status_code == 200, what="the champion")
