"""`overread import` against a real service: once is enough, twice changes nothing, and a kill loses nothing."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import typer

from api.cli import app, main
from api.cli.errors import Refused, SetupError
from api.cli.formats import Ndjson
from api.cli.sending import pause_after
from api.cli.sources import FIELDS
from pipelines.chest_xrays import SHARED
from tests.api.pictures import dicom, npy, pixels, png
from tests.api.service import ROOT, Service, free_port, start_api, wait_for
from tests.waiting import until

SAID = ("--site", "north", "--evidence", "consensus", "--reader", "radiologist-17")


def environment(service: Service, home: Path, *, url: str | None = None, user: str = "submitter") -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    ours = {"OVERREAD_HOME": str(home), "OVERREAD_API_URL": url or service.url, "OVERREAD_API_KEY": service.keys[user]}
    return {**clean, **ours, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


Import = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def imported(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Import:
    """Run the command as a person would; exit code, answer, and what was said."""

    def run(*arguments: str | Path, url: str | None = None, user: str = "submitter") -> tuple[int, dict[str, Any], str]:
        for name, value in environment(service, tmp_path, url=url, user=user).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["overread", "import", *map(str, arguments), "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, json.loads(out) if out else {}, said

    return run


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    (folder / "images").mkdir(parents=True)
    return folder


def write_index(folder: Path, rows: list[dict[str, str]], *, delimiter: str = ",") -> Path:
    path = folder / "index.csv"
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def some_rows(folder: Path, count: int, *, first: int = 0) -> list[dict[str, str]]:
    rows = []
    for number in range(first, first + count):
        (folder / "images" / f"{number}.png").write_bytes(png(number))
        finding = ("normal", "pneumonia")[number % 2]
        rows.append({"file": f"images/{number}.png", "patient": f"MRN-{number}", "finding": finding})
    return rows


def held(service: Service, line: str) -> Counter[tuple[str, str]]:
    """What the record holds of a line: each case by its image, with each of its confirmations."""
    with service.connect() as connection:
        rows = connection.execute(
            "SELECT cases.image_digest, coalesce(finding, 'none') FROM cases JOIN lines USING (line_id)"
            " LEFT JOIN confirmations USING (case_id) WHERE lines.name = %s",
            (line,),
        ).fetchall()
    return Counter(rows)


def kinds(answer: dict[str, Any]) -> dict[str, int]:
    return {reason["type"].rpartition("/")[2]: reason["rows"] for reason in answer["reasons"]}


def test_a_folder_with_a_csv_is_imported_once(imported: Import, service: Service, line: str, archive: Path) -> None:
    rows = some_rows(archive, 3)
    (archive / "images" / "3.dcm").write_bytes(dicom(3, PatientSex="F"))
    (archive / "images" / "4.npy").write_bytes(npy(4))
    rows += [{"file": "images/3.dcm", "finding": "normal", "external_id": "mine", "site": "south"}]
    rows += [{"file": "images/4.npy", "finding": "pneumonia", "confirmed_at": "2026-03-02T09:30:00+01:00"}]
    renamed = [{"diagnosis" if name == "finding" else name: text for name, text in row.items()} for row in rows]
    write_index(archive, [row | {"PatientName": "Doe^Jane"} for row in renamed], delimiter=";")
    command = (archive, "--line", line, *SAID, "--map", "diagnosis=finding")
    code, answer, said = imported(*command)
    assert (code, answer["created"], answer["confirmed"], answer["rejected"]) == (0, 5, 5, 0), said
    assert "diagnosis as finding" in said
    assert "not sent: PatientName" in said
    code, answer, _ = imported(*command)
    assert (code, answer["created"], answer["already_there"], answer["already_confirmed"]) == (0, 0, 5, 5)
    assert answer["confirmed"] == 0
    assert sorted(held(service, line).values()) == [1] * 5
    with service.client("submitter") as client:
        cases = client.get("/v1/cases", params={"line": line}).json()
        known = {case["external_id"]: case for case in cases}
        assert known["mine"]["site"] == "south"
        assert f"sha256:{hashlib.sha256(png(0)).hexdigest()}" in known
        listed = client.get(f"/v1/cases/{known['mine']['case_id']}/confirmations").json()
    assert [(one["evidence"], one["ai_exposure"], one["reader"]) for one in listed] == [
        ("consensus", "unknown", "radiologist-17")
    ]


def test_rows_may_come_in_other_company_later(imported: Import, service: Service, line: str, archive: Path) -> None:
    rows = some_rows(archive, 6)
    write_index(archive, rows[2:5])
    imported(archive, "--line", line, *SAID)
    write_index(archive, [rows[5], *rows[:4], rows[4], rows[4]])
    code, answer, said = imported(archive, "--line", line, *SAID)
    assert (code, answer["confirmed"], answer["already_confirmed"]) == (0, 3, 4), said
    assert sorted(held(service, line).values()) == [1] * 6


def test_wrong_rows_are_listed_and_the_others_imported(
    imported: Import, service: Service, line: str, archive: Path, tmp_path: Path
) -> None:
    rows = some_rows(archive, 3)
    outside = tmp_path / "secret.png"
    outside.write_bytes(png(9))
    (archive / "images" / "link.png").symlink_to(outside)
    (archive / "images" / "text.png").write_bytes(b"no image")
    good = {"finding": "normal"}
    bad = [
        rows[0] | {"finding": "fracture", "patient": "other"},
        good | {"file": "../secret.png"},
        good | {"file": "images/link.png"},
        good | {"file": str(outside)},
        good | {"file": "images/missing.png"},
        good | {"file": "images"},
        good | {"file": "images/text.png"},
        rows[1] | {"patient": "somebody else"},
        rows[2] | {"evidence": "hearsay"},
        rows[2] | {"confirmed_at": "2026-03-02 09:30"},
        rows[2] | {"confirmed_at": "2999-01-01T00:00:00Z"},
        rows[2] | {"age_band": "young"},
        {"file": "images/2.png"},
        good,
    ]
    write_index(archive, [*rows, *bad])
    lost = tmp_path / "errors.csv"
    dry, judged, _ = imported(archive, "--line", line, *SAID, "--dry-run")
    assert held(service, line) == {}
    code, answer, said = imported(archive, "--line", line, *SAID, "--errors", lost)
    assert (dry, code, answer["confirmed"], answer["rejected"]) == (1, 1, 3, len(bad)), said
    assert kinds(answer) == {
        "unknown-finding": 1, "outside-the-folder": 3, "no-such-file": 2, "image-refused": 1,
        "same-image-other-patient": 1, "invalid-request": 4, "future-date": 1, "no-image": 1,
    }  # fmt: skip
    # What only the service can know is missing from a dry run, and nothing else.
    assert judged["right"] == 3 + 3
    with lost.open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert sorted(int(row["row"]) for row in listed) == list(range(4, 4 + len(bad)))
    assert {row["type"] for row in listed} >= {"/problems/unknown-finding", "import/outside-the-folder"}
    code, answer, _ = imported(archive, "--line", line, *SAID, "--follow")
    assert "outside-the-folder" not in kinds(answer)
    assert sorted(held(service, line).values()) == [1] * 4


def test_what_is_not_said_is_not_guessed(imported: Import, service: Service, line: str, archive: Path) -> None:
    write_index(archive, some_rows(archive, 2))
    code, answer, _ = imported(archive, "--line", line)
    assert (code, answer["rejected"]) == (1, 2)
    detail = answer["reasons"][0]["detail"]
    assert all(option in detail for option in ("--site", "--evidence", "--reader"))
    assert imported(archive, "--line", line, *SAID, "--map", "diagnosis=finding")[0] == 2
    assert imported(archive, "--line", line, *SAID, "--finding", "0=fracture")[0] == 2
    assert imported(archive, "--line", line, *SAID, user="auditor")[0] == 2
    assert held(service, line) == {}
    write_index(archive, [{"file": "images/0.png"}, {"file": "images/1.png", "finding": "normal"}])
    code, answer, _ = imported(archive, "--line", line, *SAID, "--unconfirmed")
    assert (code, answer["unconfirmed"], answer["confirmed"]) == (0, 1, 1)


def test_a_row_that_says_otherwise_of_a_known_case_is_refused(
    imported: Import, service: Service, line: str, archive: Path
) -> None:
    rows = [row | {"external_id": row["file"]} for row in some_rows(archive, 2)]
    write_index(archive, rows)
    imported(archive, "--line", line, *SAID)
    (archive / "images" / "0.png").write_bytes(png(8))
    write_index(archive, [rows[0], rows[1] | {"site": "south"}])
    code, answer, _ = imported(archive, "--line", line, *SAID)
    assert (code, kinds(answer)) == (1, {"already-exists": 1, "case-differs": 1})
    assert sorted(held(service, line).values()) == [1, 1]


def test_ndjson_and_parquet_hold_images_or_name_them(
    imported: Import, service: Service, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ndjson, "_LONGEST", 4096)
    (tmp_path / "0.png").write_bytes(png(0))
    rows: list[Any] = [
        {"file": "0.png", "label": 1, "site": "north"},
        {"image": base64.b64encode(png(1)).decode(), "label": 0, "site": "north"},
    ]
    broken = ["", "{not json", "[1]", "[" * 4000, "7" * 10_000, {"image": "!!", "label": 0, "site": "north"}]
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in [*rows, *broken])
    (tmp_path / "rows.ndjson").write_text(text + "\n", encoding="utf-8")
    named = ("--line", line, *SAID[2:], "--map", "label=finding", "--finding", "0=normal", "--finding", "1=pneumonia")
    code, answer, said = imported(tmp_path / "rows.ndjson", *named)
    assert (code, answer["confirmed"], kinds(answer)) == (1, 2, {"row-unreadable": 4, "image-unreadable": 1}), said
    when = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    table = {
        "image": [{"bytes": png(number), "path": None} for number in (1, 2)],
        "label": [0, 1],
        "site": ["north"] * 2,
        "confirmed_at": [None, when],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    code, answer, said = imported(tmp_path / "rows.parquet", *named)
    assert (code, answer["confirmed"], answer["already_confirmed"]) == (0, 1, 1), said
    assert sorted(held(service, line).values()) == [1] * 3
    with service.connect() as connection:
        row = connection.execute(
            "SELECT confirmed_at FROM confirmations ORDER BY confirmation_id DESC LIMIT 1"
        ).fetchone()
    assert row == (when,)


def test_an_npz_streams_and_its_split_decides_nothing(
    imported: Import, service: Service, line: str, tmp_path: Path
) -> None:
    images = np.stack([pixels(number) for number in range(5)])
    labels = np.array([[0], [1], [0], [1], [7]])
    arrays = {
        "train_images": images[:3],
        "train_labels": labels[:3],
        "test_images": images[3:],
        "test_labels": labels[3:],
    }
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    code, answer, said = imported(
        tmp_path / "small.npz", "--line", line, *SAID, "--finding", "0=normal", "--finding", "1=pneumonia"
    )
    assert (code, answer["confirmed"], kinds(answer)) == (1, 4, {"unknown-finding": 1}), said
    with service.client("submitter") as client:
        cases = client.get("/v1/cases", params={"line": line}).json()
    assert {case["external_id"] for case in cases} == {f"small/train/{i}" for i in range(3)} | {"small/test/0"}
    stored = io.BytesIO()
    np.save(stored, images[3])
    assert hashlib.sha256(stored.getvalue()).hexdigest() in {case["image_digest"] for case in cases}


def test_an_import_that_is_killed_goes_on_where_it_was(
    imported: Import, service: Service, line: str, archive: Path, tmp_path: Path
) -> None:
    count = 400
    write_index(archive, some_rows(archive, count))
    command = [sys.executable, "-m", "api.cli", "import", str(archive), "--line", line, *SAID, "--workers", "2"]
    for how, enough in ((signal.SIGINT, 1), (signal.SIGKILL, 60)):
        process = subprocess.Popen(
            command, env=environment(service, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        until(lambda enough=enough: held(service, line).total() >= enough, process=process)  # type: ignore[misc]
        process.send_signal(how)
        _, said = process.communicate(timeout=120)
        assert process.returncode == (130 if how == signal.SIGINT else -how), said
        assert how == signal.SIGKILL or "run the same command again" in said
    before = held(service, line).total()
    code, answer, said = imported(archive, "--line", line, *SAID)
    assert code == 0, said
    assert answer["created"] + answer["already_there"] == count
    assert answer["already_there"] <= before + 50  # a chunk may have been under way
    assert answer["confirmed"] + answer["already_confirmed"] == count
    after = held(service, line)
    assert (len(after), set(after.values())) == (count, {1})
    code, answer, _ = imported(archive, "--line", line, *SAID)
    assert (code, answer["already_there"], answer["already_confirmed"]) == (0, count, count)
    assert held(service, line) == after


def test_an_import_outlives_a_restart_and_a_service_that_asks_for_patience(
    service: Service, line: str, archive: Path, tmp_path: Path
) -> None:
    count, port, log = 24, free_port(), tmp_path / "api.log"
    write_index(archive, some_rows(archive, count))
    url = f"http://127.0.0.1:{port}"
    slow = {**service.environment, "OVERREAD_RATE_PER_SECOND": "1", "OVERREAD_RATE_BURST": "12"}
    with log.open("wb") as output:
        api = start_api(slow, port=port, log=output)
        try:
            wait_for(f"{url}/health/live", process=api, log=log)
            process = subprocess.Popen(
                [sys.executable, "-m", "api.cli", "import", str(archive), "--line", line, *SAID, "--json"],
                env=environment(service, tmp_path, url=url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            until(lambda: held(service, line).total() >= 10, process=process)
            api.kill()
            api.wait(timeout=120)
            api = start_api(slow, port=port, log=output)
            said, complained = process.communicate(timeout=400)
        finally:
            api.kill()
            api.wait(timeout=120)
    assert process.returncode == 0, complained
    answer = json.loads(said)
    assert answer["confirmed"] + answer["already_confirmed"] == count
    after = held(service, line)
    assert (len(after), set(after.values())) == (count, {1})


@pytest.mark.parametrize(
    ("refusal", "pause"),
    [
        (Refused("slower", status=429, retry_after_seconds=7), 7),
        (Refused("in a moment", status=503, retry_after_seconds=5), 5),
        (Refused("it is at work", status=409, problem="/problems/idempotency-in-flight", retry_after_seconds=1), 1),
        (Refused("no", status=422), None),
        (Refused("another image", status=409, problem="/problems/already-exists"), None),
    ],
)
def test_what_passes_is_waited_for_as_long_as_the_service_says(refusal: Refused, pause: float | None) -> None:
    assert pause_after(refusal, attempt=1) == pause


def test_what_no_row_is_to_blame_for_ends_the_import() -> None:
    for refusal in (Refused("who?", status=401), Refused("full", status=507, problem="/problems/storage-full")):
        with pytest.raises(SetupError):
            pause_after(refusal, attempt=1)
    assert pause_after(Refused("broken", status=500), attempt=2) is not None
    assert pause_after(Refused("broken", status=500), attempt=3) is None


def test_a_service_that_stays_away_is_given_up_on(imported: Import, line: str, archive: Path) -> None:
    write_index(archive, some_rows(archive, 1))
    code, _, said = imported(archive, "--line", line, *SAID, url=f"http://127.0.0.1:{free_port()}")
    assert code == 3
    assert "overread up" in said


@pytest.mark.skipif(not SHARED.exists(), reason="PneumoniaMNIST is not beside the checkout")
def test_pneumoniamnist_goes_in_as_it_is(imported: Import, service: Service, line: str, tmp_path: Path) -> None:
    with np.load(SHARED) as whole:
        np.savez(tmp_path / "pneumoniamnist.npz", **{name: whole[name][:67] for name in whole})
    code, answer, said = imported(
        tmp_path / "pneumoniamnist.npz", "--line", line, *SAID, "--finding", "0=normal", "--finding", "1=pneumonia"
    )
    assert (code, answer["confirmed"]) == (0, 201), said


def test_the_manual_names_every_field_and_option() -> None:
    manual = (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")
    command = typer.main.get_command(app).commands["import"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert sorted(name for name in (options - {"--line"}) | set(FIELDS) if f"`{name}" not in manual) == []


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "a.csv", "b.csv", "a.txt", "folder"])
def test_a_source_that_cannot_be_read_is_said_to_be(imported: Import, line: str, tmp_path: Path, name: str) -> None:
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"file,file\n" if name == "b.csv" else b"\xff\xfe not what it says \x00")
    code, _, said = imported(tmp_path / name, "--line", line, *SAID)
    assert code == 2
    assert "✗" in said
