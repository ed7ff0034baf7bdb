"""The jail for bytes from outside: child processes that decode images under limits, and the pool that feeds them.

Invariant: nothing but `pipelines.images` reads a byte from outside, and only in a child that holds no secret of the
service, has limits on memory, processor time, files and processes, and is killed when it takes too long. A child that
dies costs the request it was working on and no other. What it writes to stderr is dropped: a decoder's complaints may
quote the file.

    python -m workers.decoder        # a child; speaks length-prefixed frames on stdin and stdout

Frame: 4-byte big-endian length, then so many bytes. Request: content type, image. Answer: header (JSON), NPY bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipelines import images

MEMORY_BYTES = 2 * 1024**3
"""Above what the child takes when idle: the largest image accepted passes through float64 arrays."""
CPU_SECONDS = 10
MAX_ANSWER_BYTES = images.MAX_PIXELS * 3 * 2 + 1024
"""The largest array `pipelines.images` returns: colour, 16 bits, with its header."""

_HEADER = struct.Struct(">I")


class DecoderError(RuntimeError):
    """The decoder itself does not work, whatever the image; the message says what to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedBytes:
    """What survives of an image from outside: pixels as NPY bytes, and allow-listed attributes."""

    npy: bytes
    attributes: dict[str, Any]


class DecoderPool:
    """A few jailed children, each started when first needed and replaced when it dies. Safe to share by threads."""

    def __init__(self, *, size: int = 2, wall_seconds: float = 20.0) -> None:
        self._wall_seconds = wall_seconds
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)
        self._size = size

    def decode(self, data: bytes, content_type: str | None = None) -> DecodedBytes:
        """Decode one image in a child.

        Raises pipelines.images.ImageRefused, with code "image-refused" where the child was killed over it, and
        DecoderError where no child starts.
        """
        with self._child() as child:
            return child.decode(data, content_type, wall_seconds=self._wall_seconds)

    def close(self) -> None:
        """Stop the children, waiting for those at work."""
        for child in [self._idle.get() for _ in range(self._size)]:
            if child is not None:
                child.stop()
            self._idle.put(None)

    @contextlib.contextmanager
    def _child(self) -> Iterator[_Child]:
        child = self._idle.get()
        try:
            if child is not None and not child.alive:
                child.stop()
                child = None
            if child is None:
                child = _Child()
            yield child
        finally:
            self._idle.put(child)


class _Child:
    """The parent's end of one child process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_jail_environment(),
            start_new_session=True,
        )
        with self._killed_after(60.0):  # importing is slow on a busy machine
            greeting = _read_frame(self._pipe("stdout"), limit=64)
        if greeting != b"ready":
            self.stop()
            raise DecoderError("the image decoder does not start; run `python -m workers.decoder` to see why")

    @property
    def alive(self) -> bool:
        """Whether the process runs and may be given another image."""
        return self._process.poll() is None

    def decode(self, data: bytes, content_type: str | None, *, wall_seconds: float) -> DecodedBytes:
        header = npy = None
        with self._killed_after(wall_seconds), contextlib.suppress(BrokenPipeError):
            _write_frame(self._pipe("stdin"), (content_type or "").encode("utf-8", "replace"))
            _write_frame(self._pipe("stdin"), data)
            header = _read_frame(self._pipe("stdout"), limit=65536)
            npy = _read_frame(self._pipe("stdout"), limit=MAX_ANSWER_BYTES)
        if header is None or npy is None:
            self.stop()
            raise images.ImageRefused(
                "image-refused", "decoding this image took more time or memory than any honest image needs"
            )
        answer = json.loads(header)
        if "code" in answer:
            raise images.ImageRefused(answer["code"], answer["message"])
        images.from_npy(npy)  # whatever happened in the jail, only an image leaves it
        return DecodedBytes(npy=npy, attributes=answer["attributes"])

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    @contextlib.contextmanager
    def _killed_after(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _pipe(self, name: str) -> IO[bytes]:
        pipe: IO[bytes] = getattr(self._process, name)
        return pipe


def main() -> int:
    """Serve one parent until it closes the pipe. Decodes one image outside the jail first: ours, to load all code."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    import pipelines.dicom  # noqa: F401, PLC0415 - here and not in the service, before the first image waits for it

    images.decode(images.png_bytes(np.zeros((8, 8), dtype=np.uint8)))
    _lock_up()
    _write_frame(answers, b"ready")
    while True:
        content_type = _read_frame(requests, limit=65536)
        data = _read_frame(requests, limit=2**31)
        if content_type is None or data is None:
            return 0
        _allow_cpu_seconds(CPU_SECONDS)
        header, npy = _answer(data, content_type.decode("utf-8", "replace"))
        _write_frame(answers, json.dumps(header).encode("ascii"))
        _write_frame(answers, npy)


def _answer(data: bytes, content_type: str) -> tuple[dict[str, Any], bytes]:
    try:
        decoded = images.decode(data, content_type or None)
        return {"attributes": decoded.attributes}, images.npy_bytes(decoded.pixels)
    except images.ImageRefused as refusal:
        return {"code": refusal.code, "message": str(refusal)}, b""
    except MemoryError:
        return {"code": "image-refused", "message": "decoding this image needs more memory than is given"}, b""
    except Exception as error:  # noqa: BLE001 - hostile bytes may raise anything; the answer is the handling
        return {"code": "image-refused", "message": f"the image cannot be decoded ({type(error).__name__})"}, b""


def _lock_up() -> None:
    in_use = _address_space_bytes()
    if in_use is not None:
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES, in_use + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _allow_cpu_seconds(seconds: int) -> None:
    # The limit counts from the start of the process, so it moves with each image.
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + seconds, hard))


def _address_space_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return None  # no such file outside Linux, and no such limit on macOS
    return pages * resource.getpagesize()


def _jail_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "VIRTUAL_ENV") if name in os.environ}
    root = str(Path(__file__).resolve().parents[1])
    kept["PYTHONPATH"] = os.pathsep.join(part for part in (root, kept.get("PYTHONPATH", "")) if part)
    # Each thread of a linear-algebra library reserves memory; the jail has none to spare and needs no threads.
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _write_frame(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_HEADER.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _read_frame(pipe: IO[bytes], *, limit: int) -> bytes | None:
    head = pipe.read(_HEADER.size)
    if len(head) < _HEADER.size:
        return None
    (length,) = _HEADER.unpack(head)
    if length > limit:
        return None
    data = pipe.read(length)
    return data if len(data) == length else None


if __name__ == "__main__":
    sys.exit(main())
