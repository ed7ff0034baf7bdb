"""Steps of those who send cases and diagnoses: under a key, once, corrected by superseding."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from registry import audit, cases, confirmations, idempotency, users
from registry.db import Connection
from registry.errors import RegistryError
from registry.users import User
from tests.machine.model import CLASSES, Case, Confirmation, Model
from tests.machine.step import DONE


class Unauthenticated(RegistryError):
    """The key opens nothing."""

    slug = "unauthenticated"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitCase:
    """Send an image: under an id of the sender's own, or under none."""

    actor: User
    line: int
    image: str
    patient: str | None
    external_id: str | None

    def expect(self, model: Model) -> str:
        known = self._known(model)
        return DONE if known is None or model.cases[known].image == self.image else "already-exists"

    def do(self, conn: Connection) -> Any:
        return cases.submit_case(
            conn,
            line_id=self.line,
            image_digest=self.image,
            patient=self.patient,
            site="north",
            scanner=None,
            sex=None,
            age_band=None,
            attributes={},
            external_id=self.external_id,
            actor=self.actor,
        )

    def note(self, model: Model, result: Any) -> None:
        case, new = result
        known = self._known(model)
        assert new == (known is None), "the same image under the same id is the same case"
        if known is not None:
            assert case.case_id == known
            return
        model.cases[case.case_id] = Case(
            line=self.line,
            submitter=self.actor.name,
            external_id=self.external_id,
            image=self.image,
            patient=self.patient,
        )
        model.trail.append((self.actor.name, "case:submit", f"case/{case.case_id}"))

    def _known(self, model: Model) -> int | None:
        wanted = (self.line, self.actor.name, self.external_id)
        found = (key for key, c in model.cases.items() if (c.line, c.submitter, c.external_id) == wanted)
        return next(found, None) if self.external_id is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """Confirm a diagnosis the way the API does: key, stored answer, confirmation, stored answer."""

    plaintext: str
    idempotency_key: str
    case: int
    finding: str
    supersedes: int | None = None
    days_ahead: int = 0

    def expect(self, model: Model) -> str:  # noqa: PLR0911 - one line for each rule, in the order they are applied
        if self.plaintext in model.revoked:
            return "unauthenticated"
        actor = model.people[model.keys[self.plaintext]]
        if (stored := model.replies.get((actor.name, self.idempotency_key))) is not None:
            return DONE if stored[0] == self.digest else "idempotency-key-reused"
        if self.case not in model.cases:
            return "not-found"
        if self.finding not in CLASSES:
            return "unknown-finding"
        if self.days_ahead > 1:
            return "future-date"
        if self.supersedes is not None:
            if (earlier := model.confirmations.get(self.supersedes)) is None:
                return "not-found"
            if earlier.case != self.case:
                return "wrong-line"
            if earlier.kind == "adjudication":
                return "invalid"
            if model.superseded_by(self.supersedes) is not None:
                return "already-superseded"
            if earlier.submitter != actor.name and "reviewer" not in actor.roles:
                return "forbidden"
        return DONE

    def do(self, conn: Connection) -> Any:
        user = users.authenticate(conn, self.plaintext)
        if user is None:
            raise Unauthenticated("this key opens nothing")
        key, digest = self.idempotency_key, self.digest
        replay = idempotency.begin(conn, user_id=user.user_id, key=key, request_digest=digest)
        if replay is not None:
            return "replayed", replay.body
        diagnosis = confirmations.Diagnosis(
            case_id=self.case,
            finding=self.finding,
            evidence="single_read",
            ai_exposure="blind",
            reader="reader-1",
            confirmed_at=datetime.now(UTC) + timedelta(days=self.days_ahead) if self.days_ahead else None,
            supersedes=self.supersedes,
        )
        made = confirmations.confirm(conn, diagnosis, actor=user)
        body = {"confirmation": made.confirmation_id, "case": made.case_id, "finding": made.finding}
        idempotency.finish(conn, user_id=user.user_id, key=key, request_digest=digest, status=201, body=body)
        return "new", body

    def note(self, model: Model, result: Any) -> None:
        how, body = result
        actor = model.keys[self.plaintext]
        if (stored := model.replies.get((actor, self.idempotency_key))) is not None:
            assert (how, body) == ("replayed", stored[1]), "a repeat gets the first answer"
            return
        assert how == "new"
        key = body["confirmation"]
        assert key > max(model.confirmations, default=0), "ids grow in the order of commits"
        model.confirmations[key] = Confirmation(
            case=self.case, finding=self.finding, submitter=actor, supersedes=self.supersedes
        )
        model.replies[actor, self.idempotency_key] = (self.digest, body)
        model.trail.append((actor, "confirmation:add", f"case/{self.case}"))

    @property
    def digest(self) -> str:
        """The digest of the request, which is all that the record keeps of it."""
        return audit.digest_of([self.case, self.finding, self.supersedes, self.days_ahead])


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeKey:
    """Make an API key useless."""

    plaintext: str

    def expect(self, model: Model) -> str:
        del model
        return DONE

    def do(self, conn: Connection) -> Any:
        users.revoke_api_key(conn, api_key_id=self.plaintext.split("_")[1])
        return True

    def note(self, model: Model, result: Any) -> None:
        del result
        model.revoked.add(self.plaintext)
        owner = model.people[model.keys[self.plaintext]]
        model.trail.append(("overread", "api_key:revoke", f"user/{owner.user_id}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeKey:
    """Give somebody an API key."""

    owner: User

    def expect(self, model: Model) -> str:
        del model
        return DONE

    def do(self, conn: Connection) -> Any:
        return users.create_api_key(conn, user_id=self.owner.user_id)

    def note(self, model: Model, result: Any) -> None:
        model.keys[result] = self.owner.name
        model.trail.append(("overread", "api_key:create", f"user/{self.owner.user_id}"))
