"""Which model serves each line: loaded by digest from the blob store, kept in step with the record.

Invariant: a model serves only while the record names it, and only with the bytes the record names. A new champion is
loaded and warmed before it takes over in one assignment, and the old one answers what it was given; where the new one
cannot be loaded, the old one stays. It asks the record each second, and at each promotion (LISTEN).

Each hour the files of what serves are read again: weights altered at rest stop nobody who has them in memory, and raise
an alarm. It shows in `/health` and in `overread doctor` until it is over, and is the one thing written down here, once.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from pipelines import network
from pipelines.images import Pixels, to_network_input
from pipelines.predict import Model
from pipelines.protocol import InputSpec
from registry import audit, blobs, candidates, db, lines, promotions
from registry.errors import RegistryError
from workers.batching import Batcher, Closed, Scored
from workers.settings import WorkerSettings

POLL_SECONDS = 1.0
RETRY_SECONDS = 30.0
"""A champion that could not be loaded is tried again after this long."""
LARGEST_BATCH = 16
CHECK_SECONDS = 3600.0
"""How often the weights of what serves are read again from where they lie."""

log = logging.getLogger(__name__)


class ChampionsError(Exception):
    """No prediction can be made; the message says why."""


class UnknownLine(ChampionsError):
    """No line has this name."""


class NoChampion(ChampionsError):
    """The line has no champion yet, or its champion could not be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Serving:
    """A champion that is loaded and answers."""

    line: str
    candidate: candidates.Candidate
    model: Model
    input: InputSpec
    batcher: Batcher
    one_heat_map: threading.Lock
    """Held while a heat map is made: it hooks into the layers of its own copy of the network."""

    def score(self, pixels: Pixels) -> Scored:
        """Score one stored image, (H, W) or (H, W, 3). Raises Closed where another champion has taken over."""
        return self.batcher.score(lambda: to_network_input([pixels], self.input)[0])

    def heat_map(self, pixels: Pixels, *, finding: str) -> NDArray[np.float32]:
        """Show where the network looked for `finding`: (rows, columns) float32 in [0, 1]."""
        image = to_network_input([pixels], self.input)[0]
        with self.one_heat_map:
            return self.model.heat_map(image, self.model.classes.index(finding))


