"""What the server puts up with from a caller: a head of a request that does not end, an answer that is not taken."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS, HEAD_BYTES = 30.0, 64 * 1024
READING_SECONDS, LEAST_READING = 300.0, 4096
TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's own protocol, which by itself waits for ever and takes in whatever comes.

    A head has `HEAD_SECONDS` and `HEAD_BYTES`, and so have trailers. Who takes less of an answer than `LEAST_READING` bytes
    a second, over `READING_SECONDS` in which it was waited for, is cut off: what it keeps waiting is a node, and with it
    everybody else.
    """

    _waiting: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None
    _has_body = False
    _unread = 0
    _waited = _paused_at = 0.0
    _taken = _left = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_a_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer_for_a_head()
        self._wait_no_longer_for_the_reader()
        super().connection_lost(exc)

    # The head of a request

    def data_received(self, data: bytes) -> None:
        before, self._has_body = self.cycle, False
        HttpToolsProtocol.data_received(self, data)
        has_head = self.cycle is not before
        if has_head and self._waiting is None and not self.cycle.response_complete:  # as mostly
            self._unread = 0
            return
        self._unread = 0 if has_head or self._has_body else self._unread + len(data)
        if self.transport.is_closing():
            return
        if self._unread > HEAD_BYTES:
            self._refuse(TOO_LARGE)
        elif self._has_body or not self._is_idle:
            self._wait_no_longer_for_a_head()
        elif self._waiting is None:
            self._wait_for_a_head()

    def on_chunk_header(self) -> None:
        self._has_body = True

    def on_body(self, body: bytes) -> None:
        self._has_body = True
        super().on_body(body)

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_a_head(self) -> None:
        self._waiting = self.loop.call_later(HEAD_SECONDS, self._refuse, TOO_LATE)

    def _wait_no_longer_for_a_head(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _refuse(self, answer: bytes) -> None:
        """In words where somebody has begun to ask and nothing is being answered."""
        if not self._is_idle:
            self.transport.abort()
            return
        if self._unread:
            self.transport.write(answer)
        self.transport.close()

    # The answer

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_the_reader()

    def resume_writing(self) -> None:
        self._wait_no_longer_for_the_reader()
        super().resume_writing()

    def _wait_for_the_reader(self) -> None:
        self._paused_at, self._left = self.loop.time(), self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(READING_SECONDS - self._waited, self._judge_the_reader)

    def _wait_no_longer_for_the_reader(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
            self._account()

    def _account(self) -> None:
        self._waited += self.loop.time() - self._paused_at
        self._taken += self._left - self.transport.get_write_buffer_size()

    def _judge_the_reader(self) -> None:
        self._account()
        if self._taken < LEAST_READING * self._waited:
            self._writing = None
            self.transport.abort()
            return
        self._waited, self._taken = 0.0, 0
        self._wait_for_the_reader()
