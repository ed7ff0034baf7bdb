"""What every heavy job has in common: a directory with config.json in, progress.jsonl along the way, result.json out.

Invariant: result.json appears whole or not at all, and last; a job whose parent is gone stops with exit code 75, so
that an orphan never works beside its successor. A refusal people should read is a result, a bug is a traceback.

    python -m pipelines.train JOB_DIR
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

ORPHANED = 75
"""EX_TEMPFAIL of sysexits.h: somebody else will try again."""


class Refused(Exception):
    """The job cannot be done with what it was given; the message is for people and becomes the result."""


def run(arguments: list[str], *, work: Callable[[Path, dict[str, Any]], dict[str, Any]], writes: bool = True) -> int:
    """Do `work(JOB_DIR, config)` and write what it returns, or its refusal, to result.json; returns the exit code.

    Of several processes that do the work together only one `writes`.
    """
    if len(arguments) != 1:
        print("usage: python -m pipelines.<module> JOB_DIR", file=sys.stderr)
        return 2
    directory = Path(arguments[0])
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    try:
        result = work(directory, config)
    except Refused as refusal:
        result = {"refused": str(refusal)}
    if writes:
        write_atomically(directory / "result.json", json.dumps(result, allow_nan=False, indent=1).encode())
    return 0


def hide_pandas() -> None:
    """Keep pandas out of this process: pyarrow imports it, if there is one, before it converts anything to NumPy.

    Half a second for nothing, in all work that converts and has no use for pandas by itself.
    """
    sys.meta_path.insert(0, _WithoutPandas())


class _WithoutPandas(MetaPathFinder):
    def find_spec(self, fullname: str, *_: Any) -> None:
        """Refuse to find pandas, and leave the rest to others."""
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not needed here")


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds all of it or what it held before, also after a power cut."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; at the end it is flushed to disk and takes the name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    sys.audit("overread.fault", "file.write.before")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(temporary)
    sys.audit("overread.fault", "file.rename.before")
    temporary.replace(path)
    sys.audit("overread.fault", "file.rename.after")
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_progress(directory: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON object as a line to progress.jsonl."""
    with (directory / "progress.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, allow_nan=False) + "\n")


def orphan_watch() -> Callable[[], None]:
    """Return a function to call often; it ends the process with code 75 once the parent of now is gone."""
    parent = os.getppid()

    def check() -> None:
        if os.getppid() != parent:
            raise SystemExit(ORPHANED)

    return check


def end_with_parent(*, look_seconds: float = 1.0) -> None:
    """From now on end the process, with code 75 and amid whatever it does, soon after the parent of now is gone.

    For work that may be broken off anywhere and has no steps between which to look.
    """
    check = orphan_watch()

    def watch() -> None:
        while True:
            try:
                check()
            except SystemExit:
                os._exit(ORPHANED)
            time.sleep(look_seconds)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
