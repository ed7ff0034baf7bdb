"""Fault matrix rows 14, 15, 19 and 21: many at once, and one who predicts while the champion's seat is shot at."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from registry import approvals, promotions, runs, users
from registry.db import connect
from registry.errors import ChampionMoved, RunInProgress, StateMoved
from tests import factories
from tests.faults.conftest import MakePlace
from tests.faults.places import worker_settings
from tests.faults.test_every_faultpoint import labels_in
from tests.faults.whole import assert_record_whole, imagined_files
from tests.faults.zygote import ROOT, Zygote
from tests.workers.lines import crown, make_line
from workers.champions import Champions
from workers.lease import Workshop
from workers.schedule import start_due_runs


def test_fifty_who_promote_and_sign_at_once_leave_one_champion(fresh_database: str, tmp_path: Path) -> None:
    with connect(fresh_database) as conn:
        line = factories.line(conn)
        ready = [factories.approved_candidate(conn, line) for _ in range(25)]
        unsigned = factories.gated_candidate(conn, line)
        people = [factories.user(conn, "approver") for _ in range(25)]
        conn.commit()
        imagined = imagined_files(conn, tmp_path)
    together = threading.Barrier(50)

    def promote(number: int) -> str:
        with connect(fresh_database) as conn:
            together.wait(timeout=120)
            try:
                promotions.promote(
                    conn,
                    candidate_id=ready[number].candidate_id,
                    expected_champion_id=None,
                    actor=people[number],
                    reason="it is better",
                )
            except ChampionMoved as refusal:
                conn.rollback()
                return f"{refusal.status} {refusal.slug}"
        return "promoted"

    def sign(number: int) -> str:
        with connect(fresh_database) as conn:
            together.wait(timeout=120)
            try:
                approvals.sign(
                    conn,
                    candidate_id=unsigned.candidate_id,
                    approver=people[number],
                    decision="approve",
                    reason="I read the report",
                )
            except (ChampionMoved, StateMoved) as refusal:
                conn.rollback()
                return f"{refusal.status} {refusal.slug}"
        return "signed"

    with ThreadPoolExecutor(50) as threads:
        promoting = [threads.submit(promote, number) for number in range(25)]
        signing = [threads.submit(sign, number) for number in range(25)]
    assert sorted(done.result() for done in promoting) == ["409 champion-moved"] * 24 + ["promoted"]
    assert {done.result() for done in signing} <= {"signed", "409 champion-moved"}
    with connect(fresh_database) as conn:
        signed = sum(done.result() == "signed" for done in signing)
        assert len(approvals.list_for_candidate(conn, unsigned.candidate_id)) == signed
        assert len(promotions.history(conn, line.line_id)) == 1
        assert_record_whole(conn, tmp_path, imagined=imagined)


def test_two_clocks_that_tick_at_once_start_one_run(make_place: MakePlace) -> None:
    place = make_place()
    with connect(place["database_url"]) as conn:
        line, person = make_line(conn, triggers={"new_confirmations": 1})
        factories.confirmation(conn, factories.case(conn, line), actor=person)
    together = threading.Barrier(4)

    def tick(_number: int) -> None:
        workshop = Workshop(worker_settings(place))
        for _ in range(5):
            together.wait(timeout=120)
            start_due_runs(workshop)
        workshop.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(tick, range(4)))
    with connect(place["database_url"]) as conn:
        assert len(runs.list_runs(conn, line.line_id)) == 1
        with pytest.raises(RunInProgress):
            runs.start_run(conn, line_id=line.line_id, requested_by=None, reason="one more")


def test_no_prediction_fails_while_whoever_rolls_back_is_killed_at_each_step(
    make_place: MakePlace, zygote: Zygote
) -> None:
    place = make_place()
    settings = worker_settings(place)
    with connect(place["database_url"]) as conn:
        line, _ = make_line(conn)
        first, second = crown(conn, settings, line, seed=1), crown(conn, settings, line, seed=2)
        approver = factories.user(conn, "approver")
        place |= {"key": users.create_api_key(conn, user_id=approver.user_id), "line": line.name}
        place |= {"first": first.candidate_id, "second": second.candidate_id}
    champions, answered, over = Champions(settings), [second.weights_digest], threading.Event()
    champions.start()
    pixels, failed = np.zeros((28, 28), dtype=np.uint8), list[Exception]()

    def predict() -> None:
        while not over.wait(0.01):
            try:
                answered.append(champions.score(line.name, pixels)[0].candidate.weights_digest)
            except Exception as error:  # noqa: BLE001 - whatever it is, a prediction failed
                failed.append(error)

    predicting = threading.Thread(target=predict)
    predicting.start()
    try:
        for faultpoint in (*labels_of_promotions(), "transaction.commit.before", "transaction.commit.after"):
            code, _ = zygote.run("a roll back", place, faultpoint=faultpoint)
            assert code == -signal.SIGKILL, f"{faultpoint}: it ended with {code}\n{zygote.said()}"
            with connect(place["database_url"]) as conn:
                assert_record_whole(conn, Path(place["home"]) / "blobs")
        code, answer = zygote.run("a roll back", place)  # where it was done already, the stored answer
        assert (code, answer[0], answer[1]["candidate_id"]) == (0, 201, first.candidate_id), zygote.said()
        for _ in range(1200):
            if answered[-1] == first.weights_digest:
                break
            over.wait(0.1)
    finally:
        over.set()
        predicting.join(timeout=60)
        champions.stop()
    assert failed == []
    assert answered[-1] == first.weights_digest
    changes = sum(one != other for one, other in pairwise(answered))
    assert changes == 1, "the old one, then the new one, and nobody else in between"


def labels_of_promotions() -> list[str]:
    """Every fault point of a change of champion."""
    return list(labels_in((ROOT / "registry" / "promotions.py").read_text(encoding="utf-8")))
