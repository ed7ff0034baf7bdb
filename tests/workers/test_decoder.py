"""The jail: hostile bytes cost the request that brought them, and nothing else."""

from __future__ import annotations

import io
import signal
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from pipelines import images
from pipelines.images import ImageRefused
from tests.waiting import command_of, descendants
from workers.decoder import DecoderPool


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    made = DecoderPool(size=1, wall_seconds=120.0)
    yield made
    made.close()


def honest_png() -> bytes:
    return images.png_bytes(np.arange(64, dtype=np.uint8).reshape(8, 8))


def png(*, columns: int, rows: int, rows_of_data: int | None = None, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG whose header promises what its data may not hold; the pixels are zeros, so they deflate to little."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    samples = {0: 1, 2: 3}[colour] * depth // 8
    squeeze, left = zlib.compressobj(1), (1 + columns * samples) * (rows if rows_of_data is None else rows_of_data)
    data, block = bytearray(), bytes(2**20)
    while left > 0:
        data += squeeze.compress(block[:left])
        left -= len(block)
    header = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data + squeeze.flush()) + chunk(b"IEND", b"")


def children() -> list[psutil.Process]:
    return [child for child in descendants() if "workers.decoder" in command_of(child)]


class Deadly(str):
    """A content type whose sending kills the child: it lived when the image was given to it, and never answers."""

    __slots__ = ("_child",)

    def __new__(cls, child: psutil.Process) -> Deadly:
        made = super().__new__(cls, "image/png")
        made._child = child
        return made

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        self._child.kill()
        return super().encode(encoding, errors)


def test_an_honest_image_comes_back_as_pixels(pool: DecoderPool) -> None:
    decoded = pool.decode(honest_png(), "image/png")
    assert np.array_equal(np.load(io.BytesIO(decoded.npy)), np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert decoded.attributes == {}


def test_a_header_that_promises_four_billion_pixels_is_refused(pool: DecoderPool) -> None:
    with pytest.raises(ImageRefused) as refusal:
        pool.decode(png(columns=65535, rows=65535, rows_of_data=1))
    assert refusal.value.code == "too-many-pixels"


def test_a_file_cut_short_is_refused(pool: DecoderPool) -> None:
    whole = images.png_bytes(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    for length in (9, 40, len(whole) // 2):
        with pytest.raises(ImageRefused):
            pool.decode(whole[:length])


@pytest.mark.parametrize(
    "hostile", [b"", b"\0" * 4096, b"GIF89a" + b"\xff" * 999, b"\0" * 128 + b"DICM" + b"\xff" * 999]
)
def test_garbage_is_refused(pool: DecoderPool, hostile: bytes) -> None:
    with pytest.raises(ImageRefused):
        pool.decode(hostile)
    assert pool.decode(honest_png()).npy


def test_a_bomb_that_claims_to_be_small_is_refused(pool: DecoderPool) -> None:
    bomb = png(columns=8, rows=8, rows_of_data=400_000_000 // 9)  # 400 MB of zeros in few
    assert len(bomb) < 4_000_000
    try:
        decoded = pool.decode(bomb)
    except ImageRefused:
        pass
    else:
        assert np.load(io.BytesIO(decoded.npy)).shape == (8, 8)  # only what the header promised was read
    assert pool.decode(honest_png()).npy


def test_the_service_does_not_grow_over_hostile_images(pool: DecoderPool) -> None:
    hostile = [
        png(columns=65535, rows=65535, rows_of_data=1),
        png(columns=8000, rows=5000, depth=16)[:50_000],
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 100_000,
    ]
    process = psutil.Process()
    pool.decode(honest_png())
    before = process.memory_info().rss
    for _ in range(10):
        for data in hostile:
            with pytest.raises(ImageRefused):
                pool.decode(data)
    assert process.memory_info().rss - before < 50 * 1024**2


def test_a_killed_child_costs_one_request_and_is_replaced(pool: DecoderPool) -> None:
    pool.decode(honest_png())
    (child,) = children()
    child.kill()
    child.wait()
    assert pool.decode(honest_png()).npy  # found dead before it was given anything
    (child,) = children()
    with pytest.raises(ImageRefused) as refusal:
        pool.decode(honest_png(), Deadly(child))
    assert refusal.value.code == "image-refused"
    assert pool.decode(honest_png()).npy


def test_a_child_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = DecoderPool(size=1, wall_seconds=120.0)
    known = {child.pid for child in children()}
    try:
        impatient.decode(honest_png())
        (child,) = [child for child in children() if child.pid not in known]
        child.send_signal(signal.SIGSTOP)
        with monkeypatch.context() as now:
            now.setattr(impatient, "_wall_seconds", 0.3)  # on a busy machine an honest image may take longer
            with pytest.raises(ImageRefused, match="more time or memory"):
                impatient.decode(honest_png() + b"\0" * 10_000_000)  # more than a pipe holds: nor may writing hang
        assert impatient.decode(honest_png()).npy
    finally:
        impatient.close()


def test_the_jail_holds_no_secret_and_has_limits(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERREAD_DATABASE_URL", "postgresql://secret")
    fresh = DecoderPool(size=1)
    known = {child.pid for child in children()}
    try:
        fresh.decode(honest_png())
        (child,) = [child for child in children() if child.pid not in known]
        assert not [name for name in child.environ() if name.startswith("OVERREAD_")]
        assert child.rlimit(psutil.RLIMIT_AS)[0] < 8 * 1024**3
        assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert child.rlimit(psutil.RLIMIT_NPROC) == (0, 0)
        assert child.rlimit(psutil.RLIMIT_CPU)[0] < 600
    finally:
        fresh.close()


def test_the_largest_image_allowed_passes_the_jail(pool: DecoderPool) -> None:
    decoded = pool.decode(png(columns=8000, rows=5000, depth=16))
    assert len(decoded.npy) > 80_000_000
