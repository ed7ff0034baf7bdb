"""Steps of those who sign, promote and roll back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from registry import approvals, promotions
from registry.db import Connection
from registry.users import User
from tests.machine.model import APPROVALS_REQUIRED, MAXIMUM_SHARE, Approval, Job, Model, Reign
from tests.machine.step import DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """Sign for or against a candidate."""

    candidate: int
    actor: User
    decision: str

    def expect(self, model: Model) -> str:
        if "approver" not in self.actor.roles:
            return "forbidden"
        candidate, found = model.candidates[self.candidate], model.report(self.candidate)
        if candidate.state in {"trained", "gates_failed"} or found is None or found[1].verdict != "pass":
            return "gate-not-passed"
        if candidate.state != "gates_passed":
            return "state-moved"
        key, report = found
        if report.champion != model.champion(candidate.line):
            return "champion-moved"
        asked = model.runs[candidate.run].requested_by == self.actor.name
        if asked or model.versions[candidate.version].shares.get(self.actor.name, 0.0) > MAXIMUM_SHARE:
            return "not-distinct-approver"
        given = {(approval.report, approval.approver) for approval in model.approvals.values()}
        return "already-signed" if (key, self.actor.name) in given else DONE

    def do(self, conn: Connection) -> Any:
        return approvals.sign(
            conn, candidate_id=self.candidate, approver=self.actor, decision=self.decision, reason="I read it"
        )

    def note(self, model: Model, result: Any) -> None:
        found, bound = model.report(self.candidate), model.bound(self.candidate)
        assert found is not None
        assert bound is not None
        model.approvals[result.approval_id] = Approval(
            candidate=self.candidate, report=found[0], approver=self.actor.name, decision=self.decision, bound=bound
        )
        if self.decision == "reject":
            model.candidates[self.candidate].state = "rejected"
        model.trail.append((self.actor.name, f"candidate:{self.decision}", f"candidate/{self.candidate}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Make a candidate the champion in place of the one the caller saw."""

    candidate: int
    expected: int | None
    actor: User

    def expect(self, model: Model) -> str:  # noqa: PLR0911 - one line for each rule, in the order they are applied
        if "approver" not in self.actor.roles:
            return "forbidden"
        candidate, found = model.candidates[self.candidate], model.report(self.candidate)
        if model.champion(candidate.line) != self.expected:
            return "champion-moved"
        if found is None or found[1].verdict != "pass":
            return "gate-not-passed"
        if found[1].champion != self.expected:
            return "champion-moved"
        if found[1].protocol != model.protocols[candidate.line][-1]:
            return "gate-not-passed"
        if candidate.state != "gates_passed":
            return "state-moved"
        signed = [a for a in model.approvals.values() if (a.candidate, a.decision) == (self.candidate, "approve")]
        if len({a.approver for a in signed if a.bound == model.bound(self.candidate)}) >= APPROVALS_REQUIRED:
            return DONE
        return "approval-void" if len({a.approver for a in signed}) >= APPROVALS_REQUIRED else "approval-missing"

    def do(self, conn: Connection) -> Any:
        return promotions.promote(
            conn,
            candidate_id=self.candidate,
            expected_champion_id=self.expected,
            actor=self.actor,
            reason="it is better",
        )

    def note(self, model: Model, result: Any) -> None:
        _crown(model, self.candidate, kind="promotion", promotion=result.promotion_id, actor=self.actor)


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBack:
    """Bring back whom the champion replaced."""

    line: int
    expected: int | None
    actor: User

    def expect(self, model: Model) -> str:
        if not {"approver", "operator"} & set(self.actor.roles):
            return "forbidden"
        if model.champion(self.line) != self.expected:
            return "champion-moved"
        return DONE if model.previous(self.line) is not None else "nothing-to-roll-back-to"

    def do(self, conn: Connection) -> Any:
        return promotions.roll_back(
            conn, line_id=self.line, expected_champion_id=self.expected, actor=self.actor, reason="it is worse"
        )

    def note(self, model: Model, result: Any) -> None:
        earlier = model.previous(self.line)
        assert earlier is not None
        _crown(model, earlier, kind="roll_back", promotion=result.promotion_id, actor=self.actor)


def _crown(model: Model, candidate: int, *, kind: str, promotion: int, actor: User) -> None:
    line = model.candidates[candidate].line
    reign = model.reign(line)
    if reign is not None:
        reign.ended = True
        model.candidates[reign.candidate].state = "retired"
    model.reigns[promotion] = Reign(
        line=line, candidate=candidate, kind=kind, replaced=None if reign is None else reign.candidate
    )
    model.candidates[candidate].state = "champion"
    model.jobs[f"mirror_promotion:{promotion}"] = Job(kind="mirror_promotion", line=line, run=None, candidate=None)
    word = "promote" if kind == "promotion" else "roll_back"
    model.trail.append((actor.name, f"promotion:{word}", f"candidate/{candidate}"))
