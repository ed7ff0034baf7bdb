"""Micro-batches: many requests at once, one pass through the network.

Invariant: every submitted image gets its scores or an error, also when the batcher is closing; after `close` no image
is taken. A batch waits for company only while requests are on their way, so that a lone client pays nothing.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
ScoreBatch = Callable[[Scores], Scores]
"""(N, C, H, W) float32 in [0, 1] -> (N, classes) float32 in [0, 1]."""


class Closed(RuntimeError):
    """This batcher takes no more images; ask for the current one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Scores of one image, (classes,) float32 in [0, 1], and the size of the batch it was scored in."""

    scores: Scores
    batch: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    image: Scores
    answer: Future[Scored]


class Batcher:
    """One thread that scores what is waiting, at most `maximum` images at a time. Safe to share by threads."""

    def __init__(self, score: ScoreBatch, *, maximum: int = 16, wait_seconds: float = 0.004) -> None:
        self._score = score
        self._maximum = maximum
        self._wait_seconds = wait_seconds
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._expected = 0
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def score(self, prepare: Callable[[], Scores]) -> Scored:
        """Score the image that `prepare` returns, (C, H, W) float32 in [0, 1]; blocks until it is done.

        The batch waits for `prepare`, so it should be quick. Raises Closed, and whatever `prepare` or the network does.
        """
        with self._changed:
            if self._closed:
                raise Closed
            self._expected += 1
        try:
            waiting = _Waiting(prepare(), Future())
        except BaseException:
            self._no_longer_expect(1)
            raise
        self._queue.put(waiting)
        return waiting.answer.result()

    def close(self) -> None:
        """Take no more images, score those that were taken, and end the thread."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.wait_for(lambda: self._expected == 0)
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = self._gather(first)
            try:
                scores = self._score(np.stack([waiting.image for waiting in batch]))
            except Exception as error:  # noqa: BLE001 - handed to every request of the batch
                for waiting in batch:
                    waiting.answer.set_exception(error)
            else:
                for waiting, row in zip(batch, scores, strict=True):
                    waiting.answer.set_result(Scored(scores=row, batch=len(batch)))
            finally:
                self._no_longer_expect(len(batch))

    def _gather(self, first: _Waiting) -> list[_Waiting]:
        batch = [first]
        deadline = time.monotonic() + self._wait_seconds
        while len(batch) < min(self._maximum, self._expected):
            try:
                waiting = self._queue.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                break
            assert waiting is not None, "the end comes only when nothing is expected"
            batch.append(waiting)
        return batch

    def _no_longer_expect(self, count: int) -> None:
        with self._changed:
            self._expected -= count
            self._changed.notify_all()
