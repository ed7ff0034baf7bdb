"""What a page of the console costs the server in a record of a hundred thousand cases, and how soon it is painted.

    nice -n 10 python -m benchmarks.console [--cases 100000] [--times 200]

A PostgreSQL of its own, fsync on, and the API as `overread up` serves it; one request at a time over loopback, its
answer read whole. Nine cases in ten are confirmed and audited, one in ten is on the worklist; the last 2,000
confirmations came after the newest dataset version. First paint is Chromium's own (first contentful paint), if there is
one: the first load of a new browser, and forty after it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import LiteralString

import httpx
import numpy as np

from api.auth import COOKIE
from benchmarks.stage import LINE, Process, Record, open_stage
from pipelines import images, synthetic
from registry import blobs, db, lines, passwords, users, worklists
from tests import factories

PASSWORD = "four words do well"  # noqa: S105 - of a record that is gone when this ends
ROLES = ("submitter", "reviewer", "operator", "auditor")
NEWS = 2000

_UNREAD: LiteralString = """INSERT INTO cases (line_id, image_digest, site, submitted_by)
    SELECT line_id, %(digest)s, 'site-' || n %% 20, user_id
    FROM lines, users, generate_series(1, %(unread)s::integer) n WHERE users.name = 'bench'"""
_MINE: LiteralString = """INSERT INTO confirmations
    (case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at, submitted_by)
    SELECT case_id, line_id, CASE WHEN case_id % 50 = 0 THEN 'pneumonia' ELSE 'normal' END, 'single_read', 'blind',
    'clara', now(), (SELECT user_id FROM users WHERE name = 'clara')
    FROM cases WHERE external_id IS NOT NULL AND case_id % 20 = 0"""


def furnish(record: Record, folder: Path, *, unread: int) -> tuple[str, int]:
    """Add a reader with answers, discordances, a champion, a candidate, a worklist; return a case and a candidate."""
    with db.connect(record.url) as connection:
        line = lines.get_line(connection, LINE)
        clara = users.create_user(connection, name="clara", printed_name="Dr Clara", roles=ROLES)
        passwords.set_password(connection, user=clara, password=PASSWORD)
        pictures, _ = synthetic.radiographs(1, rng=np.random.default_rng(0), size=1024)
        pixels = images.npy_bytes(pictures[0].astype(np.uint16) * 16)
        digest = blobs.put(connection, folder / "blobs", pixels, media_type="application/x-npy")
        connection.execute(_UNREAD, {"digest": digest, "unread": unread})
        connection.execute(_MINE)
        last = connection.execute("SELECT max(confirmation_id) FROM confirmations").fetchone()
        assert last is not None
        factories.champion(connection, line)
        factories.dataset_version(connection, line, up_to=last[0] - NEWS)
        made = factories.gated_candidate(connection, line)
        pool = worklists.pool(connection, line=line, candidate_id=None, limit=unread)
        last_case_id, last_confirmation_id = worklists.reach(connection, line.line_id)
        worklists.replace(
            connection, line_id=line.line_id, candidate_id=None, left_out=0, last_case_id=last_case_id,
            protocol_id=lines.current_protocol(connection, line.line_id).protocol_id, shares={"random": 1.0},
            last_confirmation_id=last_confirmation_id, case_ids=[case.case_id for case in pool],
            arms=["random"] * len(pool), reasons=["random, so that the rest can be trusted"] * len(pool),
        )  # fmt: skip
        connection.commit()
    return str(pool[0].case_id), made.candidate_id


def pages(client: httpx.Client, case_id: str, candidate_id: int) -> Iterator[tuple[str, Callable[[], httpx.Response]]]:
    """Each page by a name, and how to ask for it."""
    at = f"/console/lines/{LINE}"
    with_query = {
        "start": "/console",
        "worklist": f"{at}/worklist",
        "worklist, one site": f"{at}/worklist?site=site-3",
        "next case": f"{at}/worklist/next?place=40",
        "case": f"/console/cases/{case_id}",
        "image, 1024 × 1024 of 16 bits": f"/console/cases/{case_id}/image.png",
        "discordances": f"{at}/discordances",
        "my answers": "/console/mine",
        "line": at,
        "candidate": f"/console/candidates/{candidate_id}",
        "champions": f"{at}/champions",
        "datasets": f"{at}/datasets",
        "operations": "/console/operations",
        "audit trail": "/console/audit",
        "audit trail, one action": "/console/audit?action=promotion:",
        "who looked at what": "/console/reads",
    }
    for name, path in with_query.items():
        yield name, lambda path=path: client.get(path)  # type: ignore[misc]


def answering(client: httpx.Client) -> tuple[str, Callable[[], httpx.Response]]:
    """Answer one case after the other, as the form on the page does."""
    place = 100

    def answer() -> httpx.Response:
        nonlocal place
        found = client.get(f"/console/lines/{LINE}/worklist/next?place={place}").headers["location"]
        place += 1
        path, _, query = found.partition("?")
        begun = time.perf_counter()
        done = client.post(
            f"{path}/answer?{query}", data={"finding": "normal", "evidence": "single_read", "key": f"k-{place}"}
        )
        done.extensions["seconds"] = time.perf_counter() - begun
        return done

    return "answer a case (committed)", answer


def measure(ask: Callable[[], httpx.Response], *, times: int) -> tuple[list[float], int]:
    """Seconds of each of so many requests, sorted, and the bytes of an answer."""
    seconds, size = [], 0
    for number in range(times + 5):
        begun = time.perf_counter()
        answer = ask()
        took = answer.extensions.get("seconds", time.perf_counter() - begun)
        if answer.status_code not in {200, 303}:
            raise SystemExit(f"{answer.request.url} answered {answer.status_code}:\n{answer.text[:2000]}")
        if number >= 5:  # the first ones compile the template
            seconds.append(took)
        size = len(answer.content)
    return sorted(seconds), size


def tell(name: str, ask: Callable[[], httpx.Response], *, api: Process, times: int) -> None:
    """Print the row of a page; the CPU is the API's own, whatever else the machine does."""
    before = api.cpu_seconds()
    seconds, size = measure(ask, times=times)
    cpu = (api.cpu_seconds() - before) / (times + 5) * 1000
    median, p95 = statistics.median(seconds) * 1000, seconds[int(len(seconds) * 0.95)] * 1000
    print(f"| {name} | {median:.1f} | {p95:.1f} | {cpu:.1f} | {size / 1000:.0f} |", flush=True)


