"""A hospital for the tests of freezing: confirmed cases with images on disk, and freezes of them as jobs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import images, synthetic
from pipelines.images import Pixels
from pipelines.protocol import parse
from pipelines.types import CaseId, Confirmation, ConfirmedCase

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL_TEXT = (ROOT / "pipelines" / "protocols" / "cxr-pneumonia.yaml").read_text(encoding="utf-8")
# Made-up radiographs look more alike than real ones: whether copies wait is for the tests that are about it.
PROTOCOL = parse(PROTOCOL_TEXT).model_copy(update={"data_quality": None})
LINE = PROTOCOL.line


class Hospital:
    """Confirmed cases with images on disk, and freezes of them as jobs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.pictures, self.labels = synthetic.radiographs(140, rng=np.random.default_rng(0))
        self.repository, self.remote, self.blobs = home / "data", home / "remote", home / "blobs"
        for picture in self.pictures:
            self._keep(picture)

    def replace(self, index: int, picture: Pixels) -> None:
        """Let a case have another picture from the start."""
        self.pictures[index] = picture
        self._keep(picture)

    def _keep(self, picture: Pixels) -> None:
        data = images.npy_bytes(picture)
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest[:2]).mkdir(parents=True, exist_ok=True)
        (self.blobs / digest[:2] / digest).write_bytes(data)

    def case(self, index: int) -> ConfirmedCase:
        said = Confirmation(
            confirmation_id=index + 1,
            finding=PROTOCOL.classes[self.labels[index]],
            evidence="single_read",
            ai_exposure="aided" if index % 7 == 3 else "blind",
            submitter="north" if index % 4 else "south",
            reader="ana",
            confirmed_on="2026-03-02",
        )
        return ConfirmedCase(
            case_id=CaseId(index + 1),
            image_digest=images.image_digest(self.pictures[index]),
            patient=f"p{index // 2}",
            site="a",
            scanner=None,
            sex=None,
            age_band=None,
            confirmations=(said,),
        )

    def job(self, number: int, *, n: int, previous: int | None = None, **changes: Any) -> Path:
        directory = self.home / f"job-{number}"
        directory.mkdir(exist_ok=True)
        rows = "".join(json.dumps(asdict(self.case(index))) + "\n" for index in range(n))
        (directory / "cases.ndjson").write_text(rows, encoding="utf-8")
        config = {
            "kind": "freeze",
            "repository": str(self.repository),
            "remote": str(self.remote),
            "line": LINE,
            "number": number,
            "protocol": PROTOCOL.document(),
            "split_key": "0b" * 32,
            "cases": str(directory / "cases.ndjson"),
            "blobs": str(self.blobs),
            "previous": previous,
            "whole": previous is None,
            "gone": [],
            "last_confirmation_id": n,
            **changes,
        }
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return directory

    def freeze(self, number: int, *, n: int, previous: int | None = None, **changes: Any) -> dict[str, Any]:
        directory = self.job(number, n=n, previous=previous, **changes)
        with start(directory) as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        result: dict[str, Any] = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        return result


def start(job: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.freeze", str(job)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def moved(home: Path, target: Path) -> Hospital:
    """The same hospital elsewhere: data repository, remote and blobs have all moved."""
    shutil.copytree(home, target, ignore=shutil.ignore_patterns("job-*"))
    return Hospital(target)
