"""Fault matrix row 3: a full disk is said to be full, nothing is half-written, and it goes on once there is space."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from registry.db import connect
from tests.api.pictures import npy
from tests.api.service import free_port, start_api, wait_for
from tests.conftest import as_superuser
from tests.faults.conftest import MakePlace
from tests.faults.places import READ, TOKEN, blob_root
from tests.faults.scenarios import SCENARIOS
from tests.faults.whole import assert_record_whole, imagined_files

HOOK = Path(__file__).parent / "hook"


@contextlib.contextmanager
def small_disk(folder: Path, *, size: str) -> Iterator[Path]:
    """A file system of this size, mounted on `folder`; the test is skipped where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a full disk needs a disk of our own: mounting a tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@contextlib.contextmanager
def api_of(place: dict[str, Any], **more: str) -> Iterator[httpx.Client]:
    """The API as a process, and a client with the place's key."""
    environment = {
        "OVERREAD_HOME": place["home"],
        "OVERREAD_DATABASE_URL": place["database_url"],
        "OVERREAD_INFERENCE_TOKEN": TOKEN,
        "OVERREAD_INFERENCE_URL": place["inference_url"],
        "OVERREAD_PATIENT_KEY": "00" * 32,
        **more,
    }
    log, port = Path(place["home"]) / "api.log", free_port()
    with log.open("wb") as output:
        process = start_api(environment, port=port, log=output)
        try:
            wait_for(f"http://127.0.0.1:{port}/health/live", process=process, log=log)
            headers = {"Authorization": f"Bearer {place['key']}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120) as client:
                yield client
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture
def place(make_place: MakePlace) -> dict[str, Any]:
    """A place with two cases and somebody who may confirm them."""
    made = make_place()
    with connect(made["database_url"]) as conn:
        return {**made, **SCENARIOS["a confirmation"].prepare(conn, made)}


def submit(client: httpx.Client, place: dict[str, Any]) -> httpx.Response:
    form = {"line": place["line"], "site": "north", "external_id": "x-1"}
    return client.post("/v1/cases", data=form, files={"image": ("x.npy", npy(), "application/x-npy")})


def is_full(answer: httpx.Response) -> bool:
    return (answer.status_code, answer.json()["type"]) == (507, "/problems/storage-full")


def submits_once_there_is_space(place: dict[str, Any], client: httpx.Client, *, make_space: Any) -> None:
    with connect(place["database_url"]) as conn:
        imagined = imagined_files(conn, blob_root(place))
        refused = submit(client, place)
        assert is_full(refused), refused.text
        assert_record_whole(conn, blob_root(place), imagined=imagined)
        assert imagined_files(conn, blob_root(place)) == imagined, "a row without bytes"
        assert [path for path in blob_root(place).rglob("*") if path.is_file() and path.name != "filler"] == []
        make_space()
        accepted = submit(client, place)
        assert accepted.status_code == 201, accepted.text
        assert_record_whole(conn, blob_root(place), imagined=imagined)


def test_an_image_that_finds_no_space_is_refused_whole_and_taken_later(place: dict[str, Any]) -> None:
    with small_disk(blob_root(place), size="64k") as disk, api_of(place) as client:
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        submits_once_there_is_space(place, client, make_space=filler.unlink)


def test_an_upload_that_finds_no_space_on_its_way_in_is_not_the_senders_fault(place: dict[str, Any]) -> None:
    with small_disk(Path(place["home"]) / "tmp", size="64k") as disk, api_of(place, TMPDIR=str(disk)) as client:
        form = {"line": place["line"], "site": "north"}
        large = client.post("/v1/cases", data=form, files={"image": ("x.npy", bytes(2**21), "application/x-npy")})
        assert is_full(large), large.text
        assert submit(client, place).status_code == 201  # a small one needs no file on its way


@pytest.mark.parametrize("label", ["blob.write.before", "blob.rename.before"])
def test_a_disk_that_fills_up_at_any_step_leaves_no_half(place: dict[str, Any], label: str) -> None:
    armed = {
        "FAULTPOINT": f"{label}:1:full",
        "PYTHONPATH": os.pathsep.join([str(HOOK), os.environ.get("PYTHONPATH", "")]),
    }
    with api_of(place, **armed) as client:
        submits_once_there_is_space(place, client, make_space=lambda: None)


def test_a_database_without_space_refuses_a_confirmation_whole_and_takes_it_later(place: dict[str, Any]) -> None:
    # Beside the server's own folder: whom the server runs as may not look into the tests'.
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    folder.chmod(0o755)
    with (
        small_disk(folder, size="64k") as disk,
        psycopg.connect(as_superuser(place["database_url"]), autocommit=True) as holder,
    ):
        row = holder.execute("SHOW data_directory").fetchone()
        assert row is not None
        server = Path(row[0]).stat()
        os.chown(disk, server.st_uid, server.st_gid)
        name = sql.Identifier(f"small_{holder.info.dbname}")
        holder.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(name, str(disk)))
        try:
            holder.execute(sql.SQL("ALTER TABLE confirmations SET TABLESPACE {}").format(name))
            confirms_once_there_is_space(place, disk / "filler")
            holder.execute("ALTER TABLE confirmations SET TABLESPACE pg_default")
        finally:
            holder.execute(sql.SQL("DROP TABLESPACE {}").format(name))


def confirms_once_there_is_space(place: dict[str, Any], filler: Path) -> None:
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    path = f"/v1/cases/{place['cases'][0]}/confirmations"
    with api_of(place) as client, connect(place["database_url"]) as conn:
        imagined = imagined_files(conn, blob_root(place))
        refused = client.post(path, json=READ, headers={"Idempotency-Key": "once"})
        assert is_full(refused), refused.text
        assert_record_whole(conn, blob_root(place), imagined=imagined)
        assert client.get(path).json() == []
        filler.unlink()
        accepted = client.post(path, json=READ, headers={"Idempotency-Key": "once"})
        assert accepted.status_code == 201, accepted.text
        assert client.get(path).json() == [accepted.json()]
        assert_record_whole(conn, blob_root(place), imagined=imagined)
