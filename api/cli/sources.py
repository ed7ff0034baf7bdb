"""What every source of an import has in common: rows with fields and an image.

A source gives its rows one after the other and holds no more than one of them, so that size does not matter. It names
what it cannot read row by row, and guesses nothing. Files are read only from the source's own folder: a list of file
names may come from somebody else, and `../../etc/passwd` is a file name too.
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from api.cli.errors import SetupError

IMAGE_CAP_BYTES = 64 * 1024**2  # what the service takes of one image
FIELDS = (
    *("file", "image", "external_id", "patient", "site", "scanner", "sex", "age_band"),
    *("finding", "evidence", "ai_exposure", "reader", "confirmed_at", "supersedes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: its fields as text, the empty ones left out, and its image, in a file or in hand."""

    number: int
    name: str
    fields: dict[str, str]
    image: Path | bytes
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A row that cannot be imported, and why; `kind` is stable, the service's own problem type where it said so."""

    number: int
    name: str
    kind: str
    detail: str


class Source(ABC):
    """Rows with images, in an order that stays."""

    def __init__(self, path: Path, *, columns: Mapping[str, str], follow: bool = False) -> None:
        self.path, self._follow = path, follow
        self._root = path.parent.resolve()
        self._renamed = dict(columns)

    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the columns, as the source has them."""

    @abstractmethod
    def count(self) -> int:
        """Number of rows, the wrong ones too."""

    @abstractmethod
    def rows(self) -> Iterator[Row | Wrong]:
        """Every row in its order."""

    def field_of(self) -> dict[str, str]:
        """Which field each column fills; columns that fill none are left out.

        Raises:
            SetupError: a column to be renamed is not there.
        """
        found = self.columns()
        missing = [name for name in self._renamed if name not in found]
        if missing:
            raise SetupError(f"there is no column {missing[0]!r} in {self.path}", fix=f"it has {', '.join(found)}")
        taken = set(self._renamed.values())
        return {name: name for name in found if name in FIELDS and name not in taken} | self._renamed

    def _row(self, number: int, record: Mapping[str, Any]) -> Row | Wrong:
        values = {field: record[column] for column, field in self._fields.items() if column in record}
        image: Any = values.pop("image", None)
        fields = {name: text for name, value in values.items() if (text := _text(value))}
        file = fields.pop("file", "")
        if isinstance(image, Mapping):  # as Hugging Face's datasets keep them
            image, file = image.get("bytes"), file or str(image.get("path") or "")
        name = fields.get("external_id") or file or f"row {number}"
        try:
            found, size = self._image(image, file)
            return Row(number=number, name=name, fields=fields, image=found, size=size)
        except _NoImage as error:
            return Wrong(number=number, name=name, kind=error.kind, detail=str(error))

    @cached_property
    def _fields(self) -> dict[str, str]:
        return self.field_of()

    def _image(self, image: Any, file: str) -> tuple[Path | bytes, int]:
        if isinstance(image, str) and image:
            try:
                image = base64.b64decode(image, validate=True)
            except binascii.Error as error:
                raise _NoImage("import/image-unreadable", f"image is not base64: {error}") from None
        if isinstance(image, bytes) and image:
            return image, _checked(len(image), "the image")
        if not file:
            raise _NoImage("import/no-image", "the row names no file and holds no image")
        try:
            return self._locate(file)
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a NUL
            raise _NoImage("import/no-such-file", f"{file!r} cannot be opened: {error}") from None

    def _locate(self, name: str) -> tuple[Path, int]:
        path = (self._root / name).resolve()  # where links lead
        if not self._follow and not path.is_relative_to(self._root):
            raise _NoImage(
                "import/outside-the-folder", f"{name!r} leads out of {self._root}; if that is meant, add --follow"
            )
        if not path.is_file():
            raise _NoImage("import/no-such-file", f"there is no file {name!r} in {self._root}")
        return path, _checked(path.stat().st_size, repr(name))


class _NoImage(Exception):
    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def _checked(size: int, name: str) -> int:
    if size > IMAGE_CAP_BYTES:
        raise _NoImage("import/image-too-large", f"{name} is larger than {IMAGE_CAP_BYTES // 1024**2} MiB")
    return size


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case date():  # and datetime
            return value.isoformat()
        case float() if value.is_integer():
            return str(int(value))  # a column of whole numbers with holes in it
        case _:
            return str(value).strip()
