"""How much of one answer is held together, in however many pieces it comes."""

from __future__ import annotations

from gateway.errors import NodeProtocolError

MOST_FOUND = 64 << 20
"""Bytes that a node may answer one search with: ten thousand rows are some 10 MB."""


class FoundBytes:
    """The bytes of one search's answer so far; `did` is what a node with too many of them did, for people."""

    def __init__(self, node: str, did: str = "answered a search with") -> None:
        self._node, self._did, self._size = node, did, 0

    def add(self, size: int) -> None:
        """Raises NodeProtocolError for more than a node may answer with."""
        self._size += size
        if self._size > MOST_FOUND:
            raise NodeProtocolError(self._node, f"{self._did} more than {MOST_FOUND} bytes")
