"""Passwords on the command line: from a terminal or standard input, never from an argument."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from registry import db, passwords, users
from tests import factories
from tests.cli.test_commands import overread

ROOT = Path(__file__).parents[2]
WORDS = "four words do well"


@pytest.fixture
def anna(fresh_database: str) -> str:
    """The URL of a record in which anna is an approver."""
    with db.connect(fresh_database) as connection:
        factories.user(connection, "approver", name="anna")
    return fresh_database


def fits(url: str, name: str, password: str) -> bool:
    with db.connect(url) as connection:
        return passwords.matches(passwords.credential_of(connection, name), password)


def with_input(text: str, *arguments: str, url: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with something on its standard input, which is no terminal."""
    environment = os.environ | {"OVERREAD_DATABASE_URL": url, "OVERREAD_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "api.cli", *arguments]
    return subprocess.run(
        command, input=text, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_a_password_comes_from_standard_input(anna: str, tmp_path: Path) -> None:
    done = with_input(f"{WORDS}\n", "user", "password", "anna", "--password-stdin", url=anna, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert fits(anna, "anna", WORDS)
    assert WORDS not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("too short\n", ("password", "anna", "--password-stdin"), "12 to 200 characters"),
        ("", ("password", "anna", "--password-stdin"), "no password was given"),
        (WORDS, ("password", "anna"), "--password-stdin"),
        (WORDS, ("password", "nobody", "--password-stdin"), "no user 'nobody'"),
        (WORDS, ("password", "anna", WORDS), "unexpected extra argument"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_changed(
    anna: str, tmp_path: Path, text: str, arguments: tuple[str, ...], says: str
) -> None:
    done = with_input(text, "user", *arguments, url=anna, home=tmp_path)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not fits(anna, "anna", WORDS)


def test_at_a_terminal_it_is_asked_for_twice_and_not_shown(fresh_database: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = ["user", "create", "ben", "--printed-name", "Dr Ben", "--role", "approver", "--password-prompt"]
    environment = os.environ | {"OVERREAD_DATABASE_URL": fresh_database, "OVERREAD_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "api.cli", *arguments],
        cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    for prompt in (b"New password of ben: ", b"Once more: "):
        while prompt not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, f"{WORDS}\n".encode())
    try:
        while chunk := os.read(ours, 1000):
            shown += chunk
    except OSError:  # Linux says so when the last writer has gone
        pass
    os.close(ours)
    assert process.wait(timeout=300) == 0, shown
    assert WORDS.encode() not in shown
    assert fits(fresh_database, "ben", WORDS)


def test_an_approver_without_a_password_is_pointed_to_it(fresh_database: str, tmp_path: Path) -> None:
    made = overread(
        *("user", "create", "carl", "--printed-name", "Dr Carl", "--role", "approver"),
        home=tmp_path, OVERREAD_DATABASE_URL=fresh_database,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "overread user password carl" in made.stderr
    with db.connect(fresh_database) as connection:
        assert users.by_name(connection, "carl").roles == ("approver",)


def test_no_link_is_made_where_the_record_is_elsewhere(anna: str, tmp_path: Path) -> None:
    done = with_input("", "user", "link", "anna", url=anna, home=tmp_path)
    assert done.returncode != 0
    assert "no links are made for it" in done.stderr
    assert "/console/link/" not in done.stdout
    with db.connect(anna) as connection:
        assert connection.execute("SELECT count(*) FROM sign_in_links").fetchone() == (0,)
