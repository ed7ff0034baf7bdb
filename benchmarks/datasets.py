"""Measure what a dataset version costs, beside plain DVC with one file an image, and how fast images are read back.

Both sides hold the same images (28 × 28, grey, random, so that nothing compresses) in a git and DVC repository with a
folder as remote, on one disk, and take turns within one run. Ours is the whole freeze: cases settled, images read from
the blob store and checked, shards and tables written, added, pushed, committed, tagged. Plain DVC is `dvc add`, `dvc
push`, `git commit` and `git tag` of a folder of files and a CSV of labels, which are there already.

    python -m benchmarks.datasets                            # 10,000 and 100,000 beside plain DVC, 1,000,000 alone
    python -m benchmarks.datasets --sizes 10000 --alone      # a look
    python -m benchmarks.datasets formats                    # what to store images in
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipelines import dataset
from pipelines.difference import difference
from pipelines.images import npy_bytes
from pipelines.protocol import InputSpec, parse
from pipelines.types import CaseId, Confirmation, ConfirmedCase, Digest

ROOT = Path(__file__).resolve().parents[1]
PROTOCOL = parse((ROOT / "pipelines" / "protocols" / "cxr-pneumonia.yaml").read_text(encoding="utf-8"))
LINE = PROTOCOL.line
SPEC = InputSpec(channels=1, rows=28, columns=28)
NEW_CASES = 100
BATCH = 64
Times = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one side works."""

    home: Path

    @property
    def repository(self) -> Path:
        return self.home / "data"

    @property
    def remote(self) -> Path:
        return self.home / "remote"


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["versions", "formats"], default="versions")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--plain-up-to", type=int, default=100_000, help="largest size at which plain DVC is measured")
    parser.add_argument("--alone", action="store_true", help="leave plain DVC out")
    parser.add_argument("--folder", type=Path, help="where to work [default: a temporary folder]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        if asked.what == "formats":
            measure_formats(Path(folder))
            return
        for size in asked.sizes:
            plain = not asked.alone and size <= asked.plain_up_to
            measure_versions(Path(folder) / str(size), size=size, plain=plain)


def measure_versions(home: Path, *, size: int, plain: bool) -> None:
    """Measure one size, a table of it, and remove what was made."""
    pictures = Pictures(home / "blobs", count=size + NEW_CASES)
    sides: dict[str, Times] = {"ours": ours(Place(home=home / "ours"), pictures, size=size)}
    if plain:
        sides["plain DVC"] = plainly(Place(home=home / "plain"), pictures, size=size)
    names = list(dict.fromkeys(name for times in sides.values() for name in times))
    print(f"\n{size:,} images\n\n| | {' | '.join(sides)} |{' plain / ours |' if plain else ''}")
    print(f"|---|{'---|' * (len(sides) + plain)}")
    for name in names:
        values = [times.get(name) for times in sides.values()]
        shown = ["–" if value is None else f"{value:.3g}" for value in values]
        ratio = f" {values[1] / values[0]:.1f} |" if plain and None not in values else " |" if plain else ""
        print(f"| {name} | {' | '.join(shown)} |{ratio}")
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    shutil.rmtree(home)


class Pictures:
    """Random images in a blob store, and the confirmed cases that have them."""

    def __init__(self, blobs: Path, *, count: int) -> None:
        self.blobs = blobs
        self.digests: list[Digest] = []
        rng = np.random.default_rng(0)
        for number in range(256):
            (blobs / f"{number:02x}").mkdir(parents=True)
        for _ in range(count):
            data = npy_bytes(rng.integers(0, 256, (28, 28), dtype=np.uint8))
            digest = Digest(hashlib.sha256(data).hexdigest())
            (blobs / digest[:2] / digest).write_bytes(data)
            self.digests.append(digest)

    def case(self, index: int, *, corrected: bool = False) -> ConfirmedCase:
        """A case of which the index decides everything, two to a patient."""
        finding = PROTOCOL.classes[(index // 3 + corrected) % 2]
        said = Confirmation(
            confirmation_id=index + 1,
            finding=finding,
            evidence="single_read",
            ai_exposure="blind",
            submitter=f"pacs-{index % 4}",
            reader=f"reader-{index % 23}",
            confirmed_on="2026-03-02",
        )
        return ConfirmedCase(
            case_id=CaseId(index + 1),
            image_digest=self.digests[index],
            patient=hashlib.sha256(str(index // 2).encode()).hexdigest(),
            site=f"site-{index % 5}",
            scanner=None,
            sex=None,
            age_band=None,
            confirmations=(said,),
        )


def ours(place: Place, pictures: Pictures, *, size: int) -> Times:
    """Freeze, add, correct, and read back."""

    def freeze(number: int, cases: Iterator[ConfirmedCase]) -> tuple[float, float]:
        directory = place.home / f"job-{number}"
        directory.mkdir(parents=True)
        with (directory / "cases.ndjson").open("w", encoding="utf-8") as rows:
            rows.writelines(json.dumps(asdict(case)) + "\n" for case in cases)
        config = {
            "repository": str(place.repository),
            "remote": str(place.remote),
            "line": LINE,
            "number": number,
            "protocol": PROTOCOL.document(),
            "split_key": "0b" * 32,
            "cases": str(directory / "cases.ndjson"),
            "whole": number == 1,
            "gone": [],
            "last_confirmation_id": size + number,
            "blobs": str(pictures.blobs),
            "previous": number - 1 or None,
        }
        (directory / "config.json").write_text(json.dumps(config))
        return seconds(lambda: run(["-m", "pipelines.freeze", str(directory)]))

    times: Times = {}
    times["first version, s"], peak = freeze(1, (pictures.case(index) for index in range(size)))
    times["… peak memory, MiB"] = peak
    times["+100 cases, s"], peak = freeze(2, (pictures.case(index) for index in range(size, size + NEW_CASES)))
    times["… peak memory, MiB"] = max(times["… peak memory, MiB"], peak)
    times["one correction, s"], _ = freeze(3, iter([pictures.case(size // 2, corrected=True)]))
    out = place.home / "out"
    times["cold checkout, s"] = timed(lambda: dataset.checkout(place.repository, line=LINE, number=1, into=out))
    times["the next version beside it, s"] = timed(
        lambda: dataset.checkout(place.repository, line=LINE, number=3, into=out)
    )
    times["diff, s"] = timed(lambda: difference(place.repository, line=LINE, old=1, new=3))
    times["open, s"] = median(3, lambda: dataset.open_version(out / LINE / "v0003"))
    version = dataset.open_version(out / LINE / "v0003")
    first = dataset.open_version(out / LINE / "v0001")
    times["prepare the first version, s"] = timed(lambda: first.prepared(SPEC))
    times["prepare what is new, s"] = timed(lambda: version.prepared(SPEC))
    times |= reading(version, place.home)
    times["disk: repository and remote, MiB"] = disk(place.home / "data", place.remote)
    times["files in the remote"] = sum(1 for file in place.remote.rglob("*") if file.is_file())
    return times


def reading(version: dataset.DatasetVersion, home: Path) -> Times:
    """An epoch in random batches: our prepared images, and a raw memory-mapped array of the same."""
    prepared = version.prepared(SPEC)
    raw_file = home / "raw.npy"
    raw = np.lib.format.open_memmap(raw_file, mode="w+", dtype=np.float32, shape=prepared.shape)
    for start in range(0, len(raw), 65_536):
        raw[start : start + 65_536] = prepared[np.arange(start, min(start + 65_536, len(raw)))]
    raw.flush()
    raw = np.load(raw_file, mmap_mode="r")
    order = np.random.default_rng(1).permutation(len(raw))[: min(100_000, len(raw)) // BATCH * BATCH].reshape(-1, BATCH)

    def epoch(images: Any) -> float:
        return order.size / timed(lambda: [images[rows] for rows in order])

    rounds = [(epoch(prepared), epoch(raw)) for _ in range(5)]
    mine, plain = (statistics.median(side) for side in zip(*rounds, strict=True))
    raw_file.unlink()
    return {"reading in batches of 64, images/s": mine, "… share of a raw memory-mapped array": mine / plain}


def plainly(place: Place, pictures: Pictures, *, size: int) -> Times:
    """The same with `dvc add images`, one PNG-sized file an image, and a CSV of labels in git."""
    images = place.repository / "images"
    images.mkdir(parents=True)
    tool = [sys.executable, "-m", "dvc"]
    git = ["git", "-c", "user.name=b", "-c", "user.email=b@localhost"]

    def here(*commands: list[str]) -> float:
        begun = time.perf_counter()
        for command in commands:
            subprocess.run(command, cwd=place.repository, check=True, capture_output=True, env=environment)
        return time.perf_counter() - begun

    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(place.home / "site")}
    here(["git", "init", "-q"], [*tool, "init", "-q"], [*tool, "remote", "add", "-d", "store", str(place.remote)])
    here([*tool, "config", "cache.type", "reflink,hardlink,copy"])

    def put(indices: range) -> None:
        for index in indices:
            digest = pictures.digests[index]
            shutil.copy(pictures.blobs / digest[:2] / digest, images / f"{index:08d}.npy")

    def label(count: int, *, corrected: int | None = None) -> None:
        with (place.repository / "labels.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            for index in range(count):
                case = pictures.case(index, corrected=index == corrected)
                rows.writerow([case.case_id, case.patient, case.site, case.confirmations[0].finding])

    def version(number: int) -> float:
        return here(
            [*tool, "add", "-q", "images"],
            [*tool, "push", "-q"],
            [*git, "add", "-A"],
            [*git, "commit", "-q", "-m", f"v{number}"],
            [*git, "tag", f"v{number}"],
        )

    times: Times = {}
    put(range(size))
    label(size)
    times["first version, s"] = version(1)
    put(range(size, size + NEW_CASES))
    label(size + NEW_CASES)
    times["+100 cases, s"] = version(2)
    label(size + NEW_CASES, corrected=size // 2)
    times["one correction, s"] = version(3)
    clone = place.home / "clone"
    subprocess.run(["git", "clone", "-q", f"file://{place.repository}", str(clone)], check=True)
    times["cold checkout, s"] = timed(
        lambda: subprocess.run(
            [*tool, "get", "-q", str(clone), "images", "--rev", "v1", "-o", str(place.home / "got")],
            check=True,
            capture_output=True,
            env=environment,
        )
    )
    times["diff, s"] = timed(lambda: here([*tool, "diff", "v1", "v2"]))
    times["disk: repository and remote, MiB"] = disk(place.repository, place.remote)
    times["files in the remote"] = sum(1 for file in place.remote.rglob("*") if file.is_file())
    return times


def measure_formats(home: Path, *, count: int = 20_000) -> None:
    """Write images, read them all, and read random batches, in four formats; each column is a median of three."""
    import pyarrow as pa  # noqa: PLC0415 - for this section alone
    import pyarrow.parquet as pq  # noqa: PLC0415

    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    table = pa.table({"pixels": pa.array([image.tobytes() for image in images], pa.binary())})
    order = np.random.default_rng(1).permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH)
    folder = home / "files"
    folder.mkdir()

    def write_arrow() -> None:
        with pa.OSFile(str(home / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    def write_files() -> None:
        for number, image in enumerate(images):
            (folder / f"{number}.npy").write_bytes(npy_bytes(image))

    def stack(values: Any) -> np.ndarray[Any, Any]:
        return np.stack([np.frombuffer(value.as_buffer(), dtype=np.uint8) for value in values])

    def from_arrow(rows: Any) -> Any:
        opened = pa.ipc.open_file(pa.memory_map(str(home / "a.arrow"))).read_all().column("pixels")
        return [stack([opened[int(row)] for row in batch]) for batch in rows]

    def from_parquet(rows: Any) -> Any:
        opened = pq.read_table(home / "a.parquet").column("pixels")  # there is no reading of single rows
        return [stack([opened[int(row)] for row in batch]) for batch in rows]

    def from_files(rows: Any) -> Any:
        return [np.stack([np.load(folder / f"{row}.npy") for row in batch]) for batch in rows]

    def from_npy(rows: Any) -> Any:
        opened = np.load(home / "a.npy", mmap_mode="r")
        return [np.array(opened[batch]) for batch in rows]

    writers: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], list[Path]]] = {
        "Arrow IPC": (write_arrow, from_arrow, [home / "a.arrow"]),
        "Parquet, zstd": (
            lambda: pq.write_table(table, home / "a.parquet", compression="zstd"),
            from_parquet,
            [home / "a.parquet"],
        ),
        "one NPY array": (lambda: np.save(home / "a.npy", images), from_npy, [home / "a.npy"]),
        "one file an image": (write_files, from_files, [folder]),
    }
    print(f"\n{count:,} random images of 28 × 28\n\n| | write, s | one batch of 64, ms | an epoch, s | MiB |")
    print("|---|---|---|---|---|")
    for name, (write, read, places) in writers.items():
        written = median(3, write)
        one, every = (median(3, partial(read, rows)) for rows in (order[:1], order))
        print(f"| {name} | {written:.2f} | {one * 1000:.1f} | {every:.2f} | {disk(*places):.0f} |", flush=True)


def seconds(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds and peak memory in MiB of a child process."""
    begun = time.perf_counter()
    peak = work()
    return time.perf_counter() - begun, peak


def run(arguments: list[str]) -> float:
    """Run Python; returns its peak memory in MiB, or that of the largest process it starts.

    What the system says of a child at its end would also count what this process held when it started it.
    """
    child = psutil.Popen([sys.executable, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)})
    peak = 0.0
    while child.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max([peak, *map(_high_water, [child, *child.children(recursive=True)])])
        time.sleep(0.25)
    if child.returncode:
        raise SystemExit(f"{arguments} failed")
    return peak


def _high_water(process: psutil.Process) -> float:
    """The most resident memory in MiB that a process has had; what it has now where the system does not say."""
    status = Path(f"/proc/{process.pid}/status")
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
        return float(found[1]) / 1024.0 if found else 0.0
    return float(process.memory_info().rss) / 2.0**20


def timed(work: Callable[[], Any]) -> float:
    """Seconds that something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def median(times: int, work: Callable[[], Any]) -> float:
    """Median seconds of several rounds."""
    return statistics.median(timed(work) for _ in range(times))


def disk(*places: Path) -> float:
    """MiB on disk, each file once however many names it has."""
    seen: dict[int, int] = {}
    for place in places:
        for file in [place] if place.is_file() else place.rglob("*"):
            if file.is_file():
                found = file.stat()
                seen[found.st_ino] = found.st_blocks * 512
    return sum(seen.values()) / 2**20


if __name__ == "__main__":
    main()
