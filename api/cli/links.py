"""Links that sign a person in at the console, once: for a service that runs whole on this machine, and for nobody else.

Whoever may read the home folder holds the database that runs in it, and could let themselves in anyhow. Where the
record is elsewhere no link is made: people there have passwords.
"""

from __future__ import annotations

from collections.abc import Iterator

from api.cli.doors import PEOPLE
from api.cli.errors import SetupError
from api.cli.home import Home, read_stack_file
from registry import db, sign_in_links, users

LINK_SECONDS = 15 * 60
DEMO_PEOPLE = "demo-people.json"


def make_link(*, database_url: str, api_url: str, name: str) -> str:
    """Make a link for a user, to be opened within a quarter of an hour. Raises NotFound for an unknown name."""
    with db.connect(database_url) as connection:
        token = sign_in_links.make(connection, user=users.by_name(connection, name), seconds=LINK_SECONDS)
    return f"{api_url}/console/link/{token}"


def embedded(database_url: str | None, *, home: object) -> str:
    """Return the URL of the database that runs in a home folder. Raises SetupError where there is none."""
    if not database_url:
        raise SetupError(
            f"{home} holds no database of its own that runs, so no links are made for it",
            fix="sign in with a password: `overread user password NAME`",
        )
    return database_url


def demo_links(home: Home) -> Iterator[str]:
    """Lines that tell each person of a demo where to come in; none where this is no demo."""
    stack = read_stack_file(home)
    if stack is None or not stack.database_url or not (home.root / DEMO_PEOPLE).exists():
        return
    yield f"Sign in at the console; each link works once, for {LINK_SECONDS // 60} minutes:"
    for name, printed_name, roles in PEOPLE:
        if not name.startswith("pacs-"):
            link = make_link(database_url=stack.database_url, api_url=stack.api_url, name=name)
            yield f"  {printed_name} ({', '.join(roles)})\n    {link}"
