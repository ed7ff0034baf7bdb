"""Heavy work that is not science, each in a process of its own so that it can be watched and killed.

Bringing a dataset version's files here, and telling MLflow what the record already says. MLflow follows the record and
never leads it: every errand may be run again, by two at once, and ends the same.

    python -m workers.errands JOB_DIR        # config.json in, with "errand" naming which; result.json out
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines import job

MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
"""By itself MLflow's client asks a dead server for five minutes; here the record tries again, after a pause."""


def check_out(_directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Bring a dataset version's files to a folder of checkouts; the result names its path."""
    from pipelines.data_repository import VersionErased  # noqa: PLC0415 - heavy, and for this errand alone
    from pipelines.dataset import checkout  # noqa: PLC0415 - heavy, and for this errand alone

    try:
        path = checkout(
            Path(config["repository"]),
            line=config["line"],
            number=config["number"],
            into=Path(config["into"]),
            digest=config["digest"],
        )
    except VersionErased as refusal:
        raise job.Refused(str(refusal)) from refusal
    return {"path": str(path)}


def mirror_candidate(_directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Log a candidate to MLflow and register it as a version of its line's model; the result names the version."""
    import numpy as np  # noqa: PLC0415 - heavy, and for this errand alone

    from pipelines import predict  # noqa: PLC0415 - heavy, and for this errand alone
    from registry import mirror  # noqa: PLC0415 - heavy, and for this errand alone

    model = predict.Model.from_files(
        Path(config["weights"]), metadata=config["metadata"], expected_digest=config["weights_digest"]
    )
    seen = model.architecture
    with Path(config["lock"]).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would make two versions of one candidate
        version = mirror.log_candidate(
            config["tracking_uri"],
            line=config["line"],
            number=config["number"],
            run_name=config["run_name"],
            params=config["params"],
            metrics_history=config["history"],
            dataset=config["dataset"],
            module=predict.export(model),
            input_example=np.zeros((2, seen.in_channels, *seen.shape), dtype=np.float32),
            weights=Path(config["weights"]),
            metadata=config["metadata"],
            tags=config["tags"],
        )
    return {"version": version}


def set_aliases(_directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Point MLflow's aliases at the versions that the record names."""
    from registry import mirror  # noqa: PLC0415 - heavy, and for this errand alone

    mirror.set_aliases(
        config["tracking_uri"],
        line=config["line"],
        champion=config["champion"],
        previous=config["previous"],
        challenger=config["challenger"],
    )
    return {}


ERRANDS: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "check_out": check_out,
    "mirror_candidate": mirror_candidate,
    "set_aliases": set_aliases,
}


def main(arguments: list[str]) -> int:
    """Run the errand that a job directory describes."""
    job.end_with_parent()
    for name, value in MLFLOW_PATIENCE.items():
        os.environ.setdefault(name, value)

    def work(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
        os.nice(config.get("niceness", 0))
        return ERRANDS[config["errand"]](directory, config)

    return job.run(arguments, work=work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
