"""`overread user …` and `overread key …`: who may use the service. Talks to the record directly, as its operator.

Whoever can open the database may do this; no API key is asked, because the first one has to come from somewhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.errors import NotRunning, Refused
from api.cli.home import home_at, read_stack_file
from api.cli.options import HomeOption, JsonFlag, PasswordStdinFlag
from api.cli.secrets import new_password

if TYPE_CHECKING:
    from psycopg import Connection

users = typer.Typer(no_args_is_help=True, help="Make, list and shut out the people and systems that use the service.")
keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

ROLES = "submitter, reviewer, approver, operator, auditor"


@users.command("create")
def create_user(
    *,
    name: Annotated[str, typer.Argument(help="Short and plain, e.g. anna or pacs-north")],
    printed_name: Annotated[str, typer.Option(help="As it should stand under a signature, e.g. 'Dr Anna Approver'")],
    role: Annotated[list[str], typer.Option(help=f"May be given more than once: {ROLES}")],
    password_prompt: Annotated[
        bool, typer.Option("--password-prompt", help="Ask for a password; people who sign need one")
    ] = False,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a user. A person who signs needs the role approver and a password.

    Example: overread user create anna --printed-name "Dr Anna Approver" --role approver --password-prompt
    """
    from api.cli.output import answer, say  # noqa: PLC0415
    from registry import passwords  # noqa: PLC0415
    from registry import users as record  # noqa: PLC0415

    password = new_password(name, stdin=False) if password_prompt else None
    with _record(home) as connection:
        user = record.create_user(connection, name=name, printed_name=printed_name, roles=tuple(role))
        if password is not None:
            passwords.set_password(connection, user=user, password=password)
    answer(_public(user), as_json=as_json)
    if "approver" in user.roles and password is None:
        say(f"! {name} cannot sign without a password: overread user password {name}")
    say(f"Next: overread key create {name}")


@users.command("password")
def set_password(
    name: Annotated[str, typer.Argument(help="Name of the user")],
    password_stdin: PasswordStdinFlag = False,
    home: HomeOption = None,
) -> None:
    """Set a user's password, asked for twice. Whoever was signed in with the former one is signed out.

    Example: overread user password anna
    """
    from api.cli.output import say  # noqa: PLC0415
    from registry import passwords  # noqa: PLC0415
    from registry import users as record  # noqa: PLC0415

    password = new_password(name, stdin=password_stdin)
    with _record(home) as connection:
        passwords.set_password(connection, user=record.by_name(connection, name), password=password)
    say(f"✓ {name} has a new password")


@users.command("link")
def make_link(
    name: Annotated[str, typer.Argument(help="Name of the user")],
    home: HomeOption = None,
) -> None:
    """Print a link that signs a person in at the console, once, within a quarter of an hour.

    Only for a service whose database runs in the home folder. To sign a candidate a password is needed all the same.

    Example: overread user link anna
    """
    import sys  # noqa: PLC0415

    from api.cli import links  # noqa: PLC0415

    places = home_at(home)
    stack = read_stack_file(places)
    url = links.embedded(stack.database_url if stack else None, home=places.root)
    assert stack is not None
    with _refusals():
        sys.stdout.write(f"{links.make_link(database_url=url, api_url=stack.api_url, name=name)}\n")


@users.command("list")
def list_users(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """List the users and their roles.

    Example: overread user list
    """
    from api.cli.output import answer  # noqa: PLC0415
    from registry import users as record  # noqa: PLC0415

    with _record(home) as connection:
        rows = [_public(user) for user in record.list_users(connection)]
    columns = ("user_id", "name", "printed_name", "roles")
    answer(rows, as_json=as_json, columns=columns, empty="No users yet: overread user create --help")


@users.command("disable")
def disable_user(
    name: Annotated[str, typer.Argument(help="Name of the user")],
    home: HomeOption = None,
) -> None:
    """Shut a user out at once, with every key they hold. What they did stays in the record.

    Example: overread user disable anna
    """
    from api.cli.output import say  # noqa: PLC0415
    from registry import users as record  # noqa: PLC0415

    with _record(home) as connection:
        record.disable_user(connection, user_id=record.by_name(connection, name).user_id)
    say(f"✓ {name} is shut out")


@keys.command("create")
def create_key(
    user: Annotated[str, typer.Argument(help="Name of the user")], home: HomeOption = None, as_json: JsonFlag = False
) -> None:
    """Make an API key and print it, once: the record keeps only its hash.

    Example: export OVERREAD_API_KEY=$(overread key create anna)
    """
    import sys  # noqa: PLC0415

    from api.cli.output import answer, say  # noqa: PLC0415
    from registry import users as record  # noqa: PLC0415

    with _record(home) as connection:
        key = record.create_api_key(connection, user_id=record.by_name(connection, user).user_id)
    if as_json:
        answer({"user": user, "key": key}, as_json=True)
    else:
        sys.stdout.write(f"{key}\n")
    say("This key is shown once; keep it like a password.")


@keys.command("list")
def list_keys(
    user: Annotated[str, typer.Argument(help="Name of the user")], home: HomeOption = None, as_json: JsonFlag = False
) -> None:
    """List a user's keys by id, never the secrets.

    Example: overread key list anna
    """
    from api.cli.output import answer  # noqa: PLC0415
    from registry import users as record  # noqa: PLC0415

    with _record(home) as connection:
        rows = record.list_api_keys(connection, user_id=record.by_name(connection, user).user_id)
    shown = [{name: getattr(row, name) for name in ("api_key_id", "created_at", "revoked_at")} for row in rows]
    answer(shown, as_json=as_json, columns=("api_key_id", "created_at", "revoked_at"), empty="No keys.")


@keys.command("revoke")
def revoke_key(
    api_key_id: Annotated[
        str, typer.Argument(metavar="KEY_ID", help="As `overread key list` shows it, or the key itself")
    ],
    home: HomeOption = None,
) -> None:
    """Revoke a key at once.

    Example: overread key revoke 3kx9...
    """
    from api.cli.output import say  # noqa: PLC0415
    from registry import users as record  # noqa: PLC0415

    key_id = api_key_id.split("_")[1] if api_key_id.startswith("ovr_") else api_key_id
    with _record(home) as connection:
        record.revoke_api_key(connection, api_key_id=key_id)
    say(f"✓ key {key_id} is revoked")


def record_url(home: str | None) -> str:
    """Name the record's database: the setting, else the embedded one that runs in the home folder.

    Raises:
        NotRunning: neither is there.
    """
    stack = read_stack_file(home_at(home))
    url = os.environ.get("OVERREAD_DATABASE_URL") or (stack.database_url if stack else None)
    if not url:
        raise NotRunning(
            f"no service runs in {home_at(home).root}",
            fix="start it with `overread up` (in another terminal, or --detach), or set OVERREAD_DATABASE_URL",
        )
    return url


@contextlib.contextmanager
def _record(home: str | None) -> Iterator[Connection[Any]]:
    from registry import db  # noqa: PLC0415

    with _refusals(), db.connect(record_url(home)) as connection:
        yield connection


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    import psycopg  # noqa: PLC0415

    from registry.errors import RegistryError  # noqa: PLC0415

    try:
        yield
    except RegistryError as error:
        raise Refused(str(error) or (type(error).__doc__ or "").strip()) from error
    except psycopg.OperationalError as error:
        raise NotRunning(
            f"the database does not answer: {str(error).strip().splitlines()[-1]}", fix="see `overread doctor`"
        ) from error


def _public(user: Any) -> dict[str, Any]:
    return {name: getattr(user, name) for name in ("user_id", "name", "printed_name", "roles")}
