"""The data repository: git for what is small, DVC for what is large, a tag for each dataset version.

It is the service's own repository on a volume of its own, never this code's. Invariants: one writer at a time (a lock
that a dying writer's children keep until they are gone); data reaches the remote before the commit, and the commit
comes before the tag, so that a tag means a whole version; whatever a killed writer left is swept by the next one.

Reference: DVC 3 (`dvc add`, `dvc push`, `dvc get --rev`). DVC runs in a process of its own, for it changes directory
and configures logging; one process carries out several commands, for its start takes a second.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

LOCK_WAIT_SECONDS = 900.0
TRACKED_LARGE = ("cases", "shards")
"""What DVC keeps of a version; the rest of a line's directory is in git."""
ERASED = "erased.json"
"""Names the commits that lost their files to an erasure."""

_DVC = """
import json, sys
from dvc.cli import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    if code:
        sys.exit(code)
"""
# Imports what DVC would import later too. A first line on standard input says that the repository can be opened, a
# second what is to be done; the end of it instead of a line, that nothing is. It ends without taking the interpreter
# down.
_PUBLISH = """
import json, os, sys
import dvc.cachemgr, dvc.data_cloud, dvc.lock, dvc.scm, dvc_data.hashfile.status, dvc_data.index.push, networkx
import dvc.repo.add, dvc.repo.artifacts, dvc.repo.datasets, dvc.repo.metrics, dvc.repo.params, dvc.repo.plots
import dvc.repo.push, dvc.repo.stage, dvc.repo.worktree, rich.console, ruamel.yaml
from dvc.repo import Repo
if sys.stdin.readline():
    repo = Repo()
    for step, targets in json.loads(sys.stdin.readline() or "[]"):
        getattr(repo, step)(targets)
sys.stdout.flush()
os._exit(0)
"""
_FETCH = """
import json, sys
from dvc.api import DVCFileSystem
repository, tag, files = json.loads(sys.argv[1])
source = DVCFileSystem(repository, rev=tag)
source.get(list(files), list(files.values()))
"""
_IDENTITY = ("-c", "user.name=Overread", "-c", "user.email=overread@localhost")


class DatasetError(RuntimeError):
    """Something is wrong with a dataset version or the data repository.

    DatasetError
    ├── FreezeRefused     there is nothing to freeze yet: for people to read, not a crash
    ├── VersionUnknown    no such version
    ├── VersionErased     it held somebody who has been erased, and cannot be had again
    ├── VersionDamaged    bytes do not match their digest
    └── ToolFailed        git or DVC failed
    """


class FreezeRefused(DatasetError):
    """There is nothing to freeze yet; the message says what is missing."""


class VersionUnknown(DatasetError):
    """The data repository has no such version."""


class VersionErased(DatasetError):
    """A patient in this version has been erased; its files are gone for good."""


class VersionDamaged(DatasetError):
    """Stored bytes do not match their digest."""


