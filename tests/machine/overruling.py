"""Steps of those who overrule: one row is taken back, or a case is decided over all that was said about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from registry import adjudications
from registry.db import Connection
from registry.users import User
from tests.machine.model import CLASSES, Confirmation, Model
from tests.machine.step import DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Retract:
    """Take a row back."""

    actor: User
    confirmation: int

    def expect(self, model: Model) -> str:
        earlier = model.confirmations.get(self.confirmation)
        if earlier is None:
            return "not-found"
        if earlier.kind == "retraction":
            return "invalid"
        if model.superseded_by(self.confirmation) is not None:
            return "already-superseded"
        return DONE if earlier.submitter == self.actor.name or "reviewer" in self.actor.roles else "forbidden"

    def do(self, conn: Connection) -> Any:
        return adjudications.retract(
            conn, confirmation_id=self.confirmation, reason="another patient", actor=self.actor
        )

    def note(self, model: Model, result: Any) -> None:
        assert result.confirmation_id > max(model.confirmations), "ids grow in the order of commits"
        case = model.confirmations[self.confirmation].case
        model.confirmations[result.confirmation_id] = Confirmation(
            case=case, kind="retraction", finding=None, submitter=self.actor.name, supersedes=self.confirmation
        )
        model.trail.append((self.actor.name, "confirmation:retract", f"case/{case}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjudicate:
    """Decide over what was seen; more may have been said since."""

    actor: User
    case: int
    finding: str | None
    last_seen: int

    def expect(self, model: Model) -> str:
        if self.actor.name != "reviewer":
            return "forbidden"
        if self.finding not in {*CLASSES, None}:
            return "unknown-finding"
        said = [key for key, row in model.confirmations.items() if row.case == self.case]
        if self.last_seen not in said:
            return "wrong-line"
        if self.last_seen != max(said):
            return "record-moved"
        standing = [model.confirmations[key] for key in said if model.superseded_by(key) is None]
        return DONE if any(row.kind == "confirmation" for row in standing) else "invalid"

    def do(self, conn: Connection) -> Any:
        decision = adjudications.Decision(
            case_id=self.case,
            finding=self.finding,
            ai_exposure="blind",
            reason="the lateral view shows it",
            last_seen=self.last_seen,
        )
        return adjudications.adjudicate(conn, decision, actor=self.actor)

    def note(self, model: Model, result: Any) -> None:
        assert result.confirmation_id > max(model.confirmations), "ids grow in the order of commits"
        model.confirmations[result.confirmation_id] = Confirmation(
            case=self.case, kind="adjudication", finding=self.finding, submitter=self.actor.name, supersedes=None
        )
        model.trail.append((self.actor.name, "confirmation:adjudicate", f"case/{self.case}"))
