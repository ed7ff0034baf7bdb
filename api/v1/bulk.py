"""Confirmations in bulk: NDJSON or CSV, each row judged on its own, all accepted rows in one transaction.

A wrong row is reported and left out; it never takes a right one with it. The answer is stored under the
Idempotency-Key, so that a repeat after a lost connection returns it word for word.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from typing import IO, Any, Literal

import psycopg
from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError, model_validator

from api.auth import allow, guarded_router
from api.dependencies import Body, CurrentUser, IdempotencyKey, LineName, Pool, Upload
from api.errors import Problem, Refusal, document_of, invalid, unstorable
from api.v1 import examples
from api.v1.confirmations import REPLAYED, NewConfirmation
from api.v1.views import View, shown_as
from registry import cases, confirmations, db, idempotency, lines
from registry.errors import NotFound, RegistryError, WrongLine
from registry.users import User

router = guarded_router(tag="Confirmations")

MAXIMUM_ROWS = 1000
"""Rows of one upload: one transaction, which holds the audit chain; other writers wait for its end."""

_NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
_COLUMNS = ("case_id", "external_id", *NewConfirmation.model_fields)


class Row(NewConfirmation):
    """A row of an upload: a confirmation, and its case by our id or by yours."""

    model_config = shown_as(examples.BULK_ROW)

    case_id: int | None = None
    external_id: str | None = None

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
    problem: Problem | None = None


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
            "idempotency-key-missing",
            "not-found",
            "idempotency-in-flight",
            "body-too-large",
            "too-many-rows",
            "unsupported-media-type",
            "idempotency-key-reused",
        ),
        extra={"requestBody": _REQUEST_BODY},
    ),
)
def confirm_many(user: CurrentUser, pool: Pool, key: IdempotencyKey, line: LineName, body: Body) -> Response:
    """Send many confirmations of one line as NDJSON (one JSON object a line) or CSV (with a header), at most 1000 rows.

    Each row has the fields of a single confirmation and names its case by `case_id`, or by the `external_id` under
    which you sent the image. Rows that are wrong are rejected with a problem each; the others are recorded, all in
    one transaction. Mend the rejected rows and send only those, under a new `Idempotency-Key`.
    """
    digest = hashlib.sha256(f"bulk {line} {body.media_type} {body.digest}".encode()).hexdigest()
    with db.transaction(pool) as connection:
        replay = idempotency.begin(connection, user_id=user.user_id, key=key, request_digest=digest)
        if replay is not None:
            return JSONResponse(replay.body, status_code=replay.status, headers=REPLAYED)
        line_id = lines.get_line(connection, line).line_id
        results = [
            _take(connection, number, row, line_id=line_id, user=user)
            for number, row in enumerate(_read(body), start=1)
        ]
        accepted = sum(result.status == "accepted" for result in results)
        summary = BulkResult(accepted=accepted, rejected=len(results) - accepted, rows=results)
        answer = summary.model_dump(mode="json", exclude_none=True)
        idempotency.finish(connection, user_id=user.user_id, key=key, request_digest=digest, status=200, body=answer)
    return JSONResponse(answer)


def _take(connection: db.Connection, number: int, row: Any, *, line_id: int, user: User) -> RowResult:
    try:
        parsed = Row.model_validate(row) if not isinstance(row, Refusal) else None
        if parsed is None:
            raise row
        with connection.transaction():  # a savepoint: a refused row leaves nothing behind
            confirmation = _record(connection, parsed, line_id=line_id, user=user)
    except ValidationError as error:
        return _rejected(number, invalid(error.errors()))
    except (Refusal, RegistryError) as error:
        return _rejected(number, error)
    except psycopg.DataError:
        return _rejected(number, unstorable())
    return RowResult(row=number, status="accepted", confirmation_id=confirmation.confirmation_id)


def _record(connection: db.Connection, row: Row, *, line_id: int, user: User) -> confirmations.Confirmation:
    case_id = row.case_id
    if case_id is None:
        assert row.external_id is not None
        case = cases.by_external_id(connection, line_id=line_id, external_id=row.external_id, submitted_by=user.user_id)
        if case is None:
            raise NotFound(f"you sent no image of this line as {row.external_id!r}")
        case_id = case.case_id
    values = {name: getattr(row, name) for name in NewConfirmation.model_fields}
    confirmation = confirmations.confirm(connection, case_id=case_id, actor=user, **values)
    if confirmation.line_id != line_id:
        raise WrongLine(f"case {case_id} is of another line")  # the savepoint takes the row back
    return confirmation


def _rejected(number: int, error: Refusal | RegistryError) -> RowResult:
    return RowResult(row=number, status="rejected", problem=Problem.model_validate(document_of(error)))


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
