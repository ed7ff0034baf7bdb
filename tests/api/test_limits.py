"""Token buckets: a burst, then a rate, each key for itself; and a name whose password somebody guesses has to wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from api.errors import Refusal
from api.limits import Buckets
from api.sign_in import SignIn
from registry import audit, db, passwords, users
from tests import factories
from tests.api.app import app_on


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(buckets: Buckets, key: str) -> int | None:
    """Seconds to wait, None where there was one to take."""
    try:
        buckets.take(key, detail="wait")
    except Refusal as refusal:
        return int(refusal.extra["retry_after_seconds"])
    return None


def test_a_burst_then_a_rate_each_key_for_itself() -> None:
    clock = Clock()
    buckets = Buckets(per_second=0.5, burst=3, clock=clock)
    assert [refused(buckets, "anna") for _ in range(5)] == [None, None, None, 2, 2]
    assert refused(buckets, "ben") is None
    clock.now += 2.0
    assert [refused(buckets, "anna") for _ in range(2)] == [None, 2]
    buckets.give_back("anna")
    assert refused(buckets, "anna") is None
    clock.now += 1000
    assert [refused(buckets, "anna") for _ in range(4)] == [None, None, None, 2], "never more than the burst"


def test_names_that_somebody_makes_up_do_not_fill_the_memory() -> None:
    buckets = Buckets(per_second=1, burst=1, most=10, clock=Clock())
    for number in range(1000):
        assert refused(buckets, str(number)) is None
    assert len(buckets._buckets) == 10
    assert refused(buckets, "999") == 1, "the latest is remembered"


def test_a_guessed_name_has_to_wait_even_with_the_right_password_and_others_do_not(fresh_database: str) -> None:
    with db.connect(fresh_database) as connection:
        for name in ("anna", "ben"):
            user = factories.user(connection, "approver", name=name)
            passwords.set_password(connection, user=user, password="four words do well")

    async def story(pool: db.Pool) -> None:
        sign_in = SignIn(pool)
        for number in range(5):
            assert await sign_in.prove(name="anna", password=f"guess {number}", address="10.0.0.1") is None
        with pytest.raises(Refusal) as wait:
            await sign_in.prove(name="anna", password="four words do well", address="10.0.0.2")
        assert 1 <= wait.value.extra["retry_after_seconds"] <= 31
        for _ in range(30):  # success costs nothing
            assert await sign_in.prove(name="ben", password="four words do well", address="10.0.0.2") is not None

    async def spray(pool: db.Pool) -> None:
        sign_in = SignIn(pool)
        for number in range(20):
            assert await sign_in.prove(name=f"made-up-{number}", password="x", address="10.0.0.1") is None
        with pytest.raises(Refusal):
            await sign_in.prove(name="ben", password="four words do well", address="10.0.0.1")
        assert await sign_in.prove(name="ben", password="four words do well", address="10.0.0.2") is not None

    with db.pool(fresh_database, maximum=4) as pool:
        asyncio.run(story(pool))
        asyncio.run(spray(pool))
        with db.transaction(pool) as connection:
            events = audit.list_events(connection, limit=1000)
    assert [event.action for event in events].count("session:refuse") == 25


def test_whoever_asks_too_often_is_told_when_to_come_back(fresh_database: str, tmp_path: Path) -> None:
    with db.connect(fresh_database) as connection:
        keys = [users.create_api_key(connection, user_id=factories.user(connection, "auditor").user_id) for _ in "ab"]
    greedy, other = ({"Authorization": f"Bearer {key}"} for key in keys)
    with app_on(fresh_database, tmp_path, requests_per_second=0.01, request_burst=5) as client:
        assert [client.get("/v1/lines", headers=greedy).status_code for _ in range(5)] == [200] * 5
        refused = client.get("/v1/audit", headers=greedy)
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/too-many-requests")
        assert 1 <= int(refused.headers["retry-after"]) <= 100
        assert client.get("/v1/lines", headers=other).status_code == 200
        assert client.get("/health/live").status_code == 200


def test_guessing_passwords_over_http_is_slowed_down_at_both_doors(fresh_database: str, tmp_path: Path) -> None:
    with db.connect(fresh_database) as connection:
        user = factories.user(connection, "approver", name="anna")
        passwords.set_password(connection, user=user, password="four words do well")
        bearer = {"Authorization": f"Bearer {users.create_api_key(connection, user_id=user.user_id)}"}
    signature = {"decision": "approve", "reason": "x", "password": "a guess"}
    with app_on(fresh_database, tmp_path) as client:
        for _ in range(2):
            assert client.post("/v1/session", json={"name": "anna", "password": "a guess"}).status_code == 401
        for _ in range(3):
            assert client.post("/v1/candidates/1/approvals", json=signature, headers=bearer).status_code == 403
        right = client.post("/v1/session", json={"name": "anna", "password": "four words do well"})
        stolen = client.post("/v1/candidates/1/approvals", json=signature, headers=bearer)
        for answer in (right, stolen):
            assert (answer.status_code, answer.json()["type"]) == (429, "/problems/too-many-requests")
            assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/v1/lines", headers=bearer).status_code == 200, "the key itself goes on"
