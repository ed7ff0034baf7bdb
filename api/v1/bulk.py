"""Confirmations in bulk: NDJSON or CSV, each row judged on its own, all accepted rows in one transaction.

A wrong row is reported and left out; it never takes a right one with it. The answer is stored under the
Idempotency-Key, so that a repeat after a lost connection returns it word for word. A row may carry a key of its own:
it is then recorded once, in whatever company it comes again. Everything is read and checked before the record is asked,
and the record takes all rows in the same few statements as one: while they are written, other confirmations wait.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Annotated, Any, Literal

from fastapi import Query, Response
from pydantic import Field, ValidationError, model_validator

from api.auth import allow, guarded_router
from api.dependencies import Body, CurrentUser, IdempotencyKey, LineName, Pool, Upload
from api.errors import Problem, Refusal, document_of, invalid, unstorable
from api.once import PROBLEMS, once
from api.v1 import examples
from api.v1.confirmations import NewConfirmation
from api.v1.views import View, shown_as
from registry import cases, confirmations, db, idempotency, lines
from registry.errors import IdempotencyConflict, NotFound, RegistryError
from registry.users import User

router = guarded_router(tag="Confirmations")

MAXIMUM_ROWS = 5000
"""Rows of one upload: one transaction, which holds the audit chain; other writers wait for its end."""

_NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
_COLUMNS = ("case_id", "external_id", "idempotency_key", *NewConfirmation.model_fields)


class Row(NewConfirmation):
    """A row of an upload: a confirmation, and its case by our id or by yours."""

    model_config = shown_as(examples.BULK_ROW)

    case_id: int | None = None
    external_id: str | None = None
    idempotency_key: str | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="Makes sending this row again safe, in whatever upload: it is recorded once per key and sender. A "
        "row that was rejected may be mended and sent under its old key.",
    )

    @model_validator(mode="after")
    def _one_case(self) -> Row:
        if (self.case_id is None) == (self.external_id is None):
            raise ValueError("name the case by case_id or by external_id, one of them")
        return self


class RowResult(View):
    """What became of one row; `row` counts from 1, a CSV's header not counted."""

    row: int
    status: Literal["accepted", "rejected"]
    confirmation_id: int | None = None
    replayed: Literal[True] | None = Field(
        default=None, description="True where the row was recorded before under its own idempotency_key"
    )
    problem: Problem | None = None


class RecordedRow(View):
    """A row that was recorded under a key of its own."""

    model_config = shown_as(examples.RECORDED_ROW)

    idempotency_key: str
    confirmation_id: int


class BulkResult(View):
    """What became of an upload."""

    model_config = shown_as(examples.BULK_RESULT)

    accepted: int
    rejected: int
    rows: list[RowResult]


_REQUEST_BODY = {
    "required": True,
    "content": {
        "application/x-ndjson": {"schema": {"type": "string"}, "example": json.dumps(examples.BULK_ROW)},
        "text/csv": {
            "schema": {"type": "string"},
            "example": f"{','.join(examples.BULK_ROW)}\n{','.join(examples.BULK_ROW.values())}\n",
        },
    },
}


@router.post(
    "/confirmations",
    response_model=BulkResult,
    response_model_exclude_none=True,
    summary="Confirm diagnoses in bulk",
    response_description="What became of each row",
    **allow(
        "submitter",
        "reviewer",
        problems=(
            *PROBLEMS,
            "not-found",
            "body-too-large",
            "too-many-rows",
            "unsupported-media-type",
        ),
        extra={"requestBody": _REQUEST_BODY},
    ),
)
def confirm_many(user: CurrentUser, pool: Pool, key: IdempotencyKey, line: LineName, body: Body) -> Response:
    """Send many confirmations of one line as NDJSON (one JSON object a line) or CSV (with a header), at most 5000 rows.

    Each row has the fields of a single confirmation and names its case by `case_id`, or by the `external_id` under
    which you sent the image. Rows that are wrong are rejected with a problem each; the others are recorded, all in
    one transaction. Mend the rejected rows and send only those, under a new `Idempotency-Key`. Where uploads may
    overlap, as repeated exports do, give each row an `idempotency_key` of its own.
    """
    rows = [_parse(row) for row in _read(body)]

    def work(connection: db.Connection) -> BulkResult:
        line_id = lines.get_line(connection, line).line_id
        results = _record(connection, rows, line_id=line_id, user=user)
        accepted = sum(result.status == "accepted" for result in results)
        return BulkResult(accepted=accepted, rejected=len(results) - accepted, rows=results)

    asked = f"bulk {line} {body.media_type} {body.digest}"
    return once(pool, user=user, key=key, request=asked, work=work, status=200, pipelined=True, exclude_none=True)


@router.get(
    "/confirmations",
    summary="Ask which rows are recorded",
    response_description="Those of them that are",
    **allow("submitter", "reviewer"),
)
def find_rows(
    user: CurrentUser,
    pool: Pool,
    idempotency_key: Annotated[
        list[str], Query(max_length=100, description="Keys of rows; repeat the parameter, 100 times at most")
    ],
) -> list[RecordedRow]:
    """Find out which rows of bulk uploads, by the `idempotency_key` you gave each, are recorded as confirmations.

    Only of rows that you sent; those that are not recorded are left out.
    """
    with db.transaction(pool) as connection:
        parts = idempotency.find_parts(connection, user_id=user.user_id, keys=idempotency_key)
    return [RecordedRow(idempotency_key=key, **part.body) for key, part in parts.items()]


def _parse(row: dict[str, Any] | Refusal) -> Row | Refusal:
    if isinstance(row, Refusal):
        return row
    try:
        parsed = Row.model_validate(row)
    except ValidationError as error:
        return invalid(error.errors())
    # PostgreSQL would refuse the row, and the others with it.
    texts = (parsed.reader, parsed.external_id or "", parsed.idempotency_key or "")
    return unstorable() if any("\0" in text for text in texts) else parsed


