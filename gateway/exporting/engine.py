"""Takes jobs from the queue, does the next step of each, commits it, and looks after those that nobody works on."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.cache.work import LEASE, Entry, Queue
from gateway.errors import AuditUnavailable, GatewayError, NoNodeAnswered
from gateway.exporting import measures
from gateway.store.exports import FAILED, Body, Exports, Job, Step
from gateway.telemetry import log, place_of, request_id

_LOOK_EVERY = 3.0
_AFTER_FAULT = 5.0
"""Seconds before a step is tried again whose outcome could not be written."""
_MOST_TRIES = 60
"""So often; each time the nodes are asked again."""
_NO_ROOM = "the export cannot be written down, since its disk is full or fails; begin it again once there is room"
_FAULT = "the gateway failed over this export; report its id"


@dataclass(frozen=True, slots=True)
class Made:
    """What a step gave: `state` for the next one, the lines, and `marks` that stand for them; see Step for `outcome`."""

    state: dict[str, Any]
    bodies: Sequence[Body] = ()
    marks: Sequence[bytes] = ()
    outcome: str = ""


class Work(Protocol):
    """Does the step of a job that follows `before`. Doing it again gives the same. A GatewayError ends the job."""

    async def __call__(self, job: Job, before: Step) -> Made: ...


@dataclass(slots=True, eq=False)
class Engine:
    """This process's part in all exports: `at_once` steps at a time. `seconds` is how long one is kept at rest."""

    exports: Exports
    queue: Queue
    work: Work
    at_once: int
    seconds: float
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _working: dict[str, asyncio.Task[bool]] = field(default_factory=dict)
    _unwritten: Counter[str] = field(default_factory=Counter)

    async def open(self) -> None:
        """Raises SettingsError when the directory cannot be used."""
        await asyncio.to_thread(self.exports.open)
        jobs: list[Coroutine[Any, Any, None]] = [self._watch(), *(self._serve() for _ in range(self.at_once))]
        self._tasks = [
            asyncio.create_task(each, name="export", context=contextvars.Context()) for each in jobs
        ]  # none of them belongs to a request

    async def close(self) -> None:
        """Steps under way are dropped, and go back to the queue for another replica."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def begin(self, job: Job, require: Callable[[Sequence[Job]], None]) -> None:
        """Raises TooLarge where there is no room, and as `require` does of the jobs that are not over."""
        await asyncio.to_thread(self.exports.create, job, require)
        measures.exports.labels("begun").inc()
        await self.queue.put(job.id)

    async def cancel(self, identifier: str) -> bool:
        """Ends a job and removes what it gave; replicas that work on it notice within moments. False when it was gone."""
        was_there = await asyncio.to_thread(self.exports.remove, identifier)
        working = self._working.get(identifier)
        if working is not None:
            working.cancel()
        if was_there:
            measures.exports.labels("deleted").inc()
        return was_there

    async def _serve(self) -> None:
        while True:
            entry = await self.queue.take()
            if entry is None:
                continue
            try:
                await self._one(entry)
            except Exception as error:  # noqa: BLE001 - the next try may go better
                log().error("export", outcome="failed", kind=type(error).__name__, reason=place_of(error))
                await asyncio.sleep(_AFTER_FAULT)
                await self.queue.next(entry)

    async def _one(self, entry: Entry) -> None:
        """One step of the job that the entry names; it has the entry until the step is committed."""
        working = asyncio.create_task(self._step(entry.job))
        beating = asyncio.create_task(self._beat(entry, working))
        self._working[entry.job] = working
        try:
            is_over = await working
        except FileNotFoundError:
            is_over = True  # cancelled, here or by another replica
        except asyncio.CancelledError:
            if _is_cancelled():  # this process ends, not the job
                await asyncio.shield(self.queue.next(entry))
                raise
            is_over = True
        finally:
            beating.cancel()
            self._working.pop(entry.job, None)
        if is_over:
            del self._unwritten[entry.job]
        await (self.queue.done(entry) if is_over else self.queue.next(entry))

    async def _step(self, identifier: str) -> bool:
        """Whether the job needs nobody any more."""
        job, before = await asyncio.to_thread(self._read, identifier)
        if job is None or before.outcome:
            return True
        request_id.set(str(job.asked.get("request_id", "")))
        began = time.monotonic()
        made = await self._made(job, before)
        try:
            is_first = await self._commit(job, before, made)
        except GatewayError as error:  # no room
            made = _failed(before, error)
            is_first = await self._commit(job, before, made)
        self._tell(job, before, made, time.monotonic() - began, is_first)
        return bool(made.outcome) and is_first

    def _read(self, identifier: str) -> tuple[Job | None, Step]:
        job = self.exports.job(identifier)
        return job, self.exports.last(identifier) if job else Step()

    async def _made(self, job: Job, before: Step) -> Made:
        if self._unwritten[job.id] >= _MOST_TRIES:
            return _failed(before, GatewayError(_NO_ROOM))
        try:
            return await self.work(job, before)
        except (
            FileNotFoundError,
            AuditUnavailable,
        ):  # the job is gone; it is done when it can be written down who sees it
            raise
        except GatewayError as error:
            return _failed(before, error)
        except Exception as error:  # noqa: BLE001 - it would fail again on every replica
            log().error("fault", kind=type(error).__name__, reason=place_of(error))
            return _failed(before, GatewayError(_FAULT))

    async def _commit(self, job: Job, before: Step, made: Made) -> bool:
        """A disk that is full now may not be later: how often a step could not be written is counted."""
        what = before, made.state, made.bodies, made.marks, made.outcome
        try:
            is_first = await asyncio.to_thread(self.exports.commit, job.id, *what)
        except OSError:
            self._unwritten[job.id] += 1
            raise
        del self._unwritten[job.id]
        return is_first

    def _tell(self, job: Job, before: Step, made: Made, seconds: float, is_first: bool) -> None:
        outcome = "again" if not is_first else made.outcome or "done"
        measures.steps.labels(outcome).inc()
        if not is_first:
            return
        for body in made.bodies:
            measures.lines.labels(body.kind).inc(body.count)
        if made.outcome:
            measures.exports.labels(made.outcome).inc()
        count = sum(body.count for body in made.bodies)
        log().info("export", key=job.id[:8], outcome=outcome, count=count, seconds=round(seconds, 3))

    async def _beat(self, entry: Entry, working: asyncio.Task[bool]) -> None:
        """Says that the job is being worked on, and hears when it is no longer there."""
        while True:
            try:
                await asyncio.to_thread(self.exports.touch, entry.job)
            except FileNotFoundError:
                working.cancel()
                return
            except OSError:
                pass
            await self.queue.hold(entry)
            await asyncio.sleep(LEASE / 3)

    async def _watch(self) -> None:
        """Puts jobs into the queue that it has lost, and removes those whose time is up."""
        while True:
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001 - the next look may go better
                log().error("export", outcome="failed", kind=type(error).__name__, reason=place_of(error))
            await asyncio.sleep(_LOOK_EVERY)

    async def _look(self) -> None:
        expired = await asyncio.to_thread(self.exports.sweep, self.seconds)
        if expired:
            measures.exports.labels("expired").inc(len(expired))
        waiting = await asyncio.to_thread(self._unfinished)
        measures.unfinished.set(len(waiting))
        measures.size.set(await asyncio.to_thread(self.exports.used))
        for identifier, quiet in waiting:
            if quiet > LEASE:
                await self.queue.put(identifier)

    def _unfinished(self) -> list[tuple[str, float]]:
        """The jobs that are not over, each with the seconds since the last sign of work."""
        waiting = []
        for identifier in self.exports.unfinished():
            with contextlib.suppress(FileNotFoundError):
                waiting.append((identifier, self.exports.quiet(identifier)))
        return waiting


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _failed(before: Step, error: GatewayError) -> Made:
    return Made({**before.state, "failure": _told(error)}, outcome=FAILED)


def _told(error: GatewayError) -> dict[str, Any]:
    failures = error.failures if isinstance(error, NoNodeAnswered) else ()
    return {"code": error.code, "detail": error.detail, "failures": [_told(one) for one in failures]}