class ToolFailed(DatasetError):
    """git or DVC failed; the message carries what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRepository:
    """A data repository; hold it through `writing` to change it, make it directly to read it."""

    path: Path
    lock: int | None = None
    """File descriptor of the writer's lock."""
    early: Early | None = None
    """What publishes, if it was started before."""
    keep_going: Callable[[], None] = lambda: None
    """Called each second while a tool runs; raises to stop it."""

    def git(self, *arguments: str) -> str:
        """Run git here and return what it printed. Raises ToolFailed."""
        return _run(["git", *_IDENTITY, *arguments], cwd=self.path, lock=self.lock, keep_going=self.keep_going)

    def dvc(self, *commands: Sequence[str], cwd: Path | None = None) -> None:
        """Run DVC commands one after the other in one process. Raises ToolFailed at the first that fails."""
        self.python(_DVC, json.dumps(commands), cwd=cwd)

    def fetch(self, tag: str, files: Mapping[str, str]) -> None:
        """Bring files of a tagged version (name in the repository -> path to write) from cache or remote."""
        if files:
            self.python(_FETCH, json.dumps([str(self.path.resolve()), tag, files]))

    def python(self, script: str, argument: str, *, cwd: Path | None = None) -> None:
        """Run a script that speaks to DVC in a process of its own. Raises ToolFailed."""
        command = [sys.executable, "-P", "-c", script, argument]
        _run(command, cwd=cwd or self.path, lock=self.lock, keep_going=self.keep_going)

    def commit_of(self, tag: str) -> str | None:
        """The commit that a tag names, None where there is no such tag."""
        if not (self.path / ".git" / "HEAD").exists():
            return None
        found = self.git("for-each-ref", "--format=%(objectname) %(*objectname)", f"refs/tags/{tag}").split()
        return found[-1] if found else None

    def show(self, tag: str, name: str) -> bytes:
        """A git-tracked file as it is in a tagged version. Raises VersionUnknown."""
        if self.commit_of(tag) is None:
            raise VersionUnknown(f"{tag} is not in the data repository {self.path}")
        return self.git("show", f"{tag}:{name}").encode()

    def erased(self) -> dict[str, str]:
        """Commits whose files were removed because they held erased cases, with their tags."""
        path = self.path / ERASED
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def newest_edition(self, tag: str) -> str:
        """The tag of a version's newest edition without erased cases; its own tag where there is none."""
        editions = self.git("tag", "--list", f"{tag}.e*").split()
        return max(editions, key=lambda name: int(name.rpartition(".e")[2]), default=tag)

    def restore(self, tag: str, line: str, *, distrust_cache: bool = False) -> None:
        """Bring a line's directory to a tagged version, fetching from the remote what the cache lacks.

        With `distrust_cache` the cache is emptied first: all it held of tagged versions is in the remote as well.
        """
        if distrust_cache:
            shutil.rmtree(self.path / ".dvc" / "cache", ignore_errors=True)
        for name in TRACKED_LARGE:  # DVC would believe a file whose size and time have not changed
            target = self.path / line / name
            shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
        self.git("checkout", "-q", tag, "--", line)
        self.dvc(["pull", "-q", "--force", *(f"{line}/{name}.dvc" for name in TRACKED_LARGE)])

    def collect_garbage(self) -> int:
        """Remove from cache and remote what no tagged version needs, as killed freezes leave it; returns bytes freed.

        The remote's are counted where it is a folder.
        """
        before = self._stored_bytes()
        self.dvc(["gc", "-q", "--force", "--all-tags", "--cloud"])
        return before - self._stored_bytes()

    def _stored_bytes(self) -> int:
        config = (self.path / ".dvc" / "config").read_text(encoding="utf-8")
        remote = Path(config.rpartition("url = ")[2].strip())
        places = [self.path / ".dvc" / "cache", *([remote] if remote.is_dir() else [])]
        return sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())

    @contextmanager
    def publishing(self) -> Iterator[Publisher]:
        """Make DVC ready while a version is being written: it takes a second to start, and is ended if not needed."""
        with nullcontext(self.early) if self.early else start_early(self.path, lock=self.lock) as early:
            assert early.process.stdin is not None
            with suppress(BrokenPipeError):  # it has failed, which will be told when it is asked for
                early.process.stdin.write("open\n")
                early.process.stdin.flush()
            yield Publisher(repository=self, process=early.process)


