"""A real Chromium, headless, before a real service. Where there is no Chromium these tests are skipped, and say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from registry import passwords, sign_in_links, users
from tests.api.conftest import database_url, environment, line, service, submitter
from tests.api.service import PASSWORD, Service
from tests.console.scene import PEOPLE, Scene, make_scene
from tests.waiting import PATIENCE_SECONDS

__all__ = ["database_url", "environment", "line", "service", "submitter"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium as Debian ships it.

    For one file at a time: while Playwright is there, this thread is inside an event loop, and others need one.
    """
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM: the console is not tested in a browser; install it with `make servers`")
    with sync_playwright() as playwright:
        # Root may not use the sandbox; what it shows is our own.
        expect.set_options(timeout=PATIENCE_SECONDS * 1000)
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def staff(service: Service) -> None:
    """The people of the console, each with a password."""
    with service.connect() as connection:
        for name, (printed_name, roles) in PEOPLE.items():
            user = users.create_user(connection, name=name, printed_name=printed_name, roles=roles)
            passwords.set_password(connection, user=user, password=PASSWORD)
            service.keys[name] = users.create_api_key(connection, user_id=user.user_id)
        connection.commit()


@pytest.fixture
def scene(service: Service, staff: None) -> Scene:
    """A line with a champion, cases to read, readers who differ, and a candidate that waits for people."""
    return make_scene(service)


Enter = Callable[..., Page]


@pytest.fixture
def enter(browser: Browser, service: Service, staff: None) -> Iterator[Enter]:
    """Open a page as somebody who came by a link; an error on it, or a violation of its policy, fails the test."""
    opened: list[BrowserContext] = []
    wrong: list[str] = []

    def open_as(name: str | None, path: str = "/console", **options: object) -> Page:
        context = browser.new_context(base_url=service.url, **options)  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        opened.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
        if name is not None:
            with service.connect() as connection:
                token = sign_in_links.make(connection, user=users.by_name(connection, name), seconds=600)
                connection.commit()
            page.goto(f"/console/link/{token}")
            page.get_by_role("button", name="Sign in as").click()
            page.wait_for_url("**/console")
        if path != "/console" or name is None:
            page.goto(path)
        return page

    yield open_as
    for context in opened:
        context.close()
    assert wrong == []


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where a test may leave screenshots to look at."""
    folder = Path(os.environ.get("CONSOLE_PICTURES", tmp_path))
    folder.mkdir(exist_ok=True)
    return folder
