"""The service's worker with one more kind of job, which is done at once: what reaches a worker, and how often, shows.

python -m celery -A tests.brokers.worker worker
"""

from __future__ import annotations

import sys

from tests.brokers.servers import KIND
from workers.app import make_celery
from workers.lease import Workshop, claimed
from workers.settings import WorkerSettings
from workers.tasks import TASKS


def note(workshop: Workshop, *, job_id: int) -> None:
    """Write down that this job was worked on, and when."""
    with claimed(workshop, job_id=job_id) as lease:
        if lease is None:
            return
        with lease.recording() as connection:
            connection.execute("INSERT INTO notes (job_id) VALUES (%s)", (job_id,))


if __name__ == "__main__":
    TASKS[KIND] = note  # type: ignore[index] # a kind of the test's own
    make_celery(WorkerSettings.from_environment()).start(sys.argv[1:])
