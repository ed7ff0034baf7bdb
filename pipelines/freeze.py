"""Freeze a dataset version, in a process of its own: see `pipelines.freezing`.

    python -m pipelines.freeze JOB_DIR        # config.json in; result.json and progress.jsonl out

Starting is half of what a small version costs: DVC is imported beside all else, from the first moment on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import job
from pipelines.data_repository import Early, FreezeRefused, start_early

if TYPE_CHECKING:
    from pipelines.types import ConfirmedCase


def main(arguments: list[str]) -> int:
    """Run the freeze that a job directory describes."""
    job.hide_pandas()
    return job.run(arguments, work=_work)


def confirmed_case(row: Mapping[str, Any]) -> ConfirmedCase:
    """Make a confirmed case from plain JSON values, as `cases.ndjson` has them. Raises TypeError on other fields."""
    from pipelines.types import Confirmation, ConfirmedCase  # noqa: PLC0415 - as below

    said = tuple(Confirmation(**item) for item in row["confirmations"])
    spacing = row["spacing_mm"]
    return ConfirmedCase(**{**row, "confirmations": said, "spacing_mm": None if spacing is None else tuple(spacing)})


def as_configured(
    config: Mapping[str, Any],
    *,
    tell: Callable[[str], None] = lambda _stage: None,
    keep_going: Callable[[], None] = lambda: None,
    early: Early | None = None,
) -> dict[str, Any]:
    """Freeze what a job's config.json describes; see `pipelines.freezing.freeze`."""
    from pipelines.freezing import freeze  # noqa: PLC0415 - half a second, in which DVC is being imported as well
    from pipelines.protocol import from_document  # noqa: PLC0415
    from pipelines.settling import Change  # noqa: PLC0415

    def cases() -> Iterator[ConfirmedCase]:
        with Path(config["cases"]).open(encoding="utf-8") as rows:
            yield from (confirmed_case(json.loads(row)) for row in rows)

    return freeze(
        Path(config["repository"]),
        remote=config["remote"],
        line=config["line"],
        number=config["number"],
        protocol=from_document(config["protocol"]),
        split_key=bytes.fromhex(config["split_key"]),
        change=Change(
            cases=cases,
            whole=config["whole"],
            gone=config["gone"],
            last_confirmation_id=config["last_confirmation_id"],
        ),
        blobs=Path(config["blobs"]),
        previous=config["previous"],
        tell=tell,
        keep_going=keep_going,
        early=early,
    )


def _work(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    keep_going = job.orphan_watch()
    with start_early(Path(config["repository"])) as early:
        try:
            return as_configured(
                config,
                tell=lambda stage: job.append_progress(directory, {"stage": stage}),
                keep_going=keep_going,
                early=early,
            )
        except FreezeRefused as refusal:
            raise job.Refused(str(refusal)) from refusal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
