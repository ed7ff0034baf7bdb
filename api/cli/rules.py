"""From a row of a source to what is sent: findings by their names here, options for what the source does not say.

Nothing is guessed. The service's own models judge the row before anything of it is sent, so that a dry run refuses what
the service would, and a row with an unknown finding leaves no unconfirmed case behind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from api.cli.sources import IMAGE_CAP_BYTES, Row, Wrong
from registry.errors import UnknownFinding
from registry.findings import JOIN, canonical

if TYPE_CHECKING:
    from pydantic import BaseModel

CASE_FIELDS = ("site", "patient", "scanner", "sex", "age_band", "external_id")
DIAGNOSIS_FIELDS = ("finding", "evidence", "ai_exposure", "reader", "confirmed_at", "supersedes")
MEDIA_TYPES = {".png": "image/png", ".npy": "application/x-npy", ".dcm": "application/dicom"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A row that may be sent: the form of its case, and its diagnosis; None where the row is to stay unconfirmed."""

    number: int
    name: str
    image: Path | bytes
    size: int
    media_type: str
    case: dict[str, str]
    diagnosis: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A row with its image in hand: the id it is sent under, and the key that makes its diagnosis count once."""

    row: Ready
    image: bytes
    external_id: str
    key: str


class Rules:
    """How the rows of one import are read."""

    def __init__(
        self,
        *,
        classes: Sequence[str],
        several: bool = False,
        findings: Mapping[str, str],
        defaults: Mapping[str, str | None],
        unconfirmed: bool,
    ) -> None:
        self._classes, self._several, self._findings = classes, several, findings
        self._defaults = {name: value for name, value in defaults.items() if value}
        self._unconfirmed = unconfirmed
        self._case_form, self._diagnosis = _models()

    def judge(self, row: Row) -> Ready | Wrong:
        """Make a row ready to be sent, or say what is wrong with it."""
        fields = self._defaults | row.fields
        case = {name: fields[name] for name in CASE_FIELDS if name in fields}
        diagnosis: dict[str, Any] | None = {name: fields[name] for name in DIAGNOSIS_FIELDS if name in fields}
        if "finding" not in row.fields and self._unconfirmed:
            diagnosis = None
        wrong = _misses(self._case_form, case)
        if diagnosis is not None:
            wrong += self._judge(diagnosis)
        if wrong:
            kind, detail = wrong[0][0], "; ".join(text for _, text in wrong)
            return Wrong(number=row.number, name=row.name, kind=kind, detail=detail)
        suffix = row.image.suffix.lower() if isinstance(row.image, Path) else ""
        return Ready(
            number=row.number,
            name=row.name,
            image=row.image,
            size=row.size,
            media_type=MEDIA_TYPES.get(suffix, "application/octet-stream"),
            case=case,
            diagnosis=diagnosis,
        )

    def _judge(self, diagnosis: dict[str, Any]) -> list[tuple[str, str]]:
        if "finding" not in diagnosis:
            fix = "name its column with --map COLUMN=finding, or send such rows unconfirmed with --unconfirmed"
            return [("/problems/invalid-request", f"finding: missing; {fix}")]
        given = diagnosis["finding"]
        try:
            diagnosis["finding"] = canonical(self._named(given), classes=self._classes, several=self._several)
        except UnknownFinding as refusal:
            return [("/problems/unknown-finding", f"{refusal}: say which with --finding '{given}=…'")]
        return _misses(self._diagnosis, diagnosis)

    def _named(self, given: str) -> str:
        """A label of the source by its name here; of several findings each, where nothing is said of all of them."""
        if given in self._findings or not self._several:
            return self._findings.get(given, given)
        return JOIN.join(self._findings.get(part.strip(), part) for part in given.split(JOIN))


def load(row: Ready, *, line: str) -> Loaded:
    """Read a row's image. Without an id of its own the row is known by its image: the same image is the same case.

    The key stands for all that is said of the row but the patient, who must not be found by trying. Raises OSError.
    """
    image = row.image if isinstance(row.image, bytes) else _read(row.image)
    digest = hashlib.sha256(image).hexdigest()
    external_id = row.case.get("external_id") or f"sha256:{digest}"
    case = {name: value for name, value in row.case.items() if name != "patient"}
    said = json.dumps(["import", line, external_id, digest, case, row.diagnosis], sort_keys=True)
    return Loaded(row=row, image=image, external_id=external_id, key=hashlib.sha256(said.encode()).hexdigest())


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(IMAGE_CAP_BYTES + 1)


def _models() -> tuple[type[BaseModel], type[BaseModel]]:
    from pydantic import create_model  # noqa: PLC0415 - only an import needs the service's models

    from api.v1.cases import submit_case  # noqa: PLC0415
    from api.v1.confirmations import NewConfirmation  # noqa: PLC0415

    hints = get_type_hints(submit_case, include_extras=True)
    form: dict[str, Any] = {name: (hints[name], ... if name == "site" else None) for name in CASE_FIELDS}
    return create_model("CaseForm", **form), NewConfirmation


_OPTIONS: Mapping[str, str] = {"site": "--site", "evidence": "--evidence", "reader": "--reader"}


def _misses(model: type[BaseModel], values: Mapping[str, Any]) -> list[tuple[str, str]]:
    from pydantic import ValidationError  # noqa: PLC0415

    if any("\0" in str(value) for value in values.values()):
        return [("/problems/invalid-request", "a text holds a NUL character")]
    try:
        model.model_validate(values)
    except ValidationError as error:
        return [("/problems/invalid-request", _sentence(item)) for item in error.errors()]
    return []


def _sentence(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing" and name in _OPTIONS:
        return f"{name}: missing; name its column with --map COLUMN={name}, or say it of all rows with {_OPTIONS[name]}"
    return f"{name}: {item['msg']}"
