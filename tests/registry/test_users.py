"""Who may come in: keys, roles, and what is kept of a secret."""

from __future__ import annotations

import re

import pytest
from psycopg import sql

from registry import idempotency, users
from registry.db import Connection, connect
from registry.errors import AlreadyExists, Forbidden, IdempotencyConflict, IdempotencyInFlight, Invalid, NotFound
from registry.idempotency import Replay
from tests import factories


def test_a_key_opens_the_door_for_its_user(db: Connection) -> None:
    user = factories.user(db, "submitter", "reviewer")
    key = users.create_api_key(db, user_id=user.user_id)
    assert re.fullmatch(r"ovr_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", key)
    assert users.authenticate(db, key) == user


def test_the_secret_of_a_key_is_nowhere_in_the_record(db: Connection) -> None:
    user = factories.user(db)
    key = users.create_api_key(db, user_id=user.user_id)
    secret = key.split("_", 2)[2]
    tables = db.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'").fetchall()
    assert len(tables) > 10
    for (table,) in tables:
        for (row,) in db.execute(sql.SQL("SELECT this::text FROM {} this").format(sql.Identifier(table))):
            assert secret not in row
            assert secret.encode().hex() not in row


@pytest.mark.parametrize(
    "wrong", ["", "ovr_", "ovr__", "ovr_0000000000000000_AAAA", "xyz_{id}_{secret}", "ovr_{id}_{secret}x", "ovr_{id}_"]
)
def test_any_other_key_stays_out(db: Connection, wrong: str) -> None:
    key = users.create_api_key(db, user_id=factories.user(db).user_id)
    _, key_id, secret = key.split("_", 2)
    assert users.authenticate(db, wrong.format(id=key_id, secret=secret)) is None


def test_a_key_of_another_user_does_not_open_with_my_secret(db: Connection) -> None:
    mine = users.create_api_key(db, user_id=factories.user(db).user_id)
    theirs = users.create_api_key(db, user_id=factories.user(db).user_id)
    assert users.authenticate(db, f"ovr_{theirs.split('_')[1]}_{mine.split('_', 2)[2]}") is None


def test_a_revoked_key_stays_out_at_once(db: Connection) -> None:
    user = factories.user(db)
    key, other = (users.create_api_key(db, user_id=user.user_id) for _ in range(2))
    users.revoke_api_key(db, api_key_id=key.split("_")[1])
    assert users.authenticate(db, key) is None
    assert users.authenticate(db, other) == user
    shown = {item.api_key_id: item.revoked_at is None for item in users.list_api_keys(db, user_id=user.user_id)}
    assert shown == {key.split("_")[1]: False, other.split("_")[1]: True}


def test_a_disabled_user_stays_out_with_every_key(db: Connection) -> None:
    user = factories.user(db)
    key = users.create_api_key(db, user_id=user.user_id)
    users.disable_user(db, user_id=user.user_id)
    assert users.authenticate(db, key) is None


def test_names_are_plain_and_taken_once(db: Connection) -> None:
    users.create_user(db, name="dr.lovelace", printed_name="Ada Lovelace", roles=["approver"])
    with pytest.raises(AlreadyExists):
        users.create_user(db, name="dr.lovelace", printed_name="Another", roles=[])
    with pytest.raises(Invalid, match="not a user name"):
        users.create_user(db, name="Dr Lovelace", printed_name="Ada", roles=[])
    with pytest.raises(Invalid, match="unknown role root"):
        users.create_user(db, name="eve", printed_name="Eve", roles=["root"])
    assert users.by_name(db, "dr.lovelace").printed_name == "Ada Lovelace"
    with pytest.raises(NotFound):
        users.by_name(db, "eve")


def test_a_role_is_asked_for_by_name(db: Connection) -> None:
    user = factories.user(db, "auditor")
    user.require("auditor", "operator")
    with pytest.raises(Forbidden, match="approver or operator"):
        user.require("approver", "operator")


def test_the_first_response_is_repeated(db: Connection) -> None:
    user = factories.user(db)
    question = {"user_id": user.user_id, "key": "k-1", "request_digest": "a"}
    assert idempotency.begin(db, **question) is None
    idempotency.finish(db, **question, status=201, body={"confirmation_id": 7})
    assert idempotency.begin(db, **question) == Replay(status=201, body={"confirmation_id": 7})


def test_a_key_used_for_another_request_is_refused(db: Connection) -> None:
    user = factories.user(db)
    idempotency.finish(db, user_id=user.user_id, key="k-1", request_digest="a", status=201, body=None)
    with pytest.raises(IdempotencyConflict):
        idempotency.begin(db, user_id=user.user_id, key="k-1", request_digest="b")


def test_a_key_belongs_to_whoever_sent_it(db: Connection) -> None:
    idempotency.finish(db, user_id=factories.user(db).user_id, key="k-1", request_digest="a", status=201, body=None)
    assert idempotency.begin(db, user_id=factories.user(db).user_id, key="k-1", request_digest="b") is None


def test_a_key_in_flight_is_refused_until_the_first_is_done(fresh_database: str) -> None:
    with connect(fresh_database) as conn:
        user = factories.user(conn)
    question = {"user_id": user.user_id, "key": "k-1", "request_digest": "a"}
    with connect(fresh_database) as first, connect(fresh_database) as second:
        assert idempotency.begin(first, **question) is None
        with pytest.raises(IdempotencyInFlight):
            idempotency.begin(second, **question)
        second.rollback()
        idempotency.finish(first, **question, status=200, body=[1])
        first.commit()
        assert idempotency.begin(second, **question) == Replay(status=200, body=[1])
