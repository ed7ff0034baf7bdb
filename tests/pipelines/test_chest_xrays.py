"""Where the demo's radiographs come from, in which order, and that it is always said."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipelines import chest_xrays


def npz(*, side: int = 28) -> bytes:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    arrays = {}
    for part, n in (("train", 6), ("val", 4), ("test", 5)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, side, side), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n) % 2).astype(np.uint8)[:, None]
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic ones by the dozen: a test's own, where thousands tell no more."""
    monkeypatch.setattr(chest_xrays, "SIZES", (24, 12, 12))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "data.npz").write_bytes(npz())
    handler = partial(_Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/data.npz"
        running.shutdown()
        thread.join()


def test_a_shared_file_comes_first(tmp_path: Path) -> None:
    shared = tmp_path / "shared.npz"
    shared.write_bytes(npz())
    found = chest_xrays.find(cache=tmp_path / "cache", shared=shared)
    assert found.real
    assert "CC BY 4.0" in found.source
    assert str(shared) in found.source
    assert found.train_images.shape == (6, 28, 28)
    assert found.test_labels.tolist() == [0, 1, 0, 1, 0]


def test_without_any_file_they_are_synthetic_and_it_is_said(tmp_path: Path) -> None:
    found = chest_xrays.find(cache=tmp_path, shared=None)
    assert not found.real
    assert "synthetic" in found.source
    assert found.train_images.shape == (4708, 28, 28)
    assert found.test_images.shape == (624, 28, 28)


@pytest.mark.usefixtures("few")
def test_a_file_of_another_kind_is_passed_over_and_it_is_said(tmp_path: Path) -> None:
    shared = tmp_path / "shared.npz"
    shared.write_bytes(npz(side=64))
    found = chest_xrays.find(cache=tmp_path, shared=shared)
    assert not found.real
    assert "passed over" in found.source
    shared.write_bytes(npz()[:300])
    assert "passed over" in chest_xrays.find(cache=tmp_path, shared=shared).source


@pytest.mark.usefixtures("few")
def test_a_download_with_the_wrong_checksum_is_thrown_away(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(chest_xrays.URL_SETTING, server)
    found = chest_xrays.find(cache=tmp_path / "cache", shared=None, download=True)
    assert not found.real
    assert "checksum" in found.source
    assert not (tmp_path / "cache" / "pneumoniamnist.npz").exists()


def test_a_download_with_the_right_checksum_is_kept_for_the_next_time(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(chest_xrays.URL_SETTING, server)
    monkeypatch.setattr(chest_xrays, "MD5", hashlib.md5(npz(), usedforsecurity=False).hexdigest())
    found = chest_xrays.find(cache=tmp_path / "cache", shared=None, download=True)
    assert found.real
    assert "checksum verified" in found.source
    monkeypatch.delenv(chest_xrays.URL_SETTING)
    assert chest_xrays.find(cache=tmp_path / "cache", shared=None).real


@pytest.mark.usefixtures("few")
def test_without_a_url_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(chest_xrays.URL_SETTING, raising=False)
    assert chest_xrays.URL_SETTING in chest_xrays.find(cache=tmp_path, shared=None, download=True).source
