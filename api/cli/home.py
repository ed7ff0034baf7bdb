"""The home folder of one service on this machine: its paths, its secrets, its stack file, its lock.

Invariants: secrets are made once and only their owner can read them; the stack file is replaced whole, never
half-written; at most one supervisor holds the lock of a home, and the lock dies with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from api.cli.errors import CliError, SetupError

FOLDERS = ("blobs", "data-repository", "dvc-remote", "jobs", "checkouts", "checkpoints", "logs", "mlflow-artifacts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where one service keeps everything; every path is below `root`."""

    root: Path

    @property
    def secrets_file(self) -> Path:
        return self.root / "secrets.json"

    @property
    def stack_file(self) -> Path:
        return self.root / "stack.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "stack.lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """What the stack file says about one process; `created` guards against a reused pid."""

    state: str
    pid: int | None = None
    created: float | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StackFile:
    """What a running service tells other commands: who supervises it, where it answers, what runs."""

    pid: int
    created: float
    state: str  # starting | ready | stopping
    started_at: str
    api_url: str
    inference_url: str
    mlflow_url: str
    database_url: str | None  # only the embedded one, which has no password
    broker_url: str | None  # the same
    processes: Mapping[str, ProcessRecord] = field(default_factory=dict)


def home_at(path: Path | str | None = None) -> Home:
    """Name the home folder: the argument, else `OVERREAD_HOME`, else `~/.overread`."""
    chosen = path or os.environ.get("OVERREAD_HOME") or "~/.overread"
    return Home(root=Path(chosen).expanduser().resolve())


def prepare(home: Home) -> None:
    """Make the home folder and its sub-folders.

    Raises:
        SetupError: the folder cannot be made or written.
    """
    try:
        # Root hands the database to another user, who must be able to pass through, not to look.
        home.root.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
        for name in FOLDERS:
            (home.root / name).mkdir(exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"the home folder {home.root} cannot be used: {error.strerror}",
            fix="choose another with --home or OVERREAD_HOME, or make it writable",
        ) from error


def keep_secrets(home: Home) -> dict[str, str]:
    """Return the settings that are secret, making them the first time.

    Raises:
        SetupError: the file is there but is no JSON object of the two secrets.
    """
    try:
        descriptor = os.open(home.secrets_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_secrets(home)
    made = {"OVERREAD_INFERENCE_TOKEN": secrets.token_hex(32), "OVERREAD_PATIENT_KEY": secrets.token_hex(32)}
    with os.fdopen(descriptor, "w") as file:
        json.dump(made, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    return made


def read_secrets(home: Home) -> dict[str, str]:
    """Read the secrets of this home; an absent file is an empty answer."""
    try:
        kept = json.loads(home.secrets_file.read_text())
        return {name: str(kept[name]) for name in ("OVERREAD_INFERENCE_TOKEN", "OVERREAD_PATIENT_KEY")}
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SetupError(
            f"{home.secrets_file} cannot be read as secrets",
            fix="restore it from a backup: without its patient key, new cases no longer join their earlier patients",
        ) from error


def write_stack_file(home: Home, *, stack: StackFile) -> None:
    """Replace the stack file in one step."""
    temporary = home.stack_file.with_suffix(".json.new")
    temporary.write_text(json.dumps(asdict(stack), indent=2))
    temporary.chmod(0o600)
    temporary.replace(home.stack_file)


def read_stack_file(home: Home) -> StackFile | None:
    """Read what the last supervisor wrote; None when there is nothing readable."""
    try:
        document = json.loads(home.stack_file.read_text())
        processes = {name: ProcessRecord(**record) for name, record in document.pop("processes").items()}
        return StackFile(**document, processes=processes)
    except (FileNotFoundError, json.JSONDecodeError, TypeError, KeyError):
        return None


@contextlib.contextmanager
def held(home: Home) -> Iterator[None]:
    """Hold this home for one supervisor; the operating system frees it when the holder dies.

    Raises:
        SetupError: another supervisor holds it; the message names its pid.
    """
    with home.lock_file.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise AlreadyUp(
                f"Overread is already up in {home.root} (pid {pid})",
                fix="look at it with `overread status`, stop it with `overread down`, or give another --home",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class AlreadyUp(CliError):
    """Another supervisor holds this home."""
