"""All of Celery: the application, its one queue, and the doctrine of what is retried where.

The job row in PostgreSQL owns the work; a message only says "look at job 7". So messages are acknowledged on arrival,
may be lost, doubled or late, hold nothing but a number, and Celery itself retries nothing: a job that fails is queued
again by the record, after a pause, until its attempts are used up, and the relay sends it again. No result is kept.

Tasks run in threads, for all they do is watch other processes; a thread can be told to let go, and nothing is forked.

    celery -A workers.app worker
    celery -A workers.app beat
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from celery.signals import after_setup_logger, beat_init, worker_init, worker_shutting_down

from workers import broker, drift, pulse, ranking, schedule, watching
from workers.lease import Workshop
from workers.settings import WorkerSettings
from workers.tasks import TASKS, Task

QUEUE = "overread"


def make_celery(settings: WorkerSettings) -> Celery:
    """Build the Celery application for these settings: a task for each kind of job, and the schedule's ticks."""
    workshop = Workshop(settings)
    made = Celery("overread", set_as_current=False)
    broker.connect_through(made, url=settings.broker_url)
    made.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=False,
        task_default_queue=QUEUE,
        worker_pool="threads",
        worker_prefetch_multiplier=1,
        worker_concurrency=settings.worker_concurrency,
        worker_enable_remote_control=False,  # it needs a broker that broadcasts; jobs are cancelled in the record
        worker_send_task_events=False,
        timezone="UTC",
        beat_scheduler=f"{schedule.__name__}:{schedule.Scheduler.__name__}",
        beat_max_loop_interval=settings.trigger_seconds,
        beat_schedule={
            "start-due-runs": {"task": schedule.TASK, "schedule": settings.trigger_seconds},
            "check-mirror": {"task": drift.TASK, "schedule": settings.trigger_seconds},
            "rank-due-worklists": {"task": ranking.TASK, "schedule": settings.trigger_seconds},
            "watch-due-champions": {"task": watching.TASK, "schedule": settings.trigger_seconds},
        },
    )
    for kind, work in TASKS.items():
        _register(made, name=task_name(kind), work=work, workshop=workshop)
    due = schedule.Paced(schedule.start_due_runs, pause_seconds=settings.trigger_seconds / 2)
    _register(made, name=schedule.TASK, work=due, workshop=workshop)
    drifted = schedule.Paced(drift.check_mirror, pause_seconds=drift.PAUSE_SECONDS)
    _register(made, name=drift.TASK, work=drifted, workshop=workshop)
    listed = schedule.Paced(ranking.rank_due_worklists, pause_seconds=settings.trigger_seconds / 2)
    _register(made, name=ranking.TASK, work=listed, workshop=workshop)
    watched = schedule.Paced(watching.watch_due_champions, pause_seconds=settings.trigger_seconds / 2)
    _register(made, name=watching.TASK, work=watched, workshop=workshop)

    def let_go(**_: Any) -> None:
        workshop.stopping.set()

    def quieten(**_: Any) -> None:
        # Two lines for each tick would bury what the jobs tell of themselves; failures are logged higher.
        for name in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(name).setLevel(logging.WARNING)

    def begin(**_: Any) -> None:
        pulse.start(settings.pulse_file)

    for starting in (worker_init, beat_init):
        starting.connect(begin, weak=False)
    worker_shutting_down.connect(let_go, weak=False)
    after_setup_logger.connect(quieten, weak=False)
    return made


def task_name(kind: str) -> str:
    """Name of the task that does jobs of a kind."""
    return f"workers.{kind}"


def _register(made: Celery, *, name: str, work: Task, workshop: Workshop) -> None:
    @made.task(name=name, shared=False)  # type: ignore[untyped-decorator] # Celery is untyped
    def run(**arguments: int) -> None:
        work(workshop, **arguments)


def __getattr__(name: str) -> Celery:
    # Celery's command line asks this module for `celery`; imported for any other reason it reads no environment.
    if name == "celery":
        made = globals()["celery"] = make_celery(WorkerSettings.from_environment())
        return made
    raise AttributeError(name)
