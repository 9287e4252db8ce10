"""`serve`, with faults of our own built in, each of which quotes a patient: what a bug of tomorrow would do."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from typing import Any

from gateway.cli import serve
from gateway.edge.dicomweb import qido, wado
from gateway.mapping.read import Reader
from tests.telemetry.gossips import IDENTIFIER, NAME

TRIGGER = "SABOTAGE"


class Talkative:
    def __del__(self) -> None:
        raise ValueError(f"unraisable {NAME}")


async def fail() -> None:
    raise ValueError(f"never retrieved {NAME}")


def make_noise() -> None:
    """Everything that libraries do beside failing."""
    asyncio.get_running_loop().create_task(fail(), name=f"task of {NAME}")
    asyncio.get_running_loop().call_soon(lambda: {}[NAME])
    thread = threading.Thread(target=lambda: {}[NAME], name=NAME)
    thread.start()
    thread.join()
    warnings.warn(f"odd value {NAME}", UserWarning, stacklevel=1)
    for library in (
        "redis",
        "redis.connection",
        "uvicorn.error",
        "aiohttp.client",
        "pynetdicom.assoc",
        "pydicom",
        "asyncio",
        "",
    ):
        logging.getLogger(library).error("about %s", NAME)
        logging.getLogger(library).warning(f"about {NAME}")
        logging.getLogger(library).debug(f"about {NAME}")
        try:
            raise KeyError(NAME)
        except KeyError:
            logging.getLogger(library).exception(NAME)
    Talkative()


def sabotage() -> None:
    respond, rows, parts = qido.respond, Reader.rows, wado.in_parts

    def responded(request: Any, context: Any, asked: Any, answer: Any, *more: Any) -> Any:
        if any(TRIGGER in match.values for match in asked.query.matches):
            make_noise()
            raise ValueError(f"{NAME} {request.url} {answer}")
        return respond(request, context, asked, answer, *more)

    def read(self: Reader, record: Any, *args: Any, **more: Any) -> Any:
        if self.node == "sabotaged":
            raise ValueError(f"{NAME} {rows(self, record, *args, **more)}")
        return rows(self, record, *args, **more)

    async def parted(*args: Any) -> Any:
        async for chunk in parts(*args):
            yield chunk
            raise RuntimeError(f"{NAME} {IDENTIFIER}")

    qido.respond, Reader.rows, wado.in_parts = responded, read, parted  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.argv = ["imaging-gateway"]
    sabotage()
    serve.run({})
