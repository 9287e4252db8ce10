"""Where a whole body is put together: a large one outside the heap, which many large ones would leave full of holes."""

from __future__ import annotations

import mmap
from types import TracebackType

_LARGE = 1024 * 1024


class Body:
    """Takes at most `ceiling` bytes and one chunk. Leaving it gives the memory back to the system at once."""

    def __init__(self, ceiling: int) -> None:
        self.size = 0
        self.ceiling = ceiling
        self._small = bytearray()
        self._large: mmap.mmap | None = None

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whoever remembers an error remembers its frames: what was read is not to be remembered with them."""
        self.size = 0
        self._small.clear()
        if self._large is not None:
            self._large.close()

    def add(self, chunk: bytes) -> None:
        if self._large is None and self.size + len(chunk) > _LARGE:
            # Pages that nothing is written to cost nothing.
            room = max(self.ceiling, self.size) + len(chunk) + _LARGE
            self._large = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._large.write(self._small)
            self._small.clear()
        if self._large is None:
            self._small += chunk
        else:
            self._large.write(chunk)
        self.size += len(chunk)

    def view(self) -> memoryview:
        """All of it; to be released before the body is left."""
        return memoryview(self._small if self._large is None else self._large)[: self.size]
