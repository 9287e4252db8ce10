"""What requests may have left behind in a gateway: permits, tasks, associations, threads, connections, half-written files."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable

import psutil

from gateway.adapters.dimse import DimseAdapter
from gateway.federation.node import Node
from tests.running import Gateway

PROMPT = 15.0


def eventually(holds: Callable[[], bool], seconds: float = PROMPT) -> bool:
    ends = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends:
            return False
        time.sleep(0.02)
    return True


class Watched(Gateway):
    """A gateway whose inside can be counted: permits, tasks, associations, threads, connections, half-written files."""

    @property
    def nodes(self) -> list[Node]:
        assert self.app is not None
        return list(self.app.state.estate.pipeline.federation.nodes.values())

    def permits_out(self) -> int:
        return sum(node.config.at_once - node.guard.permits._value for node in self.nodes)

    def associations_out(self) -> int:
        return sum(node.finder.associations.in_use for node in self.nodes if isinstance(node.finder, DimseAdapter))

    def tasks(self) -> int:
        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(10)

    def unfinished(self) -> int:
        return len(list(self._settings.spool.rglob("*.part")))

    def is_idle(self) -> bool:
        return not (self.permits_out() or self.associations_out() or self.unfinished())


def connections_to(*ports: int) -> int:
    """The TCP connections from this process to nodes that are in it, too; those that wait to be closed among them."""
    found = psutil.Process().net_connections("tcp")
    return sum(one.raddr != () and one.raddr.port in ports and one.status in _OPEN for one in found)


_OPEN = (psutil.CONN_ESTABLISHED, psutil.CONN_CLOSE_WAIT)


def own_threads() -> list[str]:
    """The threads that may be left over: neither the workers of bounded pools, nor those in which simulators serve."""
    names = [thread.name for thread in threading.enumerate()]
    return sorted(name for name in names if not re.search(r"_\d+$", name) and not name.startswith("AcceptorThread"))
