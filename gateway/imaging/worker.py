"""The process that decodes and renders: codecs are native code at work on foreign bytes, and hold the interpreter meanwhile.

Requests and replies go over the socket that is its standard input: a head in JSON and the bytes, each with its length first.
It ends when the other side does, and never holds more memory than it was told.
"""

from __future__ import annotations

import resource
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import orjson

from gateway.imaging import extended
from gateway.imaging.frame import decode, encode, native
from gateway.imaging.lengths import LENGTHS
from gateway.imaging.options import OutsideImage, Rendering
from gateway.imaging.syntaxes import ALWAYS_LOSSY

Reply = tuple[dict[str, Any], bytes]


def main() -> None:
    """`worker.py <most bytes of memory> <most pixels>`, with a connected socket as standard input."""
    most_bytes, most_pixels = map(int, sys.argv[1:3])
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE
    extended.register()
    _limit_pillow(most_pixels)
    with socket.socket(fileno=0) as peer:
        while serve(peer):
            pass


def _limit_pillow(most_pixels: int) -> None:
    try:
        from PIL import Image
    except ImportError:
        return
    Image.MAX_IMAGE_PIXELS = most_pixels


def serve(peer: socket.socket) -> bool:
    """One request; False when there will be no more."""
    lengths = _received(peer, LENGTHS.size)
    if lengths is None:
        return False
    head_length, body_length = LENGTHS.unpack(lengths)
    head, body = _received(peer, head_length), _received(peer, body_length)
    if head is None or body is None:
        return False
    told, given = answer(orjson.loads(head), bytes(body))
    encoded = orjson.dumps(told)
    peer.sendall(LENGTHS.pack(len(encoded), len(given)) + encoded)
    peer.sendall(given)
    return True


def _received(peer: socket.socket, length: int) -> bytearray | None:
    data = bytearray(length)
    view, at = memoryview(data), 0
    while at < length:
        count = peer.recv_into(view[at:])
        if not count:
            return None
        at += count
    return data


def answer(asked: dict[str, Any], data: bytes) -> Reply:
    """The result, or `failed`: 'decode', 'memory' or 'region'."""
    try:
        return _WORK[asked["work"]](asked, data)
    except MemoryError:
        return {"failed": "memory"}, b""
    except OutsideImage:
        return {"failed": "region"}, b""
    except Exception:  # noqa: BLE001 - whatever it is over, it is what the node sent, and the next image is another
        return {"failed": "decode"}, b""


def _render(asked: dict[str, Any], data: bytes) -> Reply:
    from gateway.imaging.rendering import render

    frames, at = [], 0
    for frame in asked["frames"]:
        frames.append(decode(frame["attributes"], frame["transfer_syntax"], data[at : at + frame["length"]]))
        at += frame["length"]
    return {}, render(frames, Rendering.from_json(asked["rendering"]))


def _recode(asked: dict[str, Any], data: bytes) -> Reply:
    # What JPEG has lost is not lost again by turning it into RGB, as everybody does; of the others nothing is to be lost.
    frame = decode(asked["attributes"], asked["transfer_syntax"], data, as_rgb=asked["transfer_syntax"] in ALWAYS_LOSSY)
    given = encode(frame, asked["into"]) if asked["into"] else native(frame)
    return {name: value for name, value in frame.told.items() if isinstance(value, (int, str))}, given


def _neutral(asked: dict[str, Any], data: bytes) -> Reply:
    from gateway.imaging.rendering import neutral

    return {}, neutral(asked["columns"], asked["rows"], asked["word"], asked["media_type"])


_WORK: dict[str, Callable[[dict[str, Any], bytes], Reply]] = {
    "render": _render,
    "recode": _recode,
    "neutral": _neutral,
}

if __name__ == "__main__":
    main()
