"""A connection that no worker could take at first."""

from __future__ import annotations

import asyncio
import socket

from gateway.cli import channel
from gateway.cli.dealer import Dealer


def fill(end: socket.socket) -> None:
    while True:
        try:
            end.send(channel.RELOAD)
        except BlockingIOError:
            return


async def test_who_comes_while_every_worker_is_full_is_served_as_soon_as_one_has_room_though_nobody_else_comes() -> (
    None
):
    ours, theirs = channel.pair()
    with socket.create_server(("127.0.0.1", 0)) as listener, ours, theirs:
        dealer = Dealer(listener)
        dealer.listen(ours, lambda: None)
        channel.tell(theirs, channel.READY)
        await asyncio.sleep(0.05)
        fill(ours)
        with socket.create_connection(listener.getsockname()):
            await asyncio.sleep(0.1)  # it is accepted, and nobody has taken it
            theirs.setblocking(False)
            async with asyncio.timeout(5):
                while (said := channel.heard(theirs)) is None or said[0] != channel.CONNECTION:
                    await asyncio.sleep(0 if said else 0.01)
            assert said[1] is not None
            said[1].close()
        dealer.forget(ours)
        dealer.close()
