"""Passwords and sessions in the record: what is kept of them, and when they stop counting."""

from __future__ import annotations

import re
import time

import pytest
from argon2 import extract_parameters
from psycopg import sql

from registry import audit, passwords, sessions, users
from registry.db import Connection
from registry.errors import Invalid
from registry.passwords import credential_of, matches, set_password
from registry.sessions import Limits
from tests import factories

WORDS = "four words do well"
LIMITS = Limits()


def test_a_password_is_kept_as_argon2id_with_the_parameters_that_owasp_asks_for(db: Connection) -> None:
    user = factories.user(db)
    set_password(db, user=user, password=WORDS)
    credential = credential_of(db, user.name)
    assert credential is not None
    assert credential.hash is not None
    assert credential.hash.startswith("$argon2id$")
    parameters = extract_parameters(credential.hash)
    assert (parameters.memory_cost, parameters.time_cost, parameters.parallelism) == (19 * 1024, 2, 1)
    assert matches(credential, WORDS)
    assert not matches(credential, WORDS + " ")
    assert WORDS not in repr(credential)
    assert credential.hash not in repr(credential)


def test_an_unknown_name_costs_what_a_wrong_password_costs(db: Connection) -> None:
    user = factories.user(db)
    set_password(db, user=user, password=WORDS)
    known = credential_of(db, user.name)
    assert credential_of(db, "nobody-bears-this-name") is None
    assert known is not None
    # Not by the clock, which other processes disturb: the same work has the same parameters.
    assert extract_parameters(passwords._NOBODYS) == extract_parameters(known.hash or "")
    for stranger in (None, passwords.Credential(user_id=1, hash=None)):
        begun = time.process_time()
        assert not matches(stranger, WORDS)
        assert time.process_time() - begun > 0.005, "nothing was compared"


def test_nobody_has_a_password_by_default(db: Connection) -> None:
    assert db.execute("SELECT count(*) FROM users").fetchone() == (0,)
    user = factories.user(db, "approver")
    credential = credential_of(db, user.name)
    assert credential is not None
    assert credential.hash is None
    assert not matches(credential, "")


@pytest.mark.parametrize("weak", ["", "short", "elevenchars", "x" * 201, "aaaaaaaaaaaaaaaa", "Dr Anna Approver"])
def test_a_weak_password_is_refused(db: Connection, weak: str) -> None:
    user = factories.user(db, printed_name="Dr Anna Approver")
    with pytest.raises(Invalid, match="password"):
        set_password(db, user=user, password=weak)


def test_a_password_is_the_same_however_the_keyboard_composes_it(db: Connection) -> None:
    user = factories.user(db)
    set_password(db, user=user, password="gr\u00fcne gr\u00fctze")
    assert matches(credential_of(db, user.name), "gru\u0308ne gru\u0308tze")


def test_a_new_password_ends_the_old_one_and_every_session(db: Connection) -> None:
    user = factories.user(db)
    set_password(db, user=user, password=WORDS)
    token, _ = sessions.start(db, user_id=user.user_id, replaces=None, limits=LIMITS)
    set_password(db, user=user, password=WORDS[::-1])
    assert not matches(credential_of(db, user.name), WORDS)
    assert sessions.find(db, token, limits=LIMITS) is None
    events = [event for event in audit.list_events(db, subject=f"user/{user.user_id}") if event.action.endswith("word")]
    assert [event.details for event in events] == [{}, {}]


def test_a_session_is_found_by_its_token_until_it_is_ended(db: Connection) -> None:
    user = factories.user(db, "approver")
    token, _ = sessions.start(db, user_id=user.user_id, replaces=None, limits=LIMITS)
    session = sessions.find(db, token, limits=LIMITS)
    assert session is not None
    assert (session.user, session.age_seconds < 60) == (user, True)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)
    for wrong in ("", token[:-1], token + "x", "\udcff"):
        assert sessions.find(db, wrong, limits=LIMITS) is None
    assert sessions.end(db, token)
    assert not sessions.end(db, token)
    assert sessions.find(db, token, limits=LIMITS) is None


def test_signing_in_makes_a_new_token_and_ends_the_one_that_came_with_it(db: Connection) -> None:
    user = factories.user(db)
    planted, _ = sessions.start(db, user_id=user.user_id, replaces=None, limits=LIMITS)
    token, _ = sessions.start(db, user_id=user.user_id, replaces=planted, limits=LIMITS)
    assert token != planted
    assert sessions.find(db, planted, limits=LIMITS) is None
    assert sessions.find(db, token, limits=LIMITS) is not None


@pytest.mark.parametrize(
    ("column", "seconds", "stands"),
    [
        ("last_used_at", 15 * 60 - 5, True),
        ("last_used_at", 15 * 60 + 5, False),
        ("started_at", 8 * 3600 - 5, True),
        ("started_at", 8 * 3600 + 5, False),
    ],
)
def test_a_session_ends_without_use_and_in_any_case(
    owner_db: Connection, column: str, seconds: int, stands: bool
) -> None:
    db = owner_db
    user = factories.user(db)
    token, _ = sessions.start(db, user_id=user.user_id, replaces=None, limits=LIMITS)
    db.execute(
        sql.SQL("UPDATE sessions SET {0} = {0} - make_interval(secs => %s)").format(sql.Identifier(column)), (seconds,)
    )
    assert (sessions.find(db, token, limits=LIMITS) is not None) == stands
    if stands:  # and using it has kept it alive
        assert db.execute("SELECT now() - last_used_at < interval '1 minute' FROM sessions").fetchone() == (True,)
    sessions.start(db, user_id=user.user_id, replaces=None, limits=LIMITS)
    assert db.execute("SELECT count(*) FROM sessions").fetchone() == (2 if stands else 1,), "what ran out is removed"


def test_whoever_is_shut_out_has_no_session_and_no_password(db: Connection) -> None:
    user = factories.user(db)
    set_password(db, user=user, password=WORDS)
    token, _ = sessions.start(db, user_id=user.user_id, replaces=None, limits=LIMITS)
    users.disable_user(db, user_id=user.user_id)
    assert sessions.find(db, token, limits=LIMITS) is None
    assert credential_of(db, user.name) is None
