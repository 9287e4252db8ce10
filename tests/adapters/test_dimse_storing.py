"""C-STORE as real archives take it: in their own syntaxes, with their own statuses, and with associations that end."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt

from gateway.adapters.dimse import DimseAdapter
from gateway.errors import NodeError, NodeRefused, NodeUnreachable
from gateway.model.seam import Part, StoreOutcome
from gateway.simulators._dimse_serving import shut_down
from tests.sending import encoded, instance, uids

UNCOMPRESSED = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


@dataclass
class Archive:
    """A storage SCP. `statuses` are what it answers, in turn; then success. It aborts where one is None."""

    statuses: list[int | None] = field(default_factory=list)
    received: list[tuple[str, Dataset]] = field(default_factory=list)
    associations: int = 0
    established: list[Any] = field(default_factory=list)
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    port: int = 0

    def store(self, event: evt.Event) -> int:
        status = self.statuses.pop(0) if self.statuses else 0
        if status is None:
            event.assoc.abort()
            return 0
        if status == 0 or status >> 12 == 0xB:
            made = event.dataset
            made.file_meta = event.file_meta
            self.received.append((str(event.context.transfer_syntax), made))
        return status

    def opened(self, event: evt.Event) -> None:
        self.associations += 1
        self.established.append(event.assoc)

    def hang_up(self) -> None:
        """Ends its associations as an archive does that was idle for too long."""
        for association in self.established:
            association.abort()
        self.ended.acquire(timeout=30)


@contextmanager
def archive(
    syntaxes: Sequence[str] = (ExplicitVRLittleEndian,), classes: Sequence[str] = (CTImageStorage,), **options: Any
) -> Iterator[Archive]:
    made, entity = Archive(**options), AE()
    for sop_class in classes:
        entity.add_supported_context(sop_class, list(syntaxes))
    entity.require_calling_aet = ["IMAGING-GW"]
    handlers = [
        (evt.EVT_C_STORE, made.store),
        (evt.EVT_ESTABLISHED, made.opened),
        (evt.EVT_CONN_CLOSE, lambda _: made.ended.release()),
    ]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    made.port = server.socket.getsockname()[1]
    try:
        yield made
    finally:
        shut_down(server)


async def parts(*instances: Dataset | bytes) -> AsyncIterator[Part]:
    for one in instances:
        yield Part("", "", chunks(one if isinstance(one, bytes) else encoded(one)))


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def stored(where: Archive, *instances: Dataset | bytes, **options: Any) -> list[StoreOutcome]:
    adapter = DimseAdapter("pacs", host="127.0.0.1", port=where.port, called_ae_title="ARCHIVE", **options)
    await adapter.open()
    try:
        return [outcome async for outcome in adapter.store(parts(*instances))]
    finally:
        await adapter.close()


@pytest.mark.parametrize("given", UNCOMPRESSED)
@pytest.mark.parametrize("taken", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
async def test_an_uncompressed_instance_goes_in_the_syntax_that_the_archive_takes(given, taken):
    one = instance(syntax=given)
    with archive([taken]) as where:
        [outcome] = await stored(where, one)
    assert (outcome.failure, outcome.warning, outcome.sop_instance_uid) == (0, 0, one.SOPInstanceUID)
    [(syntax, received)] = where.received
    assert syntax == taken
    original = dcmread(BytesIO(encoded(one)))
    assert (received.pixel_array == original.pixel_array).all()
    del received.PixelData, one.PixelData
    assert list(received) == list(one)


@pytest.mark.parametrize("given", UNCOMPRESSED)
async def test_an_archive_that_takes_everything_gets_it_as_it_is(given):
    with archive(UNCOMPRESSED) as where:
        await stored(where, instance(syntax=given))
    assert [syntax for syntax, _ in where.received] == [given]


async def test_a_compressed_instance_is_never_changed(tmp_path):
    path = Path(str(get_testdata_file("JPEG2000.dcm")))
    with archive([ExplicitVRLittleEndian], [SecondaryCaptureImageStorage, dcmread(path).SOPClassUID]) as where:
        [outcome] = await stored(where, path.read_bytes())
    assert outcome.failure == 0xC122
    with archive([ExplicitVRLittleEndian], [dcmread(path).SOPClassUID]) as where:
        plain = instance(SOPClassUID=dcmread(path).SOPClassUID)
        outcomes = await stored(where, plain, path.read_bytes())
    assert [outcome.failure for outcome in outcomes] == [0, 0xC122]
    with archive([JPEG2000Lossless, "1.2.840.10008.1.2.4.91"], [dcmread(path).SOPClassUID]) as where:
        [outcome] = await stored(where, path.read_bytes())
    assert outcome.failure == 0


async def test_a_class_that_the_archive_does_not_take_is_an_outcome_and_the_others_are_stored():
    other = instance(SOPClassUID=SecondaryCaptureImageStorage)
    with archive() as where:
        outcomes = await stored(where, other, instance(), other, instance())
    assert [outcome.failure for outcome in outcomes] == [0x0122, 0, 0x0122, 0]


async def test_an_archive_that_takes_none_is_not_asked_again_for_each():
    other = instance(SOPClassUID=SecondaryCaptureImageStorage)
    with archive() as where:
        outcomes = await stored(where, *[other] * 20)
    assert [outcome.failure for outcome in outcomes] == [0x0122] * 20
    assert where.associations <= 1


async def test_statuses_become_failures_and_warnings():
    statuses = [0xA700, 0xA900, 0xC001, 0x0111, 0xB000, 0xB007, 0]
    with archive(statuses=list(statuses)) as where:
        outcomes = await stored(where, *(instance() for _ in statuses))
    assert [outcome.failure for outcome in outcomes] == [0xA700, 0xA900, 0xC001, 0x0111, 0, 0, 0]
    assert [outcome.warning for outcome in outcomes] == [0, 0, 0, 0, 0xB000, 0xB007, 0]
    assert where.associations == 1


async def test_an_association_that_ended_while_idle_is_opened_again():
    with archive() as where:
        adapter = DimseAdapter("pacs", host="127.0.0.1", port=where.port, called_ae_title="ARCHIVE")
        await adapter.open()

        async def slowly() -> AsyncIterator[Part]:
            yield Part("", "", chunks(encoded(instance())))
            where.hang_up()
            yield Part("", "", chunks(encoded(instance())))

        outcomes = [outcome async for outcome in adapter.store(slowly())]
        await adapter.close()
    assert [outcome.failure for outcome in outcomes] == [0, 0]
    assert where.associations == 2


async def test_what_was_told_before_an_abort_stands():
    made = [instance() for _ in range(3)]
    told = []
    with archive(statuses=[0, None]) as where:
        adapter = DimseAdapter("pacs", host="127.0.0.1", port=where.port, called_ae_title="ARCHIVE")
        await adapter.open()

        async def listening() -> None:
            async for outcome in adapter.store(parts(*made)):
                told.append(outcome)

        with pytest.raises(NodeError):
            await listening()
        await adapter.close()
    assert [outcome.sop_instance_uid for outcome in told] == uids(made)[:1]


async def test_a_refused_association_and_a_silent_port_are_the_nodes_failures():
    with archive() as where, pytest.raises(NodeRefused):
        await stored(where, instance(), calling_ae_title="UNKNOWN")
    with pytest.raises(NodeUnreachable):
        await stored(Archive(port=1), instance())
