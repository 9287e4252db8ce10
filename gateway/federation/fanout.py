"""Asks many nodes at once, each within its own deadline and all within one; a node that fails is an issue, not an empty list."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gateway.errors import GatewayError, NodeError, NodeProtocolError, NodeTimeout, NoNodeAnswered
from gateway.federation.node import Node
from gateway.telemetry import log, place_of

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """What one node gave: a value, or the error it failed with; `fault` is the exception of ours behind that error."""

    node: Node
    value: R | None
    error: NodeError | None = None
    fault: BaseException | None = None


async def ask_all(
    nodes: Sequence[Node], ask: Callable[[Node], Coroutine[Any, Any, R]], *, deadline: float
) -> list[Outcome[R]]:
    """One outcome per node, in the order of `nodes`. A caller that leaves cancels its own questions.

    Raises NoNodeAnswered when every node failed.
    """
    outcomes = await outcomes_of(nodes, ask, deadline=deadline)
    require_an_answer(outcomes)
    return outcomes


async def outcomes_of(
    nodes: Sequence[Node], ask: Callable[[Node], Coroutine[Any, Any, R]], *, deadline: float
) -> list[Outcome[R]]:
    """As `ask_all`, whatever the outcomes are. A fault of ours over one node's answer is that node's failure, so that one
    hospital's odd data do not hide all the others'; it is logged."""
    tasks: dict[asyncio.Task[R], Node] = {asyncio.create_task(ask(node)): node for node in nodes}
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=deadline)
        return [_outcome(node, task, deadline) for task, node in tasks.items()]
    finally:
        await cancel_all(tasks)
        tasks.clear()  # what one ended with holds this frame


def require_an_answer(outcomes: Sequence[Outcome[R]]) -> None:
    """Raises NoNodeAnswered, or the only node's own error, when every outcome is a failure; a fault of ours as it is."""
    failures = tuple(outcome.error for outcome in outcomes if outcome.error)
    if failures and len(failures) == len(outcomes):
        for fault in filter(None, (outcome.fault for outcome in outcomes)):
            raise fault
        raise failures[0].alone() if len(failures) == 1 else NoNodeAnswered(failures)


def _outcome(node: Node, task: asyncio.Task[R], deadline: float) -> Outcome[R]:
    if not task.done():
        node.guard.gave_up(deadline)
        return Outcome(node, None, NodeTimeout(node.id, "did not answer within the time of the whole search"))
    error = task.exception()
    if error is None:
        return Outcome(node, task.result())
    if isinstance(error, NodeError):
        log().warning("node failed", node=node.id, code=error.code, reason=error.reason)
        return Outcome(node, None, error.alone())
    if isinstance(error, GatewayError):
        raise error
    return Outcome(node, None, fault_over(node.id, error), error)


def fault_over(node: str, error: BaseException) -> NodeProtocolError:
    """A fault of ours over what a node gave, which is logged, as that node's failure."""
    log().error("fault", node=node, kind=type(error).__name__, reason=place_of(error))
    return NodeProtocolError(node, "gave an answer that cannot be understood")


async def in_parallel(items: Iterable[T], work: Callable[[T], Awaitable[R]], *, at_once: int = 4) -> list[R]:
    """`work` on each item, `at_once` at a time, results in order; the first failure cancels the rest and is raised."""
    items = list(items)
    if len(items) <= 1:  # as most are
        return [await work(item) for item in items]
    permits = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with permits:
            return await work(item)

    tasks = [asyncio.create_task(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancel_all(tasks)
        tasks.clear()  # what one ended with holds this frame


async def cancel_all(tasks: Iterable[asyncio.Task[R]]) -> None:
    """Cancels what still runs and waits until it has given everything back. Who leaves hears no more of what failed before."""
    tasks = list(tasks)
    running = [task for task in tasks if not task.done()]
    for task in tasks:
        if not task.cancel() and not task.cancelled():
            task.exception()
    if running:
        await asyncio.gather(*running, return_exceptions=True)