def first_paint(url: str, cookie: str, path: str, *, times: int = 41) -> list[float]:
    """Milliseconds to Chromium's first contentful paint, in order; nothing without a Chromium.

    The first is of a browser that was just started: it has no style and no script yet.
    """
    program = shutil.which("chromium")
    if program is None:
        return []
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where there is a browser

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(base_url=url)
        value = cookie.partition("=")[2]
        context.add_cookies([{"name": COOKIE, "value": value, "url": url.replace("http:", "https:"), "secure": True}])
        page, found = context.new_page(), []
        for _ in range(times):
            page.goto(path, wait_until="networkidle")
            script = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
            found.append(float(page.evaluate(script)))
        browser.close()
    return found


def main(arguments: list[str]) -> int:
    """Fill a record, serve it and measure."""
    parser = argparse.ArgumentParser(description="the console in a record of a hundred thousand cases")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=200)
    options = parser.parse_args(arguments)
    with open_stage() as made:
        unread = options.cases // 10
        record = made.record("console", cases=options.cases - unread)
        environment = made.environment(record)
        case_id, candidate_id = furnish(record, Path(environment["OVERREAD_HOME"]), unread=unread)
        with made.admin("console") as connection:
            connection.execute("VACUUM ANALYZE")
        with made.api(record, environment=environment) as api:
            url = f"http://127.0.0.1:{api.port}"
            entered = httpx.post(f"{url}/console/sign-in", data={"name": "clara", "password": PASSWORD})
            cookie = re.match(rf"{COOKIE}=[^;]+", entered.headers["set-cookie"])
            assert cookie is not None
            with httpx.Client(base_url=url, headers={"Cookie": cookie[0]}, timeout=60) as client:
                print(f"{options.cases:,} cases, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
                print("| page | median ms | p95 ms | API CPU ms | kB |\n|---|---|---|---|---|")
                for name, ask in (*pages(client, case_id, candidate_id), answering(client)):
                    tell(name, ask, api=api, times=options.times)
            for path in ("/console", f"/console/lines/{LINE}/worklist", f"/console/cases/{case_id}"):
                if found := first_paint(url, cookie[0], path):
                    paints = sorted(found[1:])
                    print(
                        f"first paint of {path}: median {statistics.median(paints):.0f} ms,"
                        f" p95 {paints[int(len(paints) * 0.95)]:.0f} ms, in a new browser {found[0]:.0f} ms,"
                        f" load average {os.getloadavg()[0]:.1f}"
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
