"""Streams that tell open pages when what they show has changed (server-sent events, WHATWG HTML 9.2).

Invariant: an open page holds no thread and no connection to the record. However many there are, one watcher of this
process looks once a second, with one connection for some milliseconds, and not at all while nobody listens. A stream
says only that something has changed; the page then asks for itself anew, and what it may show is decided there.

A stream is no use of its session, and ends with it. When the record does not answer, all streams end: nobody could
say any more whether their sessions stand. Whoever is told nothing loads the page again, and finds the same.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import psycopg
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.errors import RETRY_AFTER_SECONDS, Refusal
from registry import changes, db, sessions

CHANGED, ENDED, LATER = b"event: changed\ndata:\n\n", b"event: ended\ndata:\n\n", b"event: later\ndata:\n\n"
_LAST = (ENDED, LATER)
STILL_HERE = b": still here\n\n"
"""So that whoever is between keeps the connection, and one that broke shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many streams one process holds open, in all and for one person, and how often it looks and speaks."""

    most: int = 200
    most_each: int = 12
    look_seconds: float = 1.0
    silence_seconds: float = 15.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Listener:
    user_id: int
    token: str
    subject: str
    mark: str
    says: bytes = b""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, event: bytes) -> None:
        if self.says not in _LAST:
            self.says = event
        self.news.set()


class Live:
    """The streams of this process, and the one who watches for them."""

    def __init__(self, pool: db.Pool, *, limits: sessions.Limits, bounds: Bounds | None = None) -> None:
        self._pool, self._limits, self._bounds = pool, limits, bounds or Bounds()
        self._listeners: set[_Listener] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._closing = False
        self._alone = CapacityLimiter(1)  # a thread beside those of the requests, which may all be taken

    def __len__(self) -> int:
        """How many streams are open."""
        return len(self._listeners)

    def follow(
        self, *, user_id: int, token: str, subject: str, mark: str, headers: Mapping[str, str]
    ) -> StreamingResponse:
        """Open a stream about a subject whose `mark` the page was made with. Call it on the event loop.

        Raises Refusal (too-many-requests) where too many are open.
        """
        mine = sum(listener.user_id == user_id for listener in self._listeners)
        if self._closing or len(self._listeners) >= self._bounds.most or mine >= self._bounds.most_each:
            detail = "Too many pages follow what goes on; load this one again to see how it stands."
            raise Refusal("too-many-requests", detail, retry_after_seconds=RETRY_AFTER_SECONDS)
        listener = _Listener(user_id=user_id, token=token, subject=subject, mark=mark)
        self._listeners.add(listener)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        return _Stream(self, listener, headers=headers)

    def close(self) -> None:
        """End every stream and open no more; a process that stops does not wait for pages that somebody left open."""
        self._closing = True
        for listener in self._listeners:
            listener.tell(LATER)

    async def told(self, listener: _Listener) -> AsyncIterator[bytes]:
        """Yield what a stream says, until it has ended."""
        said = STILL_HERE
        yield said
        while said not in _LAST:
            try:
                async with asyncio.timeout(self._bounds.silence_seconds):
                    await listener.news.wait()
            except TimeoutError:
                yield STILL_HERE  # and what is told meanwhile is said next
            else:
                listener.news.clear()
                said = listener.says
                yield said

    def leave(self, listener: _Listener) -> None:
        """Forget a stream that is over, however it ended."""
        self._listeners.discard(listener)

    async def _watch(self) -> None:
        while self._listeners:
            known = list(self._listeners)
            try:
                marks, standing = await run_sync(self._look, known, limiter=self._alone)
            except psycopg.Error:
                for listener in self._listeners:
                    listener.tell(LATER)
                return
            for listener in known:
                mark = marks.get(listener.subject, listener.mark)
                if listener.token not in standing:
                    listener.tell(ENDED)
                elif mark != listener.mark:
                    listener.mark = mark
                    listener.tell(CHANGED)
            await asyncio.sleep(self._bounds.look_seconds)

    def _look(self, known: Sequence[_Listener]) -> tuple[dict[str, str], set[str]]:
        with db.transaction(self._pool) as connection:
            standing = sessions.standing(connection, {each.token for each in known}, limits=self._limits)
            return changes.marks(connection, {each.subject for each in known}), standing


class _Stream(StreamingResponse):
    """An answer that goes on; its listener is forgotten however it ends, or if it never began."""

    def __init__(self, live: Live, listener: _Listener, *, headers: Mapping[str, str]) -> None:
        # Some servers in front gather an answer before they pass it on, unless they are told not to.
        sent = {**headers, "X-Accel-Buffering": "no"}
        super().__init__(live.told(listener), media_type="text/event-stream", headers=sent)
        self._live, self._listener = live, listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._live.leave(self._listener)


def close_with_process(live: Live) -> None:
    """End the streams when this process is told to stop, before its server waits for open answers."""
    if threading.current_thread() is not threading.main_thread():
        return  # signals come to the main thread alone; there the server is another's
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        then: Any = signal.getsignal(number)

        def stop(received: int, frame: FrameType | None, then: Any = then) -> None:
            loop.call_soon_threadsafe(live.close)
            if callable(then):
                then(received, frame)

        signal.signal(number, stop)
