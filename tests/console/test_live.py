"""Pages follow what goes on, and an open page costs the service next to nothing."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from api.auth import BY_ITSELF, COOKIE
from api.live import Bounds, Live
from registry import changes, db, lines, runs, sessions, users
from registry.runs import Run
from tests.api.service import Service, free_port, start_api, wait_for
from tests.console.conftest import Enter
from tests.console.scene import Scene
from tests.console.test_access import session
from tests.waiting import PATIENCE_SECONDS, until


def a_run(service: Service, line: str) -> Run:
    with service.connect() as connection:
        made = runs.start_run(
            connection, line_id=lines.get_line(connection, line).line_id, requested_by=None, reason="it is watched"
        )
        connection.commit()
    return made


def mark_of(service: Service, subject: str) -> str:
    with service.connect() as connection:
        return changes.marks(connection, [subject])[subject]


class Stream:
    """An open stream, and what it has said so far."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer, self.said = answer, []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    said: list[str]

    def _read(self) -> None:
        try:
            for line in self.answer.iter_lines():
                if line.startswith((":", "event:")):
                    self.said.append(line)
        except httpx.TransportError:
            self.said.append("broken")

    def events(self, count: int) -> list[str]:
        """What it has said, once it is so much; heart beats are left out."""
        until(lambda: len(self._events()) >= count, what=f"{count} events")
        return self._events()

    def _events(self) -> list[str]:
        return [line for line in self.said if line.startswith("event:")]


@contextmanager
def stream(url: str, cookie: str, subject: str, mark: str) -> Iterator[Stream]:
    with httpx.stream(
        "GET",
        f"{url}/console/live",
        params={"of": subject, "mark": mark},
        headers={"Cookie": cookie},
        timeout=PATIENCE_SECONDS,
    ) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        try:
            yield Stream(answer)
        finally:  # to close it would wait for the thread that reads
            answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def test_a_stream_tells_of_its_own_run_and_of_nothing_else(service: Service, scene: Scene) -> None:
    run, other = a_run(service, scene.line), a_run(service, service.new_line())
    subject = f"run/{run.run_id}"
    with stream(service.url, session(service, "clara"), subject, mark_of(service, subject)) as open_one:
        with service.connect() as connection:
            runs.record_progress(connection, run_id=other.run_id, progress={"epoch": 1})
            connection.commit()
            assert open_one.events(0) == []
            time.sleep(2.5)  # it has looked twice by then
            assert open_one.events(0) == []
            runs.record_progress(connection, run_id=run.run_id, progress={"epoch": 1})
            connection.commit()
        assert open_one.events(1) == ["event: changed"]


def test_what_changed_before_the_stream_was_open_is_told_at_once(service: Service, scene: Scene) -> None:
    with stream(service.url, session(service, "rita"), f"run/{a_run(service, scene.line).run_id}", "old") as open_one:
        assert open_one.events(1) == ["event: changed"]


@pytest.mark.parametrize("how", ["signed out", "left idle", "shut out"])
def test_a_stream_ends_with_its_session(service: Service, scene: Scene, how: str) -> None:
    subject = f"run/{a_run(service, scene.line).run_id}"
    cookie = session(service, "carl")
    with stream(service.url, cookie, subject, mark_of(service, subject)) as open_one, service.connect() as connection:
        carl = users.by_name(connection, "carl")
        if how == "signed out":
            sessions.end(connection, cookie.partition("=")[2])
        elif how == "left idle":
            connection.execute("UPDATE sessions SET last_used_at = now() - interval '16 minutes'")
        else:
            connection.execute("UPDATE users SET disabled_at = now() WHERE user_id = %s", (carl.user_id,))
        connection.commit()
        assert open_one.events(1) == ["event: ended"]
        open_one.reader.join(timeout=PATIENCE_SECONDS)
        assert not open_one.reader.is_alive()
        connection.execute("UPDATE users SET disabled_at = NULL WHERE user_id = %s", (carl.user_id,))
        connection.commit()


def test_what_a_page_asks_for_by_itself_keeps_nobody_signed_in(service: Service, scene: Scene) -> None:
    cookie = session(service, "clara")
    with service.connect() as connection:
        connection.execute("UPDATE sessions SET last_used_at = now() - interval '10 minutes'")
        connection.commit()
        aged = connection.execute("SELECT max(last_used_at) FROM sessions").fetchone()
        connection.commit()
        for headers, untouched in (({BY_ITSELF: "yes"}, True), ({}, False)):
            page = httpx.get(
                f"{service.url}/console/lines/{scene.line}",
                headers={"Cookie": cookie, **headers},
                timeout=PATIENCE_SECONDS,
            )
            assert page.status_code == 200
            assert (connection.execute("SELECT max(last_used_at) FROM sessions").fetchone() == aged) is untouched
            connection.commit()