@dataclass(frozen=True, slots=True, kw_only=True)
class Early:
    """What publishes, started before the repository is held, and the writer's lock, which is not taken yet."""

    lock: int
    process: subprocess.Popen[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """What turns a line's directory into a version, once it stands as it is to be."""

    repository: DataRepository
    process: subprocess.Popen[str]

    def publish(self, tag: str, line: str, *, message: str) -> str:
        """Push a line's directory as it stands, commit and tag it; returns the commit. Raises ToolFailed."""
        held = self.repository
        # The data before the commit before the tag: see the module's invariant.
        steps = [
            ["add", [f"{line}/{name}" for name in TRACKED_LARGE]],
            ["push", [f"{line}/{name}.dvc" for name in TRACKED_LARGE]],
        ]
        _finish(self.process, cwd=held.path, keep_going=held.keep_going, told=json.dumps(steps) + "\n")
        sys.audit("overread.fault", "version.push.after")
        held.git("add", "--all", line, ".dvc")
        if held.git("status", "--porcelain"):
            held.git("commit", "-q", "--no-verify", "-m", message)
        sys.audit("overread.fault", "version.commit.after")
        held.git("tag", "-a", "-m", message, tag)
        sys.audit("overread.fault", "version.tag.after")
        commit = held.commit_of(tag)
        assert commit is not None
        return commit


@contextmanager
def start_early(path: Path, *, lock: int | None = None) -> Iterator[Early]:
    """Start what publishes to a repository that may not be there yet, and end it at the end if it was not needed."""
    opened = _open_lock(path) if lock is None else lock
    try:
        process = _start([sys.executable, "-P", "-c", _PUBLISH], cwd=path, lock=opened)
        try:
            yield Early(lock=opened, process=process)
        finally:
            process.kill()
            process.communicate()
    finally:
        if lock is None:
            os.close(opened)


@contextmanager
def writing(
    path: Path, *, remote: str, keep_going: Callable[[], None] = lambda: None, early: Early | None = None
) -> Iterator[DataRepository]:
    """Hold the data repository for writing: created if absent, swept of what a killed writer left.

    `remote` is a directory or a URL that DVC understands; `early` comes from `start_early` of the same path. Raises
    DatasetError after 15 minutes of another's writing.
    """
    lock = _open_lock(path) if early is None else early.lock
    try:
        _wait_for(lock, path=path, keep_going=keep_going)
        repository = DataRepository(path=path.resolve(), lock=lock, early=early, keep_going=keep_going)
        _sweep(repository)
        _set_up(repository, remote=remote)
        yield repository
    finally:
        if early is None:
            os.close(lock)


def tag_of(line: str, number: int) -> str:
    """The git tag of a dataset version, such as `cxr-pneumonia/v0001`."""
    return f"{line}/v{number:04d}"


def _open_lock(path: Path) -> int:
    (path / ".git").mkdir(parents=True, exist_ok=True)
    return os.open(path / ".git" / "overread.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _wait_for(lock: int, *, path: Path, keep_going: Callable[[], None]) -> None:
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            keep_going()
            if time.monotonic() > deadline:
                raise DatasetError(f"another freeze has been writing to {path} for too long; look at it") from None
            time.sleep(0.2)
        else:
            return


def _sweep(repository: DataRepository) -> None:
    """Undo what a killed writer left: locks of git and DVC, and changes without a commit."""
    git_directory = repository.path / ".git"
    stale = [*git_directory.glob("*.lock"), *(git_directory / "refs").rglob("*.lock")]
    for file in [*stale, repository.path / ".dvc" / "tmp" / "rwlock"]:
        if file.name != "overread.lock":
            file.unlink(missing_ok=True)
    if (git_directory / "HEAD").exists() and repository.git("for-each-ref", "--count=1", "refs/heads"):
        repository.git("reset", "-q", "--hard")
        repository.git("clean", "-qffd")


def _set_up(repository: DataRepository, *, remote: str) -> None:
    """Make it a git and DVC repository if it is none, with the remote asked for."""
    if not (repository.path / ".git" / "HEAD").exists() or not repository.git("for-each-ref", "refs/heads"):
        repository.git("init", "-q", "-b", "main")
        sys.audit("overread.fault", "repository.init.after")
        shutil.rmtree(repository.path / ".dvc", ignore_errors=True)
        repository.dvc(["init", "-q", "--force"])
    url = remote if "://" in remote else str(Path(remote).resolve())
    config = repository.path / ".dvc" / "config"
    # Links instead of copies: shards never change, and each checkout would otherwise hold all pixels once more.
    text = (
        "[core]\n    analytics = false\n    autostage = false\n    check_update = false\n    remote = store\n"
        f'[cache]\n    type = "reflink,hardlink,copy"\n[\'remote "store"\']\n    url = {url}\n'
    )
    if config.read_text(encoding="utf-8") != text:
        config.write_text(text, encoding="utf-8")
        sys.audit("overread.fault", "repository.configure.after")
        repository.git("add", "--all", ".dvc", ".dvcignore")
        repository.git("commit", "-q", "--no-verify", "-m", "Set up the data repository")


def _run(command: Sequence[str], *, cwd: Path, lock: int | None, keep_going: Callable[[], None]) -> str:
    return _finish(_start(command, cwd=cwd, lock=lock), cwd=cwd, keep_going=keep_going)


def _start(command: Sequence[str], *, cwd: Path, lock: int | None) -> subprocess.Popen[str]:
    # A git hook above us, or a person's configuration, must not decide what happens here.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(cwd / ".dvc" / "tmp" / "site"),
    }
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=() if lock is None else (lock,),  # should we be killed, the child holds the lock to its own end
        text=True,
    )


def _finish(process: subprocess.Popen[str], *, cwd: Path, keep_going: Callable[[], None], told: str = "") -> str:
    """Tell a process all it is told, wait for its end, and return what it printed. Raises ToolFailed."""
    given: str | None = told
    try:
        while True:
            try:
                output, errors = process.communicate(given, timeout=1.0)
                break
            except subprocess.TimeoutExpired:
                given = None  # it has it already
                keep_going()
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if process.returncode != 0:
        tool = "git" if str(process.args[0]) == "git" else "dvc"  # type: ignore[index] # a list, as it was started
        raise ToolFailed(f"{tool} failed with code {process.returncode} in {cwd}: {errors.strip()[-2000:]}")
    return output
