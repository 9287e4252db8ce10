"""Keeps the estate in step with the node file: reads it again, puts it in place, retires what it no longer has.

What two files agree on goes on as it is: the same Node, with its adapter, its permits and what it knows of itself. Nodes that
are gone or changed are seen by no new request; their adapters are closed when the last request that holds them has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from gateway.adapters.dimse import StorageReceiver
from gateway.assembly import Builder, Destination, callers_of, destination_of, receiver_of
from gateway.edge.estate import Estate
from gateway.errors import GatewayError, SettingsError
from gateway.federation import nodes as node_file
from gateway.federation.fanout import cancel_all, in_parallel
from gateway.federation.node import Node
from gateway.federation.nodes import DimseConnection, NodeConfig, NodeFile
from gateway.settings import Settings
from gateway.source import Formats, Source, connections, files_of, stamp
from gateway.telemetry import log, place_of

LOOK_EVERY = 2.0
MakeNode = Callable[[NodeConfig, Builder, Formats], Node]
MakeEstate = Callable[[NodeFile, Formats, dict[str, Node]], Estate]


@dataclass(eq=False, slots=True)
class _Resident:
    """One node with the adapters that are its own. `made_of` is all that it was built from."""

    node: Node
    builder: Builder
    made_of: tuple[object, ...]

    async def open(self) -> None:
        for adapter in self.builder.built:
            await adapter.open()

    async def close(self) -> None:
        for adapter in (*self.builder.by_address.values(), *self.builder.built):
            with suppress(GatewayError):
                await adapter.close()


@dataclass(eq=False, slots=True)
class _Lease:
    """An estate with what has to stay open for it."""

    file: NodeFile
    estate: Estate
    residents: dict[str, _Resident]
    receiver: StorageReceiver | None

    @property
    def parts(self) -> list[_Resident | StorageReceiver]:
        return [*([self.receiver] if self.receiver else []), *self.residents.values()]


@dataclass(slots=True)
class Estates:
    """The estate in force and those that requests still hold. `put` puts one in force; `forget` drops what was fetched
    from a node by its id, for one that is another now."""

    settings: Settings
    source: Source
    make_node: MakeNode
    make_estate: MakeEstate
    put: Callable[[Estate], None]
    forget: Callable[[str], None]
    _leases: list[_Lease] = field(default_factory=list)
    _asked: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def open(self, file: NodeFile, formats: Formats) -> None:
        """Puts the first file in place, and begins to watch it. Raises SettingsError."""
        await self._put_in_place(file, formats)
        await asyncio.to_thread(self.source.in_force)
        if self.source.is_on_disk:
            self._beside(self._watch())

    async def close(self) -> None:
        await cancel_all(self._tasks)
        for part in {part: None for lease in reversed(self._leases) for part in reversed(lease.parts)}:
            await part.close()
        self._leases.clear()

    def reload(self) -> None:
        """Has the node file read again soon, changed or not."""
        self._asked.set()

    @property
    def node_file(self) -> str:
        """For people: whether the file on disk is the one in force."""
        return f"refused: {self.source.refused}" if self.source.refused else "in force"

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY if self.settings.reload else None):
                    await self._asked.wait()
            if self._asked.is_set() or await asyncio.to_thread(self.source.has_changed):
                self._asked.clear()
                await self._read_again()

    async def _read_again(self) -> None:
        try:
            await self._put_in_place(*await asyncio.to_thread(self.source.read))
            await asyncio.to_thread(self.source.in_force)
        except GatewayError as error:
            self.source.refuse(error.detail.splitlines()[0])
        except Exception as error:  # noqa: BLE001 - whatever it is, the old file goes on, and the next one is tried
            self.source.refuse(f"cannot be put in place: {type(error).__name__} at {place_of(error)}")

    async def _put_in_place(self, file: NodeFile, formats: Formats) -> None:
        """All of it or nothing. Raises SettingsError; the estate in force then stays."""
        before = self._leases[-1] if self._leases else None
        receiver = self._receiver(file)
        destination = destination_of(file, receiver)
        residents = {config.id: self._resident(config, formats, destination, before) for config in file.enabled}
        estate = self.make_estate(file, formats, {name: one.node for name, one in residents.items()})
        lease = _Lease(file, estate, residents, receiver)
        old: set[object] = {part for other in self._leases for part in other.parts}
        new = [part for part in lease.parts if part not in old]
        self._leases.append(lease)  # from now on what it takes over is not closed with those who had it
        try:
            await _open_all(new)
        except BaseException:
            await self._let_go(lease, closed=new)
            raise
        self._forget_changed(residents, before)
        self._tell_of(residents, before)
        self.put(estate)
        await self._admit_callers()
        if self.settings.probe:
            self._beside(_probe([part.node for part in new if isinstance(part, _Resident)]))
        if before:
            log().info("node file in force", nodes=len(residents), count=len(new))
            self._beside(self._retire(before))

    def _receiver(self, file: NodeFile) -> StorageReceiver | None:
        """One that requests still hold serves on: it has the port, whatever its title was."""
        wanted = file.move_receiver
        if wanted is None:
            return None
        for lease in reversed(self._leases):
            known = lease.file.move_receiver
            if known and (known.host, known.port) == (wanted.host, wanted.port):
                return lease.receiver
        if self.settings.workers > 1:
            raise SettingsError(
                "move_receiver: a PACS sends to one AE title at one host and port, which several workers cannot share: "
                "serve with GATEWAY_WORKERS=1, or fetch with C-GET"
            )
        return receiver_of(file)

    def _resident(
        self, config: NodeConfig, formats: Formats, destination: Destination | None, before: _Lease | None
    ) -> _Resident:
        made_of = _made_of(config, formats, destination)
        known = before.residents.get(config.id) if before else None
        if known and known.made_of == made_of:
            return known
        builder = Builder(destination)
        return _Resident(self.make_node(shared_out(config, self.settings.workers), builder, formats), builder, made_of)

    def _forget_changed(self, residents: Mapping[str, _Resident], before: _Lease | None) -> None:
        for name, one in before.residents.items() if before else ():
            if residents.get(name) is not one:
                self.forget(name)

    def _tell_of(self, residents: Mapping[str, _Resident], before: _Lease | None) -> None:
        """Metrics are those of the nodes in force."""
        for name, one in before.residents.items() if before else ():
            if residents.get(name) is not one:
                one.node.guard.retire()
        for one in residents.values():
            one.node.guard.put_in_force()

    async def _admit_callers(self) -> None:
        """The C-MOVE receiver takes in what the nodes of every estate in use send."""
        receivers = {lease.receiver for lease in self._leases if lease.receiver}
        for receiver in receivers:
            await receiver.admit(callers_of(lease.file for lease in self._leases if lease.receiver is receiver))

    async def _retire(self, lease: _Lease) -> None:
        """Closes what only this estate has, when the last request that holds it has ended, or its time is up."""
        outcome = "ended"
        try:
            async with asyncio.timeout(self.settings.retire_seconds):
                await lease.estate.users.gone()
        except TimeoutError:
            outcome = "cut"
        for part in await self._let_go(lease):
            if isinstance(part, _Resident):
                log().warning("node retired", node=part.node.id, outcome=outcome)
        self._forget_changed(self._leases[-1].residents, lease)
        await self._admit_callers()

    async def _let_go(
        self, lease: _Lease, closed: Sequence[_Resident | StorageReceiver] = ()
    ) -> list[_Resident | StorageReceiver]:
        """Closes what nobody else has, and is not `closed` already; gives what it closed."""
        self._leases.remove(lease)
        kept: set[object] = {*closed, *(part for other in self._leases for part in other.parts)}
        own = [part for part in lease.parts if part not in kept]
        for part in own:
            await part.close()
        return own

    def _beside(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def shared_out(config: NodeConfig, workers: int) -> NodeConfig:
    """A worker's part of what a node may be burdened with: all of them together keep to its ceilings, at least one each."""
    if workers == 1:
        return config

    def part(whole: int) -> int:
        return max(1, whole // workers)

    def eased(connection: node_file.Connection) -> node_file.Connection:
        names = {"max_associations", "max_connections"} & type(connection).model_fields.keys()
        return connection.model_copy(update={name: part(getattr(connection, name)) for name in names})

    retrieve = config.retrieve and config.retrieve.model_copy(update={"connection": eased(config.retrieve.connection)})
    return config.model_copy(
        update={
            "connection": eased(config.connection),
            "retrieve": retrieve,
            "max_concurrent": part(config.max_concurrent),
        }
    )


def _made_of(config: NodeConfig, formats: Formats, destination: Destination | None) -> tuple[object, ...]:
    """What a node is built from. Its configuration is compared with its secrets, and certificates by what is on disk."""
    both = connections(config)
    names = [config.mapping_name, *(["dicom"] if config.retrieve else [])]
    digests = tuple(formats[name].digest if name in formats else "" for name in names)
    takes_moves = any(isinstance(one, DimseConnection) for one in both)
    files = tuple(stamp(path) for one in both for path in files_of(one))
    return config, digests, destination if takes_moves else None, files


async def _open_all(parts: Iterable[_Resident | StorageReceiver]) -> None:
    """All of them, or none: those that were opened are closed again. Raises what the one that failed raised."""
    opened: list[_Resident | StorageReceiver] = []
    try:
        for part in parts:
            opened.append(part)
            await part.open()
    except BaseException:
        for part in reversed(opened):
            await part.close()
        raise


async def _probe(nodes: list[Node]) -> None:
    await in_parallel(nodes, Node.probe)
