"""How often somebody may do something: token buckets in the memory of this process.

Several API processes grant several times as much, and a restart forgets; what has to be exact is not kept here.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from api.errors import Refusal


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class Buckets:
    """One bucket a key: `burst` at once, then `per_second`. The least recently used key is forgotten first."""

    def __init__(
        self, *, per_second: float, burst: float, most: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._most, self._clock = per_second, burst, most, clock
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: Hashable, *, detail: str) -> None:
        """Take one of the key's. Raises Refusal (too-many-requests) when it has none left."""
        with self._lock:
            bucket, now = self._buckets.get(key), self._clock()
            if bucket is None:
                bucket = self._buckets[key] = _Bucket(left=self._burst, at=now)
                if len(self._buckets) > self._most:
                    self._buckets.popitem(last=False)
            self._buckets.move_to_end(key)
            bucket.left = min(self._burst, bucket.left + (now - bucket.at) * self._per_second)
            bucket.at = now
            if bucket.left >= 1:
                bucket.left -= 1
                return
            seconds = (1 - bucket.left) / self._per_second
        raise Refusal("too-many-requests", detail, retry_after_seconds=math.ceil(seconds))

    def give_back(self, key: Hashable) -> None:
        """Return one that was taken: what it was taken for did not count."""
        with self._lock:
            if (bucket := self._buckets.get(key)) is not None:
                bucket.left = min(self._burst, bucket.left + 1)
