"""How a page is made: the templates, what each of them may use, and the headers that a page carries.

A page loads nothing but what this process serves, runs no script that is written into it, and is kept by no cache. What
a person's roles do not allow, `me.may` keeps from being shown; that it is refused all the same is the route's doing.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from api.console import words
from registry import changes
from registry.db import Connection
from registry.users import User

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # Under `no-referrer` a browser says of its own forms that they come from nowhere.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whoever looks at a page, as its template sees them."""

    user: User

    def may(self, *roles: str) -> bool:
        """Say whether this person has one of these roles."""
        return bool(set(roles) & set(self.user.roles))


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A part of a page that is asked for again, from `address`, when what it shows of `subject` has changed."""

    subject: str
    mark: str
    address: str


def live(connection: Connection, subject: str, *, address: str) -> Live:
    """Mark what a part of a page is about to show; before it is read, so that no change falls between."""
    return Live(subject=subject, mark=changes.marks(connection, [subject]).get(subject, ""), address=address)


def page(
    request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """Fill a template; it knows `me` (None where nobody signed in), `path` and `values`, and no other name.

    A page that shows a form again has the refusal's problem document in `refused`, and its status.
    """
    caller = getattr(request.state, "caller", None)
    text = (
        environment()
        .get_template(template)
        .render(
            me=Person(user=caller.user) if caller is not None else None,
            signed_in=caller is not None and caller.signed_in_seconds is not None,
            path=request.url.path,
            **values,
        )
    )
    if refused := values.get("refused"):
        status = refused["status"]
    return HTMLResponse(text, status_code=status, headers={**HEADERS, **(headers or {})})


@cache
def environment() -> Environment:
    """The templates, compiled once: everything is escaped, and a name that is missing is an error."""
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "time": _time,
        "estimate": words.estimate,
        "percent": words.percent,
        "plain": words.plain,
        "yaml": _yaml,
    }
    made.globals |= {
        "static": static_url,
        "new_key": lambda: secrets.token_urlsafe(18),
        "words": words,
    }
    return made


@cache
def static_files() -> dict[str, tuple[bytes, str]]:
    """Every file that pages load, by name: its bytes and a part of its digest."""
    read = ((path.name, path.read_bytes()) for path in sorted(STATIC.iterdir()) if path.is_file())
    return {name: (data, hashlib.sha256(data).hexdigest()[:16]) for name, data in read}


def static_url(name: str) -> str:
    """Where a file is; the address changes with what is in it, so that it may be kept for ever."""
    return f"/console/static/{name}?v={static_files()[name][1]}"


def _time(moment: datetime | None) -> Markup:
    """A time in UTC; a script puts it into the reader's own zone and leaves this to be read by pointing at it."""
    if moment is None:
        return Markup("–")
    utc = moment.astimezone(UTC)
    shown = f"{utc.day} {utc:%b %Y, %H:%M} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(utc.isoformat(), shown, escape(shown))


def _yaml(document: Mapping[str, Any]) -> str:
    """A protocol as people write it."""
    return yaml.safe_dump(dict(document), allow_unicode=True, width=100)
