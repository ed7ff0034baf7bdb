"""What must hold of a database before the service goes on: it loses nothing, and nobody in here can rewrite history.

Three locks stand before the history: triggers refuse every change (even as a replica, even TRUNCATE), the service signs
in as somebody who owns nothing and so cannot drop them, nor erase a patient, and the chain of audit events shows what
was done all the same.
"""

from __future__ import annotations

from registry.db import Connection, fetch_value
from registry.errors import NotDurable, NotGuarded

APPEND_ONLY = (
    *("amendments", "amendment_approvals"),
    *("approvals", "audit_events", "comments", "confirmations", "dataset_versions", "erasure_effects", "erasures"),
    *("gate_reports", "predictions", "protocols", "reads", "rejections", "sealed_test_uses", "watches"),
)
"""The tables that tell what happened."""


def assert_durable(conn: Connection) -> None:
    """Refuse a server that may lose what it acknowledged. Raises NotDurable naming the setting to change."""
    for setting, safe in (
        ("fsync", ("on",)),
        ("full_page_writes", ("on",)),
        ("synchronous_commit", ("on", "local", "remote_write", "remote_apply")),
    ):
        value = fetch_value(conn, "SELECT current_setting(%s)", (setting,))
        if value not in safe:
            raise NotDurable(
                f"PostgreSQL runs with {setting} = {value}: a crash could lose acknowledged diagnoses. "
                f"Set {setting} = on in postgresql.conf and reload.",
                setting=setting,
            )


def assert_append_only(conn: Connection) -> None:
    """Refuse a record whose history can be rewritten. Raises NotGuarded naming the tables that lack a trigger."""
    rows = conn.execute(
        "SELECT relname::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid"
        " WHERE tgfoid = to_regproc('refuse_change') AND tgenabled = 'A' AND relnamespace = 'public'::regnamespace"
        " GROUP BY relname HAVING bit_or(tgtype) & 56 = 56"  # DELETE 8, UPDATE 16, TRUNCATE 32
    ).fetchall()
    if open_tables := sorted(set(APPEND_ONLY) - {row[0] for row in rows}):
        raise NotGuarded(
            f"the history can be rewritten: {', '.join(open_tables)} lost a trigger. Compare the record with a backup "
            "(`overread verify`), then restore the triggers (registry/schema.sql).",
            tables=open_tables,
        )


def assert_not_owner(conn: Connection) -> None:
    """Refuse a login that could take the triggers away, or erase. Raises NotGuarded."""
    name, holds = conn.execute(
        "SELECT current_user, rolsuper OR EXISTS (SELECT FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'public'::regnamespace AND pg_has_role(relowner, 'MEMBER'))"
        " FROM pg_roles WHERE rolname = current_user"
    ).fetchone() or ("nobody", True)
    if holds:
        raise NotGuarded(
            f"the service signs in as {name}, who owns the record and could rewrite it. Give OVERREAD_DATABASE_URL a "
            "login of its own (CREATE ROLE overread_service LOGIN PASSWORD '...' IN ROLE overread_app) and keep the "
            "owner's in OVERREAD_OWNER_DATABASE_URL, for migrations and erasures only.",
            login=name,
        )
    if fetch_value(conn, "SELECT has_function_privilege(to_regproc('erase_patient'), 'EXECUTE')"):
        raise NotGuarded(
            f"the service signs in as {name}, who may erase patients. As the owner: "
            f"REVOKE EXECUTE ON FUNCTION erase_patient FROM {name}, overread_app, PUBLIC;",
            login=name,
        )
