"""One behaviour on every broker: what was committed is done, once, whatever becomes of the messages in between.

The long versions (`make soak`) are those of the fault matrix: a broker away for a minute, deaf for a minute and a half.
"""

from __future__ import annotations

import signal
import time

import psycopg
import pytest
from celery import beat

from registry import db, jobs
from tests.brokers.conftest import System
from tests.brokers.servers import KIND, RabbitMQ
from tests.waiting import until
from workers import schedule
from workers.app import QUEUE, make_celery, task_name

RETURN_SECONDS = 10.0
"""Of the long versions, which have the machine to themselves."""
soak = pytest.mark.soak


def once(system: System, job_ids: list[int]) -> bool:
    """Whether each of these jobs was worked on exactly once."""
    return [(job_id, count) for job_id, count, _ in system.done(job_ids)] == [(job_id, 1) for job_id in job_ids]


def test_committed_jobs_are_done(system: System) -> None:
    asked = system.ask(30)
    system.wait_for_all(asked)
    assert once(system, asked)


def test_a_message_that_comes_ten_times_to_two_workers_is_worked_on_once(system: System) -> None:
    asked = system.ask(10)
    celery = make_celery(system.settings)
    with celery.connection_for_write() as connection:
        producer = celery.amqp.Producer(connection)
        for job_id in asked * 10:
            celery.send_task(task_name(KIND), kwargs={"job_id": job_id}, queue=QUEUE, producer=producer)
    system.wait_for_all(asked)
    later = system.ask(1)
    system.wait_for_all(later)  # behind all the copies in the queue
    assert system.done(asked) == [(job_id, 1, 1) for job_id in asked]


@pytest.mark.parametrize("kills", [pytest.param(1, id="once"), pytest.param(5, id="five-times", marks=soak)])
def test_a_killed_broker_loses_nothing(system: System, kills: int) -> None:
    asked: list[int] = []
    for _ in range(kills if isinstance(system.broker, RabbitMQ) else 5):  # RabbitMQ needs ten seconds to start
        asked += system.ask(20)
        system.broker.kill()
        asked += system.ask(5)
        system.broker.start()
        system.wait_for_all(asked)
    assert once(system, asked)


def test_beat_ticks_again_once_the_broker_is_back(system: System) -> None:
    celery = make_celery(system.settings)
    scheduler = schedule.Scheduler(app=celery)
    entry = scheduler.schedule["start-due-runs"]

    def sent() -> bool:
        try:
            scheduler.apply_async(entry, producer=scheduler.producer, advance=False)
        except beat.SchedulingError:
            return False
        return True

    assert sent()
    system.broker.kill()
    assert not sent()
    assert not sent()
    system.broker.start()
    until(sent, log=system.log)
    scheduler.close()


@pytest.mark.parametrize("seconds", [pytest.param(4, id="seconds"), pytest.param(60, id="a-minute", marks=soak)])
def test_with_the_broker_down_no_request_fails_and_all_jobs_run_soon_after_its_return(
    system: System, seconds: float
) -> None:
    system.broker.kill()
    with system.confirmations(seconds=seconds) as statuses:
        asked = _ask_for(system, seconds=seconds)
        system.broker.start()
        took = system.wait_for_all(asked)
    assert once(system, asked)
    assert seconds < 60 or took < RETURN_SECONDS
    print(f"{len(statuses)} confirmations meanwhile, {len(asked)} jobs done {took:.1f} s after")
    assert len(statuses) > seconds
    assert set(statuses) == {201}


@pytest.mark.parametrize("seconds", [pytest.param(9, id="seconds"), pytest.param(90, id="90-seconds", marks=soak)])
def test_a_broker_that_answers_nothing_holds_up_no_request_and_no_row(system: System, seconds: float) -> None:
    system.broker.hang()
    try:
        with system.confirmations(seconds=seconds) as statuses:
            asked = _ask_for(system, seconds=seconds / 2)
            with db.connect(system.database_url) as connection:
                connection.execute("SET lock_timeout = '4s'")
                (waiting,) = system.ask(1)
                assert jobs.request_cancel(connection, waiting).state == "cancelled"
                connection.commit()
            asked += _ask_for(system, seconds=seconds / 2)
    finally:
        system.broker.resume()
    took = system.wait_for_all(asked)
    assert once(system, asked)
    assert seconds < 60 or took < RETURN_SECONDS
    print(f"{len(statuses)} confirmations meanwhile, {len(asked)} jobs done {took:.1f} s after")
    assert set(statuses) == {201}


def test_what_was_in_a_wiped_broker_is_sent_again(system: System) -> None:
    for worker in system.workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        asked = system.ask(40)
        until(lambda: _sent(system, asked) == 40, log=system.log)
        assert system.broker.wipe() >= 20
    finally:
        for worker in system.workers:
            worker.send_signal(signal.SIGCONT)
    system.wait_for_all(asked)
    assert once(system, asked)


def _ask_for(system: System, *, seconds: float) -> list[int]:
    # Twenty, however long it takes: what is measured afterwards is how soon they are found, not how many run a second.
    asked: list[int] = []
    for _ in range(20):
        asked += system.ask(1)
        time.sleep(seconds / 20)
    return asked


def _sent(system: System, job_ids: list[int]) -> int:
    with psycopg.connect(system.database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM jobs WHERE job_id = ANY(%s) AND sent_at IS NOT NULL", (job_ids,)
        ).fetchone()
    return int(row[0]) if row else 0
