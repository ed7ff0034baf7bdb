"""What the record refuses, and in which words.

    RegistryError
    ├── NotFound                 404  no such row
    ├── Forbidden                403  this person may not do this
    ├── Refused                  409  the state of the record does not allow it
    │   ├── AlreadyExists        ├── StateMoved          ├── ChampionMoved      ├── GateNotPassed
    │   ├── ApprovalMissing      ├── ApprovalVoid        ├── NotDistinct        ├── AlreadySigned
    │   ├── AlreadySuperseded    ├── RecordMoved         ├── RunInProgress      ├── NothingToRollBackTo
    │   ├── IdempotencyInFlight  ├── BlindCase           ├── ProtocolMoved      └── NotSignedYet
    ├── Invalid                  422  it can never be right as it stands
    │   ├── UnknownFinding       ├── WrongLine           ├── FutureDate         ├── EvidenceMismatch
    │   └── IdempotencyConflict
    └── Unsafe                   500  the service must not go on like this
        ├── BlobCorrupt          ├── NotDurable          ├── NotGuarded         ├── MigrationRefused
        ├── TrailDamaged         └── NoteRefused

Each class has a `slug` that never changes (it ends the URL of the problem type), a `status` and a `title`; the message
says what to do. `extra` holds values a program may want, never personal ones.
"""

from __future__ import annotations

from typing import ClassVar


class RegistryError(Exception):
    """Anything the record says no to."""

    slug: ClassVar[str] = "registry-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The record refused this"

    def __init__(self, message: str, **extra: object) -> None:
        self.extra = extra
        super().__init__(message)


class NotFound(RegistryError):
    """There is no such row."""

    slug = "not-found"
    status = 404
    title = "Not found"


class Forbidden(RegistryError):
    """The person asking lacks the role or the right."""

    slug = "forbidden"
    status = 403
    title = "Not allowed"


class Refused(RegistryError):
    """The state of the record does not allow it; after a change elsewhere it may."""

    slug = "refused"
    status = 409
    title = "Refused"


class AlreadyExists(Refused):
    """Something else goes by this name."""

    slug = "already-exists"
    title = "Already exists"


class StateMoved(Refused):
    """The row is no longer in the state this step starts from."""

    slug = "state-moved"
    title = "The state has moved on"


class ChampionMoved(Refused):
    """The champion is not the one the caller, or the gate report, compared with."""

    slug = "champion-moved"
    title = "The champion has changed"


class ProtocolMoved(Refused):
    """Another protocol is in force than the one that this was proposed against."""

    slug = "protocol-moved"
    title = "The protocol has changed"


class GateNotPassed(Refused):
    """There is no passing gate report for exactly this candidate under the current protocol."""

    slug = "gate-not-passed"
    title = "Gates not passed"


class ApprovalMissing(Refused):
    """Too few people have signed."""

    slug = "approval-missing"
    title = "Approvals missing"


class ApprovalVoid(Refused):
    """Something that was signed has changed since; the signatures no longer count."""

    slug = "approval-void"
    title = "Approvals void"


class NotDistinct(Refused):
    """Someone who asked for the run, or who submitted much of its data, may not sign for it."""

    slug = "not-distinct-approver"
    title = "Not a distinct approver"


class AlreadySigned(Refused):
    """One signature per person and gate report."""

    slug = "already-signed"
    title = "Already signed"


class AlreadySuperseded(Refused):
    """The confirmation has been superseded by another one already."""

    slug = "already-superseded"
    title = "Already superseded"


class RecordMoved(Refused):
    """More has been said about the case than the caller has seen."""

    slug = "record-moved"
    title = "The record has moved on"


class NotSignedYet(Refused):
    """No checkpoint holds what is asked for so far; one is signed every minute."""

    slug = "not-signed-yet"
    title = "Not signed yet"


class RunInProgress(Refused):
    """A line learns one step at a time."""

    slug = "run-in-progress"
    title = "A run is in progress"


class NothingToRollBackTo(Refused):
    """The champion replaced nobody."""

    slug = "nothing-to-roll-back-to"
    title = "Nothing to roll back to"


class IdempotencyInFlight(Refused):
    """The first request with this key has not finished."""

    slug = "idempotency-in-flight"
    title = "The same request is in flight"


class BlindCase(Refused):
    """The case is to be read without the model first; once it is confirmed, its predictions may be seen."""

    slug = "blind-case"
    title = "To be read blind first"


class Invalid(RegistryError):
    """What was asked can never be right as it stands."""

    slug = "invalid"
    status = 422
    title = "Not valid"


class UnknownFinding(Invalid):
    """The finding is not a class of the line's protocol."""

    slug = "unknown-finding"
    title = "Unknown finding"


class WrongLine(Invalid):
    """Two things that belong together are of different lines or cases."""

    slug = "wrong-line"
    title = "Not the same line"


class FutureDate(Invalid):
    """A diagnosis cannot be confirmed in the future."""

    slug = "future-date"
    title = "Date in the future"


class EvidenceMismatch(Invalid):
    """A gate report, document or digest does not name what it is recorded for."""

    slug = "evidence-mismatch"
    title = "Evidence does not match"


class IdempotencyConflict(Invalid):
    """The key was used for another request."""

    slug = "idempotency-key-reused"
    title = "Idempotency key reused"


class Unsafe(RegistryError):
    """The service must not go on until someone has looked."""

    slug = "unsafe"
    title = "Not safe to go on"


class BlobCorrupt(Unsafe):
    """A stored file no longer has the digest it is named by."""

    slug = "blob-corrupt"
    title = "Stored file damaged"


class NotDurable(Unsafe):
    """PostgreSQL is set up so that it may lose what it acknowledged."""

    slug = "not-durable"
    title = "The database is not durable"


class NotGuarded(Unsafe):
    """Whoever serves the record, or breaks into it, could rewrite its history."""

    slug = "not-guarded"
    title = "The record is not guarded"


class MigrationRefused(Unsafe):
    """The migrations on disk and those applied do not agree."""

    slug = "migration-refused"
    title = "Migration refused"


class TrailDamaged(Unsafe):
    """The audit trail is not the one that was signed for."""

    slug = "trail-damaged"
    title = "The audit trail is damaged"


class NoteRefused(Unsafe):
    """A checkpoint, or the key to it, is not what it should be."""

    slug = "note-refused"
    title = "Checkpoint refused"
