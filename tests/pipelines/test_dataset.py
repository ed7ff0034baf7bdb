"""Freezing with real git and DVC: what is frozen is whole, reproducible by an outsider, and survives a kill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import dataset, images, strategies, train
from pipelines.data_repository import VersionDamaged, VersionUnknown
from pipelines.difference import difference
from pipelines.erase import erase
from pipelines.protocol import InputSpec, from_document, parse
from pipelines.types import CaseId, digest_of
from tests.pipelines.hospital import LINE, PROTOCOL, PROTOCOL_TEXT, ROOT, Hospital, moved, start
from tests.waiting import until

SPEC = InputSpec(channels=1, rows=28, columns=28)

Frozen = tuple[Hospital, dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def first_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital's home with one frozen version of 100 cases; copy it, for it is shared."""
    home = tmp_path_factory.mktemp("first")
    Hospital(home).freeze(1, n=100)
    return home


@pytest.fixture(scope="module")
def frozen(first_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    """A hospital with two frozen versions, of 100 and of 130 cases; do not write to it."""
    hospital = moved(first_home, tmp_path_factory.mktemp("frozen") / "home")
    return hospital, hospital.freeze(1, n=100), hospital.freeze(2, n=130, previous=1)


def test_a_frozen_version_holds_every_case_once_with_its_pixels(frozen: Frozen, tmp_path: Path) -> None:
    hospital, _, second = frozen
    path = dataset.checkout(hospital.repository, line=LINE, number=2, into=tmp_path, digest=second["digest"])
    version = dataset.open_version(path)
    assert (version.line, version.number, version.digest) == (LINE, 2, second["digest"])
    assert version.case_ids.tolist() == list(range(1, 131))
    assert [example.case_id for example in version.examples([2, 0])] == [3, 1]
    assert version.classes == ("normal", "pneumonia")
    assert np.array_equal(version.labels, hospital.labels[:130])
    assert all(np.array_equal(a, b) for a, b in zip(version.images(range(130)), hospital.pictures, strict=False))
    prepared = version.prepared(SPEC)
    assert prepared.shape == (130, 1, 28, 28)
    assert prepared[0].dtype == np.float32
    assert prepared[np.arange(130)][:, 0] == pytest.approx(hospital.pictures[:130] / 255.0, abs=1e-6)
    assert not prepared.array.flags.writeable
    assert version.said([7]) == {CaseId(7): hospital.case(6).confirmations}
    parts = [version.indices(split) for split in ("train", "tune", "sealed_test")]
    assert sorted(np.concatenate(parts)) == list(range(130))


def test_a_second_version_adds_only_what_is_new(frozen: Frozen, tmp_path: Path) -> None:
    hospital, first, second = frozen
    assert [first["manifest"][name] for name in ("examples", "new_examples")] == [100, 100]
    assert [second["manifest"][name] for name in ("examples", "new_examples")] == [130, 30]
    assert second["submitter_shares"] == pytest.approx({"north": 22 / 30, "south": 8 / 30})
    old, new = first["manifest"]["shards"], second["manifest"]["shards"]
    assert new[: len(old)] == old
    assert [shard["images"] for shard in new] == [100, 30]
    assert second["manifest"]["previous"] == {"number": 1, "digest": first["digest"]}
    version = dataset.open_version(dataset.checkout(hospital.repository, line=LINE, number=2, into=tmp_path))
    assert len(version.indices(new_only=True)) == 30
    before = dataset.open_version(dataset.checkout(hospital.repository, line=LINE, number=1, into=tmp_path))
    assert np.array_equal(before.splits, version.splits[:100])


def test_cases_read_with_the_model_in_sight_weigh_less_in_training(frozen: Frozen, tmp_path: Path) -> None:
    version = dataset.open_version(dataset.checkout(frozen[0].repository, line=LINE, number=1, into=tmp_path))
    weights = train.weights_of(version, protocol=PROTOCOL)
    assert weights.tolist() == [0.3 if case_id % 7 == 4 else 1.0 for case_id in version.case_ids.tolist()]
    weak = {"recipe": {**PROTOCOL.document()["recipe"], "weights": {"aided": 0.5, "single_read": 0.2}}}
    weights = train.weights_of(version, protocol=from_document(PROTOCOL.document() | weak))
    assert weights.tolist() == pytest.approx(
        [0.1 if case_id % 7 == 4 else 0.2 for case_id in version.case_ids.tolist()]
    )


def test_an_erasure_and_a_correction_reach_what_the_next_training_draws(first_home: Path, tmp_path: Path) -> None:
    hospital = moved(first_home, tmp_path / "home")
    before = dataset.open_version(dataset.checkout(hospital.repository, line=LINE, number=1, into=tmp_path))
    learnt = before.case_ids[before.indices("train")].tolist()
    erased, corrected = learnt[:2]
    erase(hospital.repository, remote=str(hospital.remote), line=LINE, cases=[erased], recorded=[1])
    hospital.labels[corrected - 1] ^= 1
    job = hospital.job(2, n=130, previous=1)
    told = (job / "cases.ndjson").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(row for row in told if json.loads(row)["case_id"] != erased)
    (job / "cases.ndjson").write_text(kept, encoding="utf-8")
    with start(job) as process:
        assert process.communicate(timeout=120)[1] == ""

    version = dataset.open_version(dataset.checkout(hospital.repository, line=LINE, number=2, into=tmp_path))
    rows = version.indices("train")
    names, labels = version.case_ids[rows], version.labels[rows]
    known = {"labels": labels, "sites": version.sites[rows], "label_since": version.label_since[rows]}
    plan = strategies.plan("replay", **known, base_number=1, recipe=PROTOCOL.recipe)
    fresh, archive = (set(names[pool.rows].tolist()) for pool in plan.pools)
    assert erased not in version.case_ids
    assert corrected in fresh - archive
    assert archive == set(learnt) - {erased, corrected}
    assert labels[names == corrected] == hospital.labels[corrected - 1]
    drawn = names[strategies.epoch_order(plan.pools, rng=np.random.default_rng(0))]
    assert set(drawn.tolist()) <= fresh | archive


def test_a_protocol_that_says_nothing_of_weights_keeps_its_digest_and_its_meaning() -> None:
    document = PROTOCOL.document()
    recipe = {name: value for name, value in document["recipe"].items() if name != "weights"}
    silent = from_document({**document, "recipe": recipe})
    assert "weights" not in silent.document()["recipe"]
    assert silent.recipe.weights.of(evidence="single_read", ai_exposure="aided") == 1.0


def test_an_outsider_reproduces_a_version_from_a_clone_and_the_remote_alone(frozen: Frozen, tmp_path: Path) -> None:
    hospital, first, _ = frozen
    clone = tmp_path / "clone"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}

    def run(*command: str) -> None:
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)

    run("git", "clone", "-q", f"file://{hospital.repository}", str(clone))  # has no cache: all comes from the remote
    run(sys.executable, "-m", "dvc", "get", "-q", str(clone), LINE, "--rev", first["git_tag"], "-o", "got")
    document = json.loads((tmp_path / "got" / "manifest.json").read_text(encoding="utf-8"))
    assert digest_of(document) == first["digest"]
    for shard in document["shards"]:
        data = (tmp_path / "got" / "shards" / shard["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["digest"]
    for part in document["cases"]:
        data = (tmp_path / "got" / "cases" / part["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == part["digest"]
    assert pq.read_table(tmp_path / "got" / "cases").num_rows == 100


def test_the_lines_of_python_in_the_documentation_open_a_version(frozen: Frozen, tmp_path: Path) -> None:
    hospital, _, _ = frozen
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert code.count("REPOSITORY") == 1
    script = code.replace("REPOSITORY", str(hospital.repository)) + "print(pixels.tolist())"
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == hospital.pictures[0].tolist()


def test_what_differs_between_two_versions_is_named(frozen: Frozen) -> None:
    hospital, _, _ = frozen
    found = difference(hospital.repository, line=LINE, old=1, new=2)
    assert found["changes"] == {"entered": 30}
    assert [case["case_id"] for case in found["cases"]["entered"]] == list(range(101, 121))
    assert found["same_protocol"]
    back = difference(hospital.repository, line=LINE, old=2, new=1)
    assert back["changes"] == {"left": 30}
    assert difference(hospital.repository, line=LINE, old=2, new=2)["changes"] == {}


def test_what_a_killed_freeze_left_behind_is_collected_and_nothing_else(first_home: Path, tmp_path: Path) -> None:
    hospital = moved(first_home, tmp_path / "home")
    hospital.freeze(2, n=130, previous=1)
    git(hospital, "tag", "-d", f"{LINE}/v0002")
    git(hospital, "reset", "-q", "--hard", "HEAD~1")
    command = [sys.executable, "-m", "pipelines.versions", str(hospital.repository), "gc", "--remote"]
    done = subprocess.run([*command, str(hospital.remote)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout)["freed_bytes"] > 30 * 784
    path = dataset.checkout(hospital.repository, line=LINE, number=1, into=tmp_path / "out")
    assert len(dataset.open_version(path).images(range(100))) == 100


def test_freezing_the_same_number_again_returns_the_first(frozen: Frozen) -> None:
    hospital, _, second = frozen
    assert hospital.freeze(2, n=140, previous=1) == second  # even if more cases have been confirmed meanwhile


def test_a_checkout_is_read_only_and_made_once(frozen: Frozen, tmp_path: Path) -> None:
    hospital, first, second = frozen
    path = dataset.checkout(hospital.repository, line=LINE, number=1, into=tmp_path)
    assert all(file.stat().st_mode & 0o222 == 0 for file in path.rglob("*") if file.is_file())
    inode = path.stat().st_ino
    assert dataset.checkout(hospital.repository, line=LINE, number=1, into=tmp_path, digest=first["digest"]) == path
    assert path.stat().st_ino == inode
    with pytest.raises(VersionDamaged, match="not the version meant"):
        dataset.checkout(hospital.repository, line=LINE, number=1, into=tmp_path, digest=second["digest"])
    with pytest.raises(VersionUnknown, match="v0009"):
        dataset.checkout(hospital.repository, line=LINE, number=9, into=tmp_path)


@pytest.mark.parametrize("name", ["cases", "shards"])
def test_a_changed_byte_in_a_checkout_is_found(frozen: Frozen, tmp_path: Path, name: str) -> None:
    hospital, _, _ = frozen
    path = dataset.checkout(hospital.repository, line=LINE, number=1, into=tmp_path)
    file = next((path / name).iterdir())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.unlink()  # a checkout may share its bytes with DVC's cache
    file.write_bytes(data)
    with pytest.raises(VersionDamaged):
        dataset.open_version(path).prepared(SPEC)


def test_a_near_duplicate_of_a_case_in_another_split_waits(first_home: Path, tmp_path: Path) -> None:
    hospital = moved(first_home, tmp_path / "home")
    protocol = parse(PROTOCOL_TEXT).document()
    first = dataset.open_version(dataset.checkout(hospital.repository, line=LINE, number=1, into=tmp_path / "out"))
    (original,) = first.indices("train")[:1].tolist()
    for index in range(100, 140):  # copies, a little brighter, under other patients: some would be in other splits
        hospital.replace(index, np.clip(hospital.pictures[original] * 1.0 + (index - 98), 0, 255).astype(np.uint8))
    hospital.freeze(2, n=140, previous=1, protocol=protocol, whole=True)
    version = dataset.open_version(dataset.checkout(hospital.repository, line=LINE, number=2, into=tmp_path / "out"))
    copies = [example for example in version.examples() if example.case_id > 100]
    reasons = [row.reason for row in version.waiting()]
    assert len(copies) + len(reasons) == 40
    assert {example.split for example in copies} == {"train"}
    words = f"near duplicate of another: case {first.case_ids[original]} in train"
    assert reasons
    assert all(reason.startswith("near duplicate of another: case") for reason in reasons)
    assert words in {reason.partition(",")[0] for reason in reasons}
    assert version.manifest["waiting"] == {"near duplicate of another": len(reasons)}


def test_nothing_new_is_refused_in_words(frozen: Frozen) -> None:
    hospital, _, _ = frozen
    assert "nothing is new" in hospital.freeze(3, n=130, previous=2)["refused"]


def test_a_damaged_working_directory_and_cache_are_healed_from_the_remote(first_home: Path, tmp_path: Path) -> None:
    hospital = moved(first_home, tmp_path / "home")
    line = hospital.repository / LINE
    for file in [*(line / "shards").iterdir(), *(hospital.repository / ".dvc" / "cache").rglob("*")]:
        if file.is_file():
            file.chmod(0o644)
            file.write_bytes(b"damaged")
    second = hospital.freeze(2, n=130, previous=1)
    assert second["manifest"]["examples"] == 130
    assert len(
        dataset.open_version(dataset.checkout(hospital.repository, line=LINE, number=2, into=tmp_path)).images([0])
    )


def test_too_few_cases_are_refused_in_words(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    assert "no case has a settled diagnosis" in hospital.freeze(1, n=0)["refused"]
    assert "none yet for" in hospital.freeze(1, n=3)["refused"]
    asking = parse(PROTOCOL_TEXT).document()  # for copies, among no cases and among a few
    assert "no case has a settled diagnosis" in hospital.freeze(1, n=0, protocol=asking)["refused"]
    assert "none yet for" in hospital.freeze(1, n=3, protocol=asking)["refused"]


def test_an_image_damaged_at_rest_is_named_and_left_out(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    digests = [images.image_digest(picture) for picture in hospital.pictures[:2]]
    (hospital.blobs / digests[0][:2] / digests[0]).write_bytes(b"damaged")
    (hospital.blobs / digests[1][:2] / digests[1]).unlink()
    result = hospital.freeze(1, n=100)
    assert result["manifest"]["examples"] == 98
    path = dataset.checkout(hospital.repository, line=LINE, number=1, into=tmp_path / "out")
    assert [row.case_id for row in dataset.open_version(path).waiting()] == [1, 2]
    assert result["manifest"]["waiting"] == {"image unreadable": 2}


@pytest.mark.parametrize(
    "kill",
    [("settling", 0.0, True), ("publishing", 0.2, False), ("publishing", 0.6, True), ("publishing", 1.0, False)],
)
def test_a_freeze_killed_at_any_moment_is_healed_by_the_next(
    frozen: Frozen, first_home: Path, tmp_path: Path, kill: tuple[str, float, bool]
) -> None:
    stage, after_seconds, with_children = kill
    _, _, second = frozen
    hospital = moved(first_home, tmp_path / "home")
    directory = hospital.job(2, n=130, previous=1)
    with start(directory) as process:
        await_stage(directory, stage, process)
        time.sleep(after_seconds)
        # Without its children: DVC then works on as an orphan, and the next freeze has to wait for it.
        (os.killpg if with_children else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
    assert_healed(hospital, digest=second["digest"], into=tmp_path / "out")


def test_a_freeze_killed_between_commit_and_tag_is_healed_by_the_next(
    frozen: Frozen, first_home: Path, tmp_path: Path
) -> None:
    _, _, second = frozen
    hospital = moved(first_home, tmp_path / "home")
    hospital.freeze(2, n=130, previous=1)
    git(hospital, "tag", "-d", second["git_tag"])
    (hospital.repository / ".git" / "index.lock").touch()
    (hospital.repository / LINE / "shards" / "partial").write_bytes(b"half a shard")
    assert_healed(hospital, digest=second["digest"], into=tmp_path / "out")


def assert_healed(hospital: Hospital, *, digest: str, into: Path) -> None:
    assert hospital.freeze(2, n=130, previous=1)["digest"] == digest
    assert git(hospital, "status", "--porcelain") == ""
    path = dataset.checkout(hospital.repository, line=LINE, number=2, into=into, digest=digest)
    assert len(dataset.open_version(path).images(range(130))) == 130


def git(hospital: Hospital, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=hospital.repository, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_a_freeze_whose_parent_is_gone_stops(tmp_path: Path) -> None:
    directory = Hospital(tmp_path).job(1, n=100)
    script = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    command = [sys.executable, "-c", script, sys.executable, "-m", "pipelines.freeze", str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as parent:
        await_stage(directory, "waiting", parent)
        parent.kill()
        parent.communicate(timeout=120)  # until the last of the family has let go of the pipe
    assert not (directory / "result.json").exists()


def await_stage(job: Path, stage: str, process: subprocess.Popen[Any]) -> None:
    until(lambda: stage in _text(job / "progress.jsonl"), what=f"the stage {stage!r}", process=process)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""