def _record(connection: db.Connection, rows: Sequence[Row | Refusal], *, line_id: int, user: User) -> list[RowResult]:
    keys = {key for key in map(_key_of, rows) if key is not None}
    done = idempotency.hold_parts(connection, user_id=user.user_id, keys=keys)
    taken: set[str | None] = set(done)
    fresh: dict[int, Row | Refusal] = {}
    for place, row in enumerate(rows):
        if _key_of(row) not in taken:
            fresh[place] = row
        taken |= {_key_of(row)} - {None}
    outcomes = dict(zip(fresh, _confirm(connection, list(fresh.values()), line_id=line_id, user=user), strict=True))
    made = {
        key: idempotency.Part(digest=_digest(row, line_id=line_id), body={"confirmation_id": outcome.confirmation_id})
        for place, outcome in outcomes.items()
        if isinstance(row := rows[place], Row) and isinstance(outcome, confirmations.Confirmation)
        if (key := row.idempotency_key) is not None
    }
    idempotency.finish_parts(connection, user_id=user.user_id, parts=made)
    done |= made
    return [
        _result(place + 1, outcomes[place] if place in outcomes else _repeated(row, done=done, line_id=line_id))
        for place, row in enumerate(rows)
    ]


def _key_of(row: Row | Refusal) -> str | None:
    return row.idempotency_key if isinstance(row, Row) else None


def _confirm(
    connection: db.Connection, rows: Sequence[Row | Refusal], *, line_id: int, user: User
) -> list[confirmations.Confirmation | Refusal | RegistryError]:
    names = {row.external_id for row in rows if isinstance(row, Row) and row.external_id is not None}
    known = cases.ids_of(connection, line_id=line_id, external_ids=names, submitted_by=user.user_id)
    diagnoses = [_diagnosis(row, known) if isinstance(row, Row) else row for row in rows]
    right = [diagnosis for diagnosis in diagnoses if isinstance(diagnosis, confirmations.Diagnosis)]
    recorded = iter(confirmations.confirm_many(connection, right, actor=user, line_id=line_id))
    return [next(recorded) if isinstance(diagnosis, confirmations.Diagnosis) else diagnosis for diagnosis in diagnoses]


def _repeated(
    row: Row | Refusal, *, done: Mapping[str, idempotency.Part], line_id: int
) -> idempotency.Part | IdempotencyConflict:
    assert isinstance(row, Row)
    part = done.get(str(row.idempotency_key))
    if part is None:
        return IdempotencyConflict("an earlier row with this idempotency_key was rejected; send this one later")
    if part.digest != _digest(row, line_id=line_id):
        return IdempotencyConflict("this idempotency_key was used for another row; give this one a key of its own")
    return part


def _digest(row: Row, *, line_id: int) -> str:
    return hashlib.sha256(f"row {line_id} {row.model_dump_json(exclude={'idempotency_key'})}".encode()).hexdigest()


def _diagnosis(row: Row, known: Mapping[str, int]) -> confirmations.Diagnosis | NotFound:
    case_id = row.case_id if row.external_id is None else known.get(row.external_id)
    if case_id is None:
        return NotFound(f"you sent no image of this line as {row.external_id!r}")
    values = {name: getattr(row, name) for name in NewConfirmation.model_fields}
    return confirmations.Diagnosis(case_id=case_id, **values)


def _result(number: int, outcome: confirmations.Confirmation | idempotency.Part | Refusal | RegistryError) -> RowResult:
    match outcome:
        case confirmations.Confirmation():
            return RowResult(row=number, status="accepted", confirmation_id=outcome.confirmation_id)
        case idempotency.Part():
            return RowResult(row=number, status="accepted", replayed=True, **outcome.body)
        case _:
            return RowResult(row=number, status="rejected", problem=Problem.model_validate(document_of(outcome)))


def _read(body: Upload) -> Iterator[dict[str, Any] | Refusal]:
    if body.media_type in _NDJSON:
        rows = _read_ndjson(body.file)
    elif body.media_type == "text/csv":
        rows = _read_csv(body.file)
    else:
        raise Refusal("unsupported-media-type", "Send application/x-ndjson or text/csv.")
    try:
        for number, row in enumerate(rows):
            if number == MAXIMUM_ROWS:
                raise Refusal("too-many-rows", f"One upload takes {MAXIMUM_ROWS} rows; split it.")
            yield row
    except UnicodeDecodeError:
        raise _unreadable("the text is not UTF-8") from None
    except csv.Error as error:
        raise _unreadable(f"the CSV cannot be read: {error}") from None


def _read_ndjson(file: IO[bytes]) -> Iterator[dict[str, Any] | Refusal]:
    for text in _lines(file):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            yield _unreadable(f"not JSON: {error}")
            continue
        yield row if isinstance(row, dict) else _unreadable("a row is a JSON object")


def _read_csv(file: IO[bytes]) -> Iterator[dict[str, Any] | Refusal]:
    reader = csv.DictReader(_lines(file), strict=True)
    unknown = [name for name in reader.fieldnames or () if name not in _COLUMNS]
    if unknown or not reader.fieldnames:
        raise _unreadable(f"the header may name {', '.join(_COLUMNS)}; found: {', '.join(unknown) or 'no header'}")
    for row in reader:
        if None in row or None in row.values():
            yield _unreadable("the row has more or fewer cells than the header")
            continue
        yield {name: value.strip() for name, value in row.items() if value.strip()}


def _lines(file: IO[bytes]) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def _unreadable(message: str) -> Refusal:
    return Refusal("invalid-request", message, errors=[{"field": "body", "message": message}])
