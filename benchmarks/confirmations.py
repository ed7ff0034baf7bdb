"""Measure how many confirmations a second the record takes, and that it loses and doubles none.

Everything a confirmation costs is in it: HTTP, the API key, the idempotency key, the row, its audit event in the chain,
the commit on disk (fsync on). PostgreSQL, API and client share the machine. What is compared is measured in turns
within one run, so that a busy machine slows all of it alike; the table says how busy it was.

    python -m benchmarks.confirmations                          # everything, a minute each
    python -m benchmarks.confirmations size --seconds 600       # the ten minutes, at three sizes
    python -m benchmarks.confirmations outage --kill-broker redis --seconds 600
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack

from benchmarks import outage
from benchmarks.measured import Side, compare, in_turns, show
from benchmarks.stage import Stage, open_stage

SIZES = (200, 10_000, 1_000_000)
BULK_ROWS = (1, 100, 1000, 5000)

# Two ways to leave the chain out, for its cost: events without digests, and beyond that nobody waits for a turn.
_UNCHAINED = """
CREATE SEQUENCE unchained START 100000000;
CREATE OR REPLACE FUNCTION chain_audit_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.audit_event_id := nextval('unchained');
    NEW.at := clock_timestamp();
    NEW.previous_digest := '';
    NEW.digest := '';
    RETURN NEW;
END $$;
GRANT USAGE ON SEQUENCE unchained TO overread_app;
"""
# Found before PostgreSQL's own, for its argument fits better.
_NO_TURNS = "CREATE FUNCTION public.pg_advisory_xact_lock(integer) RETURNS void LANGUAGE sql AS 'SELECT'"


def measure_sizes(stage: Stage, asked: argparse.Namespace) -> None:
    """How the rate depends on how much there is already."""
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        for size in asked.sizes:
            began = time.perf_counter()
            record = stage.record(f"size_{size}", cases=size)
            print(f"filled {size:,} cases and confirmations in {time.perf_counter() - began:.0f} s", flush=True)
            sides[f"{size:,} cases"] = (record, stack.enter_context(stage.api(record)), 1)
        found = in_turns(stage, sides, connections=asked.connections, seconds=asked.seconds)
    show(f"Confirmations at {asked.connections} connections, by what is there already", found)
    for name, one in found.items():
        print(f"{name}: {compare(sides[name][0], one.acknowledged)}")


def measure_chain(stage: Stage, asked: argparse.Namespace) -> None:
    """What the audit chain costs."""
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, changes in (
            ("with the chain", ()),
            ("without digests", (_UNCHAINED,)),
            ("without digests and turns", (_UNCHAINED, _NO_TURNS)),
        ):
            record = stage.record(f"chain_{len(sides)}", cases=200)
            with stage.admin(record.name) as connection:
                for change in changes:
                    connection.execute(change)
            sides[name] = (record, stack.enter_context(stage.api(record)), 1)
        found = in_turns(stage, sides, connections=asked.connections, seconds=asked.seconds)
    show("What the audit chain costs", found)
    for name, one in found.items():
        print(f"{name}: {compare(sides[name][0], one.acknowledged, chained=name == 'with the chain')}")


def measure_bulk(stage: Stage, asked: argparse.Namespace) -> None:
    """How many rows a second go in by uploads of different lengths."""
    record = stage.record("bulk", cases=10_000)
    with stage.api(record) as api:
        sides = {f"{rows} a request": (record, api, rows) for rows in BULK_ROWS}
        found = in_turns(stage, sides, connections=asked.connections, seconds=asked.seconds)
    show("Confirmations by uploads of many (one connection) and one by one", found)
    print(compare(record, [row for one in found.values() for row in one.acknowledged]))


SECTIONS = {
    "size": measure_sizes,
    "chain": measure_chain,
    "bulk": measure_bulk,
    "outage": outage.measure_outage,
    "recovery": outage.measure_recovery,
    "promotion": outage.measure_promotion,
    "images": outage.measure_images,
}


def main() -> None:
    """Measure what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="what to measure; everything if left out")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each side of a comparison is loaded")
    parser.add_argument("--connections", type=int, default=8, help="clients that wait for one answer each")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="cases that are there already")
    parser.add_argument("--kill-broker", default="redis", help="kind killed each minute: embedded, redis, rabbitmq")
    asked = parser.parse_args()
    with open_stage() as stage:
        for name in asked.sections or SECTIONS:
            SECTIONS[name](stage, asked)


if __name__ == "__main__":
    main()