class Champions:
    """The serving model of each line, followed by one thread. Safe to share by threads."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._serving: dict[str, Serving | None] = {}
        self._failed: dict[tuple[str, int], float] = {}
        self._alarms: dict[str, str] = {}
        self._refreshing = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="champions", daemon=True)

    def start(self) -> None:
        """Load what the record names now, as far as the record can be asked, and follow it from then on."""
        try:
            with db.connect(self._settings.database_url) as connection:
                self.refresh(connection)
        except psycopg.Error as error:
            log.warning("the record cannot be asked for champions yet: %s", error)
        self._thread.start()

    def stop(self) -> None:
        """Stop following, and let the models answer what they were given."""
        self._stopping.set()
        self._thread.join(timeout=5)  # it may be loading a model that nobody needs any more
        for serving in self._serving.values():
            if serving is not None:
                serving.batcher.close()

    def lines(self) -> dict[str, Serving | None]:
        """Return every line known and what serves it."""
        return dict(self._serving)

    def alarms(self) -> dict[str, str]:
        """Return, by line, what somebody has to look at: weights that cannot be loaded, or were altered at rest."""
        return dict(self._alarms)

    def serving(self, line: str) -> Serving:
        """Return what serves a line now. Raises UnknownLine, NoChampion."""
        if line not in self._serving:
            with db.connect(self._settings.database_url) as connection:
                self.refresh(connection)  # the line may be younger than the last look
        if line not in self._serving:
            raise UnknownLine(f"no line is called {line!r}")
        serving = self._serving[line]
        if serving is None:
            raise NoChampion(f"{line} has no champion that can serve: promote a candidate first, or see the log")
        return serving

    def score(self, line: str, pixels: Pixels) -> tuple[Serving, Scored]:
        """Score one stored image with the champion of now. Raises UnknownLine, NoChampion."""
        while True:
            serving = self.serving(line)
            try:
                return serving, serving.score(pixels)
            except Closed:  # it was replaced between the two calls; the next one is in its place already
                continue

    def refresh(self, connection: psycopg.Connection[Any]) -> None:
        """Bring what serves in step with the record."""
        with self._refreshing:
            for line in lines.list_lines(connection):
                candidate = promotions.champion(connection, line.line_id)
                current = self._serving.setdefault(line.name, None)
                if candidate is not None and (current is None or _differ(current.candidate, candidate)):
                    self._swap(connection, line.name, candidate)
            connection.rollback()

    def check_weights(self, connection: psycopg.Connection[Any]) -> None:
        """Read the weights of all that serves again, and raise an alarm where they are not what was loaded."""
        for line, serving in self.lines().items():
            if serving is None:
                continue
            try:
                blobs.read(self._settings.blob_root, serving.candidate.weights_digest)
            except (OSError, RegistryError) as error:
                self._raise_alarm(connection, line, serving.candidate, f"{error}; it goes on serving from memory")
            else:
                self._alarms.pop(line, None)

    def _raise_alarm(
        self, connection: psycopg.Connection[Any], line: str, candidate: candidates.Candidate, reason: str
    ) -> None:
        """Show an alarm and write it into the audit trail, once while it lasts."""
        alarm = f"candidate {candidate.number}: {reason}"
        if self._alarms.get(line) == alarm:
            return
        log.error("line %s: %s", line, alarm)
        audit.record(
            connection,
            actor=audit.SYSTEM,
            action="weights:alarm",
            subject=f"candidate/{candidate.candidate_id}",
            details={"weights": candidate.weights_digest, "reason": reason},
        )
        connection.commit()
        self._alarms[line] = alarm

    def _swap(self, connection: psycopg.Connection[Any], line: str, candidate: candidates.Candidate) -> None:
        attempt = (line, candidate.candidate_id)
        if time.monotonic() < self._failed.get(attempt, 0.0):
            return
        try:
            new = self._load(line, candidate)
        except (OSError, ValueError, KeyError, RegistryError) as error:
            self._failed[attempt] = time.monotonic() + RETRY_SECONDS
            reason = f"it cannot serve, nothing is swapped: {type(error).__name__}: {error}"
            self._raise_alarm(connection, line, candidate, reason)
            return
        sys.audit("overread.fault", "champion.swap.before")
        old, self._serving[line] = self._serving[line], new
        self._alarms.pop(line, None)
        log.info("line %s: candidate %s serves, weights %s", line, candidate.number, candidate.weights_digest)
        if old is not None:
            old.batcher.close()

    def _load(self, line: str, candidate: candidates.Candidate) -> Serving:
        weights = blobs.path_of(self._settings.blob_root, candidate.weights_digest)
        model = Model.from_files(weights, metadata=candidate.metadata, expected_digest=candidate.weights_digest)
        spec = model.architecture.input
        for size in (1, LARGEST_BATCH):  # the first pass of each size pays for allocations
            model.scores(np.zeros((size, spec.channels, *spec.shape), dtype=np.float32))
        return Serving(
            line=line,
            candidate=candidate,
            model=model,
            input=spec,
            batcher=Batcher(model.scores, maximum=LARGEST_BATCH),
            one_heat_map=threading.Lock(),
        )

    def _follow(self) -> None:
        network.monai("networks.nets")  # takes seconds: the first promotion should not wait for it
        check_at = time.monotonic() + CHECK_SECONDS
        while not self._stopping.is_set():
            try:
                with db.connect(self._settings.database_url) as connection:
                    connection.execute("LISTEN overread_promotions")
                    connection.commit()
                    while not self._stopping.is_set():
                        self.refresh(connection)
                        if time.monotonic() >= check_at:
                            self.check_weights(connection)
                            check_at = time.monotonic() + CHECK_SECONDS
                        for _ in connection.notifies(timeout=POLL_SECONDS, stop_after=1):
                            pass
            except psycopg.Error as error:
                log.warning("the record cannot be asked for champions, those of now stay: %s", error)
                self._stopping.wait(POLL_SECONDS)


def _differ(one: candidates.Candidate, other: candidates.Candidate) -> bool:
    return (one.candidate_id, one.weights_digest) != (other.candidate_id, other.weights_digest)
