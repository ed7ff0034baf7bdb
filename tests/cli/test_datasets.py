"""`overread dataset …` on a data repository: what a person reads, and the exit code when a byte is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_commands import overread
from tests.pipelines.hospital import LINE, Hospital, moved


@pytest.fixture(scope="module")
def frozen_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital's home with two versions; copy it to change it."""
    home = tmp_path_factory.mktemp("hospital")
    hospital = Hospital(home)
    hospital.freeze(1, n=100)
    hospital.freeze(2, n=130, previous=1)
    return home


def test_a_diff_says_in_words_who_came(frozen_home: Path, tmp_path: Path) -> None:
    repository = ("--repository", str(frozen_home / "data"))
    done = overread("dataset", "diff", LINE, "1", "2", *repository, home=tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert f"{LINE}: version 1 (100 cases) → 2 (130 cases)" in text
    assert "entered: 30" in text
    assert "… and 10 more" in text


def test_a_checkout_names_its_place_and_digest(frozen_home: Path, tmp_path: Path) -> None:
    arguments = ("checkout", LINE, "2", "--into", str(tmp_path / "out"), "--repository", str(frozen_home / "data"))
    done = overread("dataset", *arguments, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 130
    assert (tmp_path / "out" / LINE / "v0002" / "manifest.json").exists()


def test_quality_and_agreement_are_told_in_words(frozen_home: Path, tmp_path: Path) -> None:
    arguments = (LINE, "2", "--repository", str(frozen_home / "data"))
    quality = overread("dataset", "quality", *arguments, home=tmp_path)
    assert quality.returncode == 0, quality.stderr
    assert "near_duplicates" in quality.stdout
    agreement = overread("dataset", "agreement", *arguments, home=tmp_path)
    assert agreement.returncode == 0, agreement.stderr
    assert "all reads: no case has two" in agreement.stdout + agreement.stderr


def test_a_wrong_byte_in_the_remote_is_named_with_exit_code_2(frozen_home: Path, tmp_path: Path) -> None:
    hospital = moved(frozen_home, tmp_path / "hospital")
    places = ("--repository", str(hospital.repository), "--remote", str(hospital.remote))
    fine = overread("dataset", "verify", LINE, "2", *places, home=tmp_path)
    assert fine.returncode == 0, fine.stderr
    largest = max((file for file in hospital.remote.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.chmod(0o644)
    largest.write_bytes(data)
    done = overread("dataset", "verify", LINE, "2", *places, home=tmp_path)
    assert done.returncode == 2
    assert "shards/" in done.stdout + done.stderr
    assert "was altered" in done.stdout + done.stderr


def test_what_is_not_there_is_said_with_a_way_out(frozen_home: Path, tmp_path: Path) -> None:
    unknown = overread("dataset", "diff", LINE, "1", "9", "--repository", str(frozen_home / "data"), home=tmp_path)
    assert unknown.returncode == 1
    assert f"{LINE}/v0009 is not in the data repository" in unknown.stderr
    nowhere = overread("dataset", "gc", "--repository", str(tmp_path), home=tmp_path)
    assert nowhere.returncode == 1
    assert "name it with --repository" in nowhere.stderr
