"""The kinds of source: a folder with a CSV, NDJSON, an NPZ as MedMNIST makes them, Parquet.

Each reads from the front to the end and keeps nothing; one that is damaged is a SetupError that names it.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from api.cli.errors import SetupError
from api.cli.sources import FIELDS, IMAGE_CAP_BYTES, Row, Source, Wrong

if TYPE_CHECKING:
    import numpy as np

FORMATS = {".csv": "csv", ".npz": "npz", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet"}
INDEX = "index.csv"


def open_source(
    path: Path, *, kind: str | None = None, columns: Mapping[str, str] | None = None, follow: bool = False
) -> Source:
    """Open a source; `kind` is csv, npz, ndjson or parquet, by its name where None.

    Raises:
        SetupError: there is nothing of that kind.
    """
    if path.is_dir():
        path, kind = path / INDEX, kind or "csv"
        if not path.is_file():
            raise SetupError(f"the folder has no {INDEX}", fix="name the CSV itself: overread import FOLDER/LIST.csv")
    kind = kind or FORMATS.get(path.suffix.lower())
    known: dict[str, type[Source]] = {"csv": Csv, "npz": Npz, "ndjson": Ndjson, "parquet": Parquet}
    if kind not in known:
        raise SetupError(f"what is {path.name}?", fix=f"say so with --format: {', '.join(known)}")
    return known[kind](path, columns=columns or {}, follow=follow)


class Csv(Source):
    """A CSV in UTF-8 with a header, beside the images it names; commas, semicolons or tabs, as the header has them."""

    def columns(self) -> list[str]:
        """Names in the header."""
        with self._reader() as reader:
            return list(reader.fieldnames or ())

    def count(self) -> int:
        """Number of rows after the header."""
        with self._reader() as reader:
            return sum(1 for _ in reader)

    def rows(self) -> Iterator[Row | Wrong]:
        """Every row after the header; the first is number 1."""
        with self._reader() as reader:
            for number, record in enumerate(reader, start=1):
                if None in record or None in record.values():
                    detail = "the row has more or fewer cells than the header"
                    yield Wrong(number=number, name=f"row {number}", kind="import/row-unreadable", detail=detail)
                else:
                    yield self._row(number, record)

    @contextmanager
    def _reader(self) -> Iterator[csv.DictReader[str]]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                first = file.readline()
                file.seek(0)
                reader = csv.DictReader(file, delimiter=max(",;\t", key=first.count), strict=True)
                names = list(reader.fieldnames or ())
                if not names or len(set(names)) < len(names):
                    raise SetupError(f"{self.path.name} needs a header that names each column once: {first.strip()!r}")
                yield reader
        except (UnicodeDecodeError, csv.Error) as error:
            raise SetupError(f"{self.path.name} cannot be read: {error}", fix="save it as CSV in UTF-8") from None


class Ndjson(Source):
    """One JSON object a line; the image in a file beside it, or in the row as base64. Rows are numbered as lines."""

    _LONGEST = 2 * IMAGE_CAP_BYTES

    def columns(self) -> list[str]:
        """Names in the first row; the fields this program knows may come later."""
        first = next((record for _, record in self._records() if isinstance(record, dict)), {})
        return list(dict.fromkeys([*first, *FIELDS, *self._renamed]))

    def count(self) -> int:
        """Number of rows."""
        return sum(1 for _ in self._lines())

    def rows(self) -> Iterator[Row | Wrong]:
        """Every row."""
        for number, record in self._records():
            if isinstance(record, dict):
                yield self._row(number, record)
            else:
                yield Wrong(number=number, name=f"row {number}", kind="import/row-unreadable", detail=record)

    def _lines(self) -> Iterator[tuple[int, bytes | None]]:
        with self.path.open("rb") as file:
            for number in itertools.count(1):
                line = file.readline(self._LONGEST)
                if not line:
                    return
                too_long = False
                while not line.endswith(b"\n") and (more := file.readline(self._LONGEST)):
                    line, too_long = more, True
                if too_long:
                    yield number, None
                elif line.strip():
                    yield number, line

    def _records(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        for number, line in self._lines():
            if line is None:
                yield number, f"longer than {self._LONGEST} bytes"
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, f"not a JSON object: {error}"
                continue
            yield number, record if isinstance(record, dict) else "a row is a JSON object"


class Npz(Source):
    """`train_images`, `train_labels` and so on, as MedMNIST makes them (Yang et al., Scientific Data 10:41, 2023).

    The source's split is kept as nothing but a part of the row's name: which patients are tested on is decided by the
    service. Images stream out of the archive one by one.
    """

    def columns(self) -> list[str]:
        """What an array of images and one of labels say."""
        return ["external_id", "finding", "image"]

    def count(self) -> int:
        """Number of images."""
        with self._archive() as archive:
            return sum(self._shape(archive, split)[0] for split in self._splits(archive))

    def rows(self) -> Iterator[Row | Wrong]:
        """Every image of every split, in the archive's order."""
        number = 0
        with self._archive() as archive:
            for split in self._splits(archive):
                labels = self._labels(split, rows=self._shape(archive, split)[0])
                for index, image in enumerate(self._images(archive, split)):
                    number += 1
                    name = f"{self.path.stem}/{split}/{index}"
                    yield self._row(number, {"external_id": name, "finding": str(labels[index]), "image": image})

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            raise SetupError(f"{self.path.name} is no NPZ, or a damaged one: {error}") from None

    def _splits(self, archive: zipfile.ZipFile) -> list[str]:
        names = [name.removesuffix("_images.npy") for name in archive.namelist() if name.endswith("_images.npy")]
        if not names:
            raise SetupError(f"{self.path.name} has no arrays named like train_images and train_labels")
        return names

    def _shape(self, archive: zipfile.ZipFile, split: str) -> tuple[int, ...]:
        with archive.open(f"{split}_images.npy") as stream:
            return self._header(stream)[0]

    def _header(self, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        import numpy as np  # noqa: PLC0415 - only this kind of source needs it

        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(stream)
        if fortran_order or dtype not in (np.dtype(np.uint8), np.dtype("<u2")):
            raise SetupError(
                f"images of {self.path.name} are {dtype}, fortran order {fortran_order}: need uint8 or uint16"
            )
        if len(shape) not in (3, 4):
            known = "(N, H, W), (N, H, W, 3) or, of volumes, (N, D, H, W)"
            raise SetupError(f"images of {self.path.name} have shape {shape}: need {known}")
        return tuple(shape), dtype

    def _images(self, archive: zipfile.ZipFile, split: str) -> Iterator[bytes]:
        import numpy as np  # noqa: PLC0415

        with archive.open(f"{split}_images.npy") as stream:
            shape, dtype = self._header(stream)
            size = int(np.prod(shape[1:])) * dtype.itemsize
            for _ in range(shape[0]):
                pixels = np.frombuffer(stream.read(size), dtype=dtype).reshape(shape[1:])
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, pixels, version=(1, 0), allow_pickle=False)
                yield buffer.getvalue()

    def _labels(self, split: str, *, rows: int) -> list[Any]:
        import numpy as np  # noqa: PLC0415

        with np.load(self.path, allow_pickle=False) as arrays:
            if f"{split}_labels" not in arrays:
                raise SetupError(f"{self.path.name} has {split}_images but no {split}_labels")
            labels = arrays[f"{split}_labels"]
        if labels.size != rows:
            raise SetupError(
                f"{split}_labels of {self.path.name} has shape {labels.shape} for {rows} images: need one label each",
                fix="for several findings a case give a CSV with a column `finding`, such as effusion+pneumonia",
            )
        return list(labels.reshape(rows).tolist())


class Parquet(Source):
    """A Parquet file; the image as bytes in a column, or in a file beside it."""

    def columns(self) -> list[str]:
        """Names of the columns."""
        with self._file() as file:
            return list(file.schema_arrow.names)

    def count(self) -> int:
        """Number of rows, from the footer."""
        with self._file() as file:
            return int(file.metadata.num_rows)

    def rows(self) -> Iterator[Row | Wrong]:
        """Every row; only the columns that fill a field are read."""
        number = 0
        with self._file() as file:
            for batch in file.iter_batches(batch_size=16, columns=list(self._fields)):
                for record in batch.to_pylist():
                    number += 1
                    yield self._row(number, record)

    @contextmanager
    def _file(self) -> Iterator[Any]:
        import pyarrow  # noqa: PLC0415 - only this kind of source needs it
        import pyarrow.parquet  # noqa: PLC0415

        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                yield file
        except pyarrow.ArrowException as error:
            raise SetupError(f"{self.path.name} is no Parquet, or a damaged one: {error}") from None
