"""What is killed: small pieces of the service's life, each done in a child, repeated after the kill, and then judged.

A scenario prepares a place (in the test's process), acts in it (in a child that may die on the way, and again in one
that does not), and checks what is there at the end, besides what `assert_record_whole` asks of every record.
"""

from __future__ import annotations

from tests.faults import doors, glue, science
from tests.faults.places import Scenario, worker_settings

SCENARIOS: dict[str, Scenario] = {
    **doors.SCENARIOS,
    **glue.SCENARIOS,
    "a new champion": Scenario(
        prepare=lambda conn, place: science.prepare_serving(conn, worker_settings(place)),
        act=lambda place: science.serve(worker_settings(place), line=place["line"]),
        check=science.check_serving,
        subjects=("champion",),
    ),
    "a training": Scenario(
        prepare=science.prepare_training,
        act=science.train,
        check=science.check_trained,
        subjects=("training", "file"),
    ),
    "a data repository": Scenario(
        prepare=science.prepare_hospital, act=science.set_up, check=science.check_set_up, subjects=("repository",)
    ),
    "a freeze": Scenario(
        prepare=science.prepare_freeze,
        act=science.freeze,
        check=science.check_frozen,
        subjects=("version", "part", "shard"),
    ),
    "a checkout": Scenario(
        prepare=science.prepare_checkout,
        act=science.check_out,
        check=science.check_checked_out,
        subjects=("checkout",),
    ),
}