def test_many_open_pages_hold_no_connection_and_no_thread(service: Service, scene: Scene) -> None:
    """More streams than the pool has connections: pages are served all the same."""
    subject = f"run/{a_run(service, scene.line).run_id}"
    mark = mark_of(service, subject)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(stream(service.url, cookie, subject, mark))
            for cookie in (session(service, name) for name in ("rita", "anna", "ben"))
            for _ in range(12)
        ]
        refused = httpx.get(
            f"{service.url}/console/live",
            params={"of": subject},
            headers={"Cookie": session(service, "rita")},
            timeout=PATIENCE_SECONDS,
        )
        assert (refused.status_code, "retry-after" in refused.headers) == (429, True)
        with service.client("operator") as client:
            for _ in range(20):
                assert client.get("/v1/lines").status_code == 200
        with service.connect() as connection:
            runs.record_progress(connection, run_id=int(subject[4:]), progress={"epoch": 1})
            connection.commit()
        assert all(one.events(1) == ["event: changed"] for one in opened)
    cookie = {"Cookie": session(service, "rita")}

    def opens() -> bool:
        url, asked = f"{service.url}/console/live", {"of": subject}
        with httpx.stream("GET", url, params=asked, headers=cookie, timeout=120) as again:
            return again.status_code == 200

    until(opens, what="a place of the streams that are over")


def test_a_program_and_a_stranger_subject_are_refused_in_words(service: Service, scene: Scene) -> None:
    with service.client("operator") as client:
        answer = client.get("/console/live?of=run/1")
        assert (answer.status_code, "a program asks again" in answer.text) == (422, True)
    cookie = {"Cookie": session(service, "otto")}
    for subject in ("case/1", "run/", "run/one", "run/99999999999999999999", "run"):
        answer = httpx.get(f"{service.url}/console/live", params={"of": subject}, headers=cookie, timeout=120)
        assert (answer.status_code, "is no subject" in answer.text) == (422, True)


def test_silence_is_broken_by_a_sign_of_life_and_a_lost_record_ends_the_stream(service: Service) -> None:
    async def listen(*, closed: bool) -> list[bytes]:
        with db.pool(service.environment["OVERREAD_DATABASE_URL"], maximum=1, timeout_seconds=60) as pool:
            bounds = Bounds(silence_seconds=0.05, look_seconds=0.3)
            live = Live(pool, limits=sessions.Limits(), bounds=bounds)
            if closed:
                pool.close()
            answer = live.follow(user_id=1, token="of nobody", subject="run/1", mark="", headers={})
            return [bytes(part) async for part in answer.body_iterator]  # type: ignore[arg-type]

    assert asyncio.run(listen(closed=True))[-1] == b"event: later\ndata:\n\n"
    told = asyncio.run(listen(closed=False))
    assert told[0] == b": still here\n\n"
    assert told[-1] == b"event: ended\ndata:\n\n"


def test_a_process_stops_although_a_page_is_open(service: Service, staff: None, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        process = start_api(service.environment, port=port, log=file, grace_seconds=60)
        try:
            wait_for(f"{url}/health/live", process=process, log=log)
            with stream(url, session(service, "clara"), "jobs/0", mark_of(service, "jobs/0")) as open_one:
                process.send_signal(signal.SIGTERM)
                assert open_one.events(1)[-1] == "event: later"
                assert process.wait(timeout=PATIENCE_SECONDS) == 0 or process.returncode == -signal.SIGTERM
        finally:
            process.kill()
    assert "graceful shutdown exceeded" not in log.read_text()


def test_the_worklist_counts_down_as_others_answer(service: Service, scene: Scene, enter: Enter) -> None:
    page = enter("clara", f"/console/lines/{scene.line}/worklist")
    waiting = page.get_by_role("status")
    expect(waiting).to_have_text("24 cases wait to be read.")
    for case_id in scene.worklist[:2]:
        with service.client("carl") as client:
            form = {"finding": "normal", "evidence": "single_read", "key": f"of carl {case_id}"}
            assert client.post(f"/console/cases/{case_id}/answer", data=form).status_code == 303
    expect(waiting).to_have_text("22 cases wait to be read.")


def test_a_page_whose_session_ends_leads_to_sign_in_or_keeps_what_was_typed(
    service: Service, scene: Scene, enter: Enter
) -> None:
    page, other = (enter("rita", f"/console/lines/{scene.line}") for _ in range(2))
    other.get_by_text("Ask for a run now").click()
    other.get_by_label("Why").fill("not to be lost")
    with service.connect() as connection:
        sessions.end_all(connection, user_id=users.by_name(connection, "rita").user_id)
        connection.commit()
    page.wait_for_url("**/console/sign-in?back=*")
    expect(other.get_by_role("alert")).to_contain_text("You are signed out")
    expect(other.get_by_label("Why")).to_have_value("not to be lost")


def test_without_streams_a_page_is_loaded_again_and_says_the_same(service: Service, scene: Scene, enter: Enter) -> None:
    run = a_run(service, scene.line)
    page = enter("rita", f"/console/runs/{run.run_id}", java_script_enabled=False)
    with service.connect() as connection:
        runs.refuse(connection, run_id=run.run_id, outcome="nothing new was confirmed")
        connection.commit()
    expect(page.get_by_role("status")).to_contain_text("freezing its dataset")
    page.reload()
    expect(page.get_by_role("status")).to_contain_text("nothing new was confirmed")
    assert COOKIE in {cookie["name"] for cookie in page.context.cookies()}
