"""What a signature is, on a candidate or on an amendment: a decision with a reason, by an approver who may give it.

One question is asked by whoever signs, by a page that says why its button is blocked, and to find those who could still
be asked: `check_signable` of `registry.approvals` and of `registry.amendments`, which raise what stands against it.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

from registry import users
from registry.db import Connection
from registry.errors import Invalid, RegistryError
from registry.users import User

Decision = Literal["approve", "reject"]


class Check(Protocol):
    """Raises the refusal that somebody would meet who signed now."""

    def __call__(self, *, approver: User) -> object:
        """Check one person."""


def check_given(*, approver: User, decision: str, reason: str) -> Decision:
    """Return the decision that somebody gives with a reason. Raises Forbidden, Invalid."""
    approver.require("approver")
    if decision not in get_args(Decision):
        raise Invalid("a decision is approve or reject")
    if not reason.strip():
        raise Invalid("a signature needs a reason")
    return "approve" if decision == "approve" else "reject"


def why_not(check: Check, person: User) -> str | None:
    """Say why somebody cannot sign now, None where they can."""
    try:
        check(approver=person)
    except RegistryError as refused:
        return str(refused)
    return None


def why_not_asked(conn: Connection, check: Check, person: User) -> str | None:
    """Say why it is no use to ask somebody to sign, None where it is."""
    if not users.has_password(conn, person.user_id):
        return "they have no password to sign with"
    return why_not(check, person)


def who_may(conn: Connection, check: Check) -> list[User]:
    """Return the people who can sign now and are still among us, by printed name."""
    people = [person for person in users.list_users(conn) if "approver" in person.roles and person.disabled_at is None]
    open_to = [person for person in people if why_not_asked(conn, check, person) is None]
    return sorted(open_to, key=lambda person: person.printed_name)
