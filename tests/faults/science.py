"""The scenarios of the science and of serving: real trainings, freezes and models, of a second or two each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines import dataset, job, network
from pipelines import freeze as freezing
from pipelines.data_repository import DataRepository, writing
from pipelines.types import digest_of
from registry import promotions
from registry.db import Connection, connect
from tests.pipelines.hospital import LINE, Hospital, moved
from tests.pipelines.toy import PROTOCOL, TRAIN, TUNE
from tests.workers.lines import crown, make_line
from workers.champions import Champions
from workers.settings import WorkerSettings

Place = dict[str, Any]


def prepare_training(_conn: Connection, place: Place) -> Place:
    """A job directory."""
    directory = Path(place["home"]) / "job"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return {"job": str(directory)}


def train(place: Place) -> Any:
    """Train as `pipelines.train` does, on images that need no dataset version."""
    from pipelines.train import fit  # noqa: PLC0415 - by its name, so that it may be a changed one

    def work(directory: Path, _config: dict[str, Any]) -> dict[str, Any]:
        checkpoints = directory / "checkpoints"
        done = fit(TRAIN, TUNE, protocol=PROTOCOL, strategy="full", seed=0, checkpoints=checkpoints)
        data = network.save_weights(done.module)
        job.write_atomically(directory / "weights.safetensors", data)
        return {"weights": network.digest_of_bytes(data), "epochs": [row["epoch"] for row in done.history]}

    assert job.run([place["job"]], work=work) == 0
    return json.loads((Path(place["job"]) / "result.json").read_text(encoding="utf-8"))


def check_trained(_conn: Connection, place: Place, answer: Any) -> None:
    """The weights are those of an unbroken run, byte for byte."""
    assert answer == place["unbroken"]


def prepare_serving(conn: Connection, settings: WorkerSettings) -> Place:
    """A line with a champion that can be loaded."""
    line, _ = make_line(conn, name=f"line-{Path(settings.home).name}")
    crown(conn, settings, line, seed=1)
    return {"line": line.name, "line_id": line.line_id}


def serve(settings: WorkerSettings, *, line: str) -> Any:
    """Load what the record names, as the inference process does at its start."""
    champions = Champions(settings)
    with connect(settings.database_url) as conn:
        champions.refresh(conn)
    return champions.serving(line).candidate.weights_digest


def check_serving(conn: Connection, place: Place, answer: Any) -> None:
    """What serves is what the record names."""
    champion = promotions.champion(conn, place["line_id"])
    assert champion is not None
    assert champion.weights_digest == answer


def prepare_hospital(_conn: Connection, place: Place) -> Place:
    """A hospital without a data repository."""
    return {"hospital": str(Hospital(Path(place["home"]) / "hospital").home)}


def set_up(place: Place) -> Any:
    """Make its data repository."""
    hospital = Hospital(Path(place["hospital"]))
    with writing(hospital.repository, remote=str(hospital.remote)) as repository:
        return repository.git("ls-files").split()


def check_set_up(_conn: Connection, place: Place, answer: Any) -> None:
    """It is a git and DVC repository with one commit and nothing beside it."""
    assert answer == place["unbroken"]
    repository = DataRepository(path=Hospital(Path(place["hospital"])).repository)
    assert repository.git("status", "--porcelain") == ""
    assert ".dvc/config" in answer


def prepare_freeze(_conn: Connection, place: Place) -> Place:
    """A hospital that has a data repository and a hundred confirmed cases."""
    shared = Path(place["shared"]) / "set-up"
    if not shared.exists():
        hospital = Hospital(shared)
        with writing(hospital.repository, remote=str(hospital.remote)):
            pass
    return {"hospital": str(moved(shared, Path(place["home"]) / "hospital").home)}


def freeze(place: Place) -> Any:
    """Freeze them."""
    directory = Hospital(Path(place["hospital"])).job(1, n=100)
    assert freezing.main([str(directory)]) == 0
    return json.loads((directory / "result.json").read_text(encoding="utf-8"))["digest"]


def check_frozen(_conn: Connection, place: Place, answer: Any) -> None:
    """One version, the same as of an unbroken freeze, clean, and whole for whoever has only the remote."""
    assert answer == place["unbroken"]
    hospital = Hospital(Path(place["hospital"]))
    repository = DataRepository(path=hospital.repository)
    assert repository.git("status", "--porcelain") == ""
    assert repository.git("tag").split() == [f"{LINE}/v0001"]
    document = json.loads(repository.show(f"{LINE}/v0001", f"{LINE}/manifest.json"))
    assert digest_of(document) == answer
    stored = {file.parent.name + file.name for file in hospital.remote.rglob("*") if file.is_file()}
    for name in ("cases", "shards"):
        pointer = repository.show(f"{LINE}/v0001", f"{LINE}/{name}.dvc").decode()
        (digest,) = [line.split("md5:")[1].strip() for line in pointer.splitlines() if "md5:" in line]
        assert digest in stored, f"{name} never reached the remote"


def prepare_checkout(conn: Connection, place: Place) -> Place:
    """A hospital with a frozen version."""
    shared = Path(place["shared"]) / "frozen"
    if not shared.exists():
        shared.mkdir()
        freeze(prepare_freeze(conn, {**place, "home": str(shared)}))
    return {"hospital": str(moved(shared / "hospital", Path(place["home"]) / "hospital").home)}


def check_out(place: Place) -> Any:
    """Bring the version's files to a folder."""
    hospital = Hospital(Path(place["hospital"]))
    path = dataset.checkout(hospital.repository, line=LINE, number=1, into=Path(place["home"]) / "out")
    return dataset.open_version(path).digest


def check_checked_out(_conn: Connection, place: Place, answer: Any) -> None:
    """It is whole, and nothing of the killed attempt is left."""
    assert answer == place["unbroken"]
    assert sorted(path.name for path in (Path(place["home"]) / "out" / LINE).iterdir()) == [
        ".lock",
        ".seals.json",
        "prepared",
        "v0001",
    ]
