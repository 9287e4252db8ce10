"""One contract for all adapters, held on every simulator and on every real peer; a case runs where the capability is."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from io import BytesIO
from typing import Any

import psutil
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000, UID, generate_uid

from gateway.errors import InvalidQuery, NodeProtocolError, NodeTimeout, NodeUnreachable
from gateway.model.dataset import text
from gateway.model.matching import decider
from gateway.model.query import Match, Operator, Query, Ref
from gateway.model.seam import (
    Adapter,
    BulkData,
    Describes,
    Finds,
    Frames,
    Locates,
    Part,
    Report,
    Retrieves,
    Stores,
)
from gateway.model.vocabulary import Level, tag
from tests.behaviour.subjects import Limits, Subject, opened, over_dicomweb, over_dimse, over_fhir, over_files
from tests.peers import BlackHole, free_port
from tests.shelf import HeldFile, HeldStudy, Shelf

# What a peer cannot do, by the kind of peer and what it cannot do. Everything not listed here is held of everyone.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("dimse-dcmqrscp", "ModalitiesInStudy"): "neither matches nor returns it: the level below decides",
    ("dimse-dcmqrscp", "compressed"): "sends no other compressed syntax than the one it was started with, JPEG 2000",
    ("dimse-Orthanc", "encapsulation"): "lays the fragments of compressed frames out anew and drops trailing padding",
}
NOWHERE = "2.25.404"


def excepted(subject: Subject, what: str) -> bool:
    return (subject.name, what) in EXCEPTIONS


def on(*capabilities: type) -> Callable[[Any], Any]:
    """Runs the test on every subject whose adapter has the capabilities; those of the seam."""

    def marked(test: Any) -> Any:
        test.capabilities = capabilities
        return test

    return marked


async def eventually(condition: Callable[[], bool], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.02)


def exact(keyword: str, *values: str) -> Match:
    return Match((tag(keyword),), Operator.LIST if len(values) > 1 else Operator.EXACT, values)


def like(keyword: str, pattern: str) -> Match:
    return Match((tag(keyword),), Operator.WILDCARD, (pattern,))


def between(keyword: str, low: str, high: str) -> Match:
    return Match((tag(keyword),), Operator.RANGE, (low, high))


# --- searching

EVERYONE = {
    "12345", "99990000028", "T-0007", "SCSGREEK", "H31EXAMPLE", "SCSRUSS", "48013990025", "", "8NM1", "4MR1", "8000000033",
    "ID1", "DEMO000000000017", "X1EXAMPLE",
}  # fmt: skip
SEARCHES: dict[str, tuple[tuple[Match, ...], set[str]]] = {
    "everything": ((), EVERYONE),
    "a patient": ((exact("PatientID", "T-0007"),), {"T-0007"}),
    "patient ids with a wildcard": ((like("PatientID", "SCS*"),), {"SCSGREEK", "SCSRUSS"}),
    "a range of dates": (
        (between("StudyDate", "20250128", "20250310"),),
        {"12345", "48013990025", "8000000033", "DEMO000000000017"},
    ),
    "dates from a day on": ((between("StudyDate", "20250403", ""),), {"99990000028", "T-0007", ""}),
    "dates up to a day": ((between("StudyDate", "", "20170101"),), {"8NM1", "4MR1", "ID1"}),
    "a day": ((exact("StudyDate", "20250601"),), {"T-0007"}),
    "a whole name": ((exact("PatientName", "Lestrade^G"),), {"ID1"}),
    "a whole name, with its diacritics": ((exact("PatientName", "Dąbrowski^Michał"),), {"12345"}),
    "a whole name, without its diacritics": ((exact("PatientName", "DABROWSKI^MICHAL"),), {"12345"}),
    "the beginning of a name": ((like("PatientName", "CompressedSamples*"),), {"8NM1", "4MR1"}),
    "the end of a name": ((like("PatientName", "*^Anaïs"),), {"8000000033"}),
    "a Latin-1 name in upper case": ((like("PatientName", "NOEL*"),), {"8000000033"}),
    "a Latin-2 name": ((like("PatientName", "Świętochowska*"),), {"99990000028"}),
    "a Latin-2 name in lower case, without diacritics": ((like("PatientName", "swietochow*"),), {"99990000028"}),
    "a Greek name": ((like("PatientName", "Δημητρίου*"),), {"T-0007"}),
    "a Greek name in lower case, without accents": ((like("PatientName", "δημητριου*"),), {"T-0007"}),
    "a Cyrillic name in upper case": ((like("PatientName", "ИВАНОВА^*"),), {"48013990025"}),
    "a name in ideographs": ((like("PatientName", "山田*"),), {"H31EXAMPLE"}),
    "one letter unknown": ((like("PatientName", "Lestrad?^G"),), {"ID1"}),
    "a modality": ((exact("ModalitiesInStudy", "CT"),), {"12345", "99990000028", "T-0007", "", "8000000033"}),
    "one modality of several": ((exact("ModalitiesInStudy", "RTSTRUCT"),), {"99990000028"}),
    "a modality nobody has": ((exact("ModalitiesInStudy", "ZZ"),), set()),
    "a modality in a range of dates": (
        (exact("ModalitiesInStudy", "CT"), between("StudyDate", "20250101", "20250310")),
        {"12345", "8000000033"},
    ),
    "a name and a date that are of two people": (
        (like("PatientName", "Lestrade*"), exact("StudyDate", "20250601")),
        set(),
    ),
    "a patient who is not here": ((exact("PatientID", "NOBODY"),), set()),
}


@on(Finds)
async def test_a_search_loses_no_study_and_matching_again_leaves_exactly_the_right_ones(
    subject: Subject, shelf: Shelf
) -> None:
    wrong = {}
    async with subject.open() as adapter:
        for name, (matches, patients) in SEARCHES.items():
            kept, unsure = await _found(subject, adapter, shelf, matches)
            right = sorted(shelf.of_patient(patient).uid for patient in patients)
            # What a row does not say is decided one level down: until then nothing more is known than that nothing is lost.
            if not (kept == right or (unsure and set(kept) >= set(right))):
                wrong[name] = kept, right
    assert wrong == {}


async def _found(
    subject: Subject, adapter: Any, shelf: Shelf, matches: tuple[Match, ...]
) -> tuple[list[str], set[str]]:
    """The studies whose rows do not speak against them, and the keys that some of those rows do not decide."""
    rows, report = await subject.ask(adapter, Level.STUDY, *matches)
    assert not report.truncated
    query, held = Query(Level.STUDY, matches), {study.uid for study in shelf.studies}
    kept, unsure = [], set()
    for row in rows:
        verdict, undecided = decider(query)(row)
        if row.study in held and (verdict or (verdict is None and not report.complete_rows)):
            kept.append(row.study)
            unsure |= {match.name for match in undecided}
    assert all(excepted(subject, name) for name in unsure)
    return sorted(kept), unsure


@on(Finds)
async def test_studies_are_found_by_one_uid_and_by_a_list(subject: Subject, shelf: Shelf) -> None:
    uids = [study.uid for study in shelf.studies[::4]]
    async with subject.open() as adapter:
        one, _ = await subject.ask(adapter, Level.STUDY, exact("StudyInstanceUID", uids[0]))
        several, _ = await subject.ask(adapter, Level.STUDY, exact("StudyInstanceUID", *uids))
    assert [row.study for row in one] == uids[:1]
    assert sorted(row.study for row in several) == sorted(uids)


@on(Finds)
async def test_a_study_gives_its_series_and_a_series_its_instances(subject: Subject, shelf: Shelf) -> None:
    async with subject.open() as adapter:
        for study in (shelf.of_patient("99990000028"), shelf.of_patient("8NM1")):
            found, _ = await subject.ask(adapter, Level.SERIES, study=study.uid)
            assert sorted(row.series for row in found) == sorted(study.series)
            assert {text(row.attributes, tag("Modality")) for row in found} == study.modalities
            for uid, files in study.series.items():
                rows, _ = await subject.ask(adapter, Level.IMAGE, study=study.uid, series=uid)
                assert sorted(row.instance for row in rows) == sorted(file.uid for file in files)


@on(Finds)
async def test_series_are_found_by_their_modality(subject: Subject, shelf: Shelf) -> None:
    study, wanted = shelf.of_patient("99990000028"), exact("Modality", "SEG")
    async with subject.open() as adapter:
        rows, _ = await subject.ask(adapter, Level.SERIES, wanted, study=study.uid)
    [right] = [uid for uid, files in study.series.items() if files[0].dataset.Modality == "SEG"]
    assert [row.series for row in rows if decider(Query(Level.SERIES, (wanted,)))(row)[0]] == [right]


@on(Finds)
async def test_no_match_is_nothing_but_the_report(subject: Subject, shelf: Shelf) -> None:
    nobody = Query(Level.STUDY, (exact("StudyInstanceUID", NOWHERE),))
    async with subject.open() as adapter:
        items = [item async for item in adapter.find(subject.native(nobody))]
        below, _ = await subject.ask(adapter, Level.SERIES, study=NOWHERE)
    assert [type(item) for item in items] == [Report]
    assert below == []


@on(Finds)
async def test_a_limit_that_leaves_something_out_says_so(subject: Subject, shelf: Shelf) -> None:
    async with subject.open() as adapter:
        some, cut = await subject.ask(adapter, Level.STUDY, limit=3)
        every, whole = await subject.ask(adapter, Level.STUDY, limit=1000)
    assert len(some) == 3
    assert cut.truncated
    assert {study.uid for study in shelf.studies} <= {row.study for row in every}
    assert not whole.truncated


# --- leaving early


@on(Finds)
async def test_a_search_left_after_its_first_row_gives_its_connection_back(subject: Subject) -> None:
    """With one connection in all, whatever is not given back is missing at the next search."""
    everything = subject.native(Query(Level.STUDY))
    async with subject.open(connections=1) as adapter:
        for _ in range(5):
            async with aclosing(adapter.find(everything)) as found, asyncio.timeout(10):
                assert not isinstance(await anext(found), Report)
        async with asyncio.timeout(10):
            rows, _ = await subject.ask(adapter, Level.STUDY)
    assert rows


@on(Retrieves)
async def test_a_retrieve_left_or_cancelled_in_the_middle_gives_its_connection_back(
    subject: Subject, shelf: Shelf
) -> None:
    study = shelf.of_patient("48013990025")
    async with subject.open(connections=1) as adapter:
        for _ in range(3):
            async with aclosing(adapter.retrieve(Ref(study.uid))) as parts, asyncio.timeout(10):
                part = await anext(parts)
                await anext(aiter(part.body))
        for _ in range(3):
            await _cancelled_in_the_middle(adapter, study)
        async with asyncio.timeout(20):
            found = await retrieved(adapter, Ref(study.uid))
    assert len(found) == len(study.files)


async def _cancelled_in_the_middle(adapter: Any, study: HeldStudy) -> None:
    under_way = asyncio.Event()

    async def read() -> None:
        async with aclosing(adapter.retrieve(Ref(study.uid))) as parts:
            async for part in parts:
                async for _ in part.body:
                    under_way.set()
                    await asyncio.sleep(3600)

    task = asyncio.create_task(read())
    async with asyncio.timeout(10):
        await under_way.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@on(Finds)
async def test_nothing_is_left_open_once_an_adapter_is_closed(subject: Subject, shelf: Shelf) -> None:
    """Not even by searches and retrieves that were left in the middle: no thread, no connection, no open file."""
    before, files = _threads(), len(psutil.Process().open_files())
    async with subject.open() as adapter:
        async with aclosing(adapter.find(subject.native(Query(Level.STUDY)))) as found:
            await anext(found)
        if isinstance(adapter, Retrieves):
            async with aclosing(adapter.retrieve(Ref(shelf.studies[0].uid))) as parts:
                await anext(parts)
    await eventually(lambda: _connections(subject.port) == [])
    await eventually(lambda: _threads() <= before)
    await eventually(lambda: len(psutil.Process().open_files()) <= files)  # a simulator's are its own, for a moment


def _threads() -> set[str]:
    """Those that an adapter starts: asyncio's own workers, and a simulator's, come and go as they like."""
    own = ("asyncio_", "Thread-", "simulator", "MainThread", "AcceptorThread")
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith(own)}


def _connections(port: int) -> list[Any]:
    """This process's own towards the peer, not those that the peer may have among its own."""
    return [
        one
        for one in psutil.Process().net_connections("tcp")
        if port and one.raddr and one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED
    ]


# --- retrieving


async def retrieved(adapter: Any, ref: Ref) -> dict[str, tuple[Part, bytes]]:
    """Every instance under a reference by its UID; none comes twice."""
    found: dict[str, tuple[Part, bytes]] = {}
    async with aclosing(adapter.retrieve(ref)) as parts:
        async for part in parts:
            assert part.sop_instance_uid not in found
            chunks = [chunk async for chunk in part.body]
            assert max(map(len, chunks)) <= 1 << 20
            found[part.sop_instance_uid] = part, b"".join(chunks)
    return found


@on(Retrieves)
async def test_every_study_is_retrieved_as_the_files_are(subject: Subject, shelf: Shelf) -> None:
    async with subject.open() as adapter:
        for study in shelf.studies:
            if excepted(subject, "compressed") and not _is_sent_by_dcmqrscp(study):
                with pytest.raises(NodeProtocolError):
                    await retrieved(adapter, Ref(study.uid))
                continue
            found = await retrieved(adapter, Ref(study.uid))
            assert sorted(found) == sorted(file.uid for file in study.files)
            for file in study.files:
                _is_the_file(subject, *found[file.uid], file)


def _is_sent_by_dcmqrscp(study: HeldStudy) -> bool:
    syntaxes = {UID(file.transfer_syntax) for file in study.files}
    return all(not syntax.is_encapsulated or syntax == JPEG2000 for syntax in syntaxes)


@on(Retrieves)
async def test_a_series_and_an_instance_are_retrieved_alone(subject: Subject, shelf: Shelf) -> None:
    study = shelf.of_patient("99990000028")
    async with subject.open() as adapter:
        for uid, files in study.series.items():
            assert sorted(await retrieved(adapter, Ref(study.uid, uid))) == sorted(file.uid for file in files)
        file = study.files[0]
        [(part, body)] = (await retrieved(adapter, Ref(study.uid, file.series, file.uid))).values()
    _is_the_file(subject, part, body, file)


def _is_the_file(subject: Subject, part: Part, body: bytes, file: HeldFile) -> None:
    """A Part 10 file in the syntax it is declared in, with the data set of the file: the same bytes where they are kept."""
    given = pydicom.dcmread(BytesIO(body))
    assert part.transfer_syntax == given.file_meta.TransferSyntaxUID == file.transfer_syntax
    assert given.file_meta.MediaStorageSOPInstanceUID == given.SOPInstanceUID == part.sop_instance_uid
    assert part.series_instance_uid in ("", file.series)
    assert part.size in (None, len(body))
    assert body[128:132] == b"DICM"
    if subject.keeps_bytes:
        assert body.endswith(file.dataset_bytes)
    expected = file.dataset
    if excepted(subject, "encapsulation") and UID(file.transfer_syntax).is_encapsulated:
        assert _frames_of(given) == _frames_of(expected)
        given, expected = _without_encapsulation(given), _without_encapsulation(expected)
    assert given == expected


def _without_encapsulation(dataset: pydicom.Dataset) -> pydicom.Dataset:
    kept = pydicom.Dataset()
    kept.update({element.tag: element for element in dataset if element.tag not in (0x7FE00010, 0xFFFCFFFC)})
    return kept


@on()
async def test_what_is_not_there_is_an_empty_stream(subject: Subject, shelf: Shelf) -> None:
    study = shelf.studies[0]
    async with subject.open() as adapter:
        for ref in (Ref(NOWHERE), Ref(study.uid, NOWHERE), Ref(study.uid, study.files[0].series, NOWHERE)):
            if isinstance(adapter, Retrieves):
                assert await retrieved(adapter, ref) == {}
            if isinstance(adapter, Describes):
                assert [one async for one in adapter.describe(ref)] == []
        if isinstance(adapter, Locates):
            assert list(await adapter.locate(Ref(NOWHERE))) == []


@on(Locates)
async def test_a_study_that_is_there_has_a_location(subject: Subject, shelf: Shelf) -> None:
    async with subject.open() as adapter:
        for study in shelf.studies:
            [location] = await adapter.locate(Ref(study.uid))
            assert location.protocol == "dicomweb"
            assert location.address.endswith("/dicom-web")


# --- describing, frames, bulk data

_UNSAID = {"00080005"}  # every description is in UTF-8
_BULK_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN", "SQ"})


@on(Describes)
async def test_every_instance_is_described_with_its_vrs(subject: Subject, shelf: Shelf) -> None:
    async with subject.open() as adapter:
        for study in shelf.studies:
            described = [one async for one in adapter.describe(Ref(study.uid))]
            by_uid = {text(one, tag("SOPInstanceUID")): one for one in described}
            assert len(described) == len(by_uid)
            assert sorted(by_uid) == sorted(file.uid for file in study.files)
            for file in study.files:
                _says_what_the_file_says(by_uid[file.uid], file)


def _says_what_the_file_says(described: dict[str, Any], file: HeldFile) -> None:
    for element in file.dataset:
        name = f"{int(element.tag):08X}"
        if name in _UNSAID or element.VR in _BULK_VRS or element.tag.is_private or element.tag.element == 0:
            continue
        assert described[name]["vr"] == element.VR, element.keyword
        if element.VR in ("PN", "LO", "SH", "DA", "TM", "UI", "CS") and element.VM == 1:
            value = str(element.value).strip()
            assert text(described, name).rstrip("=").strip() == value.rstrip("="), element.keyword


@on(Frames)
async def test_every_frame_is_the_files_own(subject: Subject, shelf: Shelf) -> None:
    async with subject.open() as adapter:
        for file in shelf.files:
            if "PixelData" not in file.dataset:
                continue
            frames = _frames_of(file.dataset)
            numbers = list(range(1, len(frames) + 1))[::-1]
            found = [
                (part.number, b"".join([chunk async for chunk in part.body]))
                async for part in adapter.frames(Ref(file.study, file.series, file.uid), numbers)
            ]
            assert [number for number, _ in found] == numbers
            for number, content in found:
                assert content == frames[number - 1]


def _frames_of(dataset: pydicom.Dataset) -> list[bytes]:
    count = int(dataset.get("NumberOfFrames") or 1)
    if UID(dataset.file_meta.TransferSyntaxUID).is_encapsulated:
        return list(generate_frames(dataset.PixelData, number_of_frames=count))
    size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
    return [dataset.PixelData[start : start + size] for start in range(0, count * size, size)]


@on(Frames)
async def test_a_frame_the_instance_does_not_have_is_the_callers_mistake(subject: Subject, shelf: Shelf) -> None:
    file = shelf.of_patient("12345").files[0]
    async with subject.open() as adapter:
        with pytest.raises(InvalidQuery):
            await anext(adapter.frames(Ref(file.study, file.series, file.uid), [2]))


@on(Describes, BulkData)
async def test_what_is_described_by_address_is_there_at_the_address(subject: Subject, shelf: Shelf) -> None:
    file = shelf.of_patient("12345").files[0]
    ref = Ref(file.study, file.series, file.uid)
    async with subject.open() as adapter:
        [described] = [one async for one in adapter.describe(ref)]
        address = described["7FE00010"]["BulkDataURI"]
        value = [chunk async for part in adapter.bulkdata(ref, address) async for chunk in part.body]
    assert b"".join(value) == file.dataset.PixelData


# --- storing


@on(Stores, Finds, Retrieves)
async def test_what_is_stored_is_found_and_comes_back(subject: Subject, shelf: Shelf) -> None:
    made = pydicom.dcmread(shelf.of_patient("12345").files[0].path)
    made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = (generate_uid() for _ in range(3))
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    written = BytesIO()
    made.save_as(written)

    async def parts() -> AsyncIterator[Part]:
        yield Part(made.SOPInstanceUID, made.file_meta.TransferSyntaxUID, _chunks(written.getvalue()))

    async with subject.open() as adapter:
        [outcome] = [told async for told in adapter.store(parts())]
        assert (outcome.sop_instance_uid, outcome.failure) == (made.SOPInstanceUID, 0)
        rows, _ = await subject.ask(adapter, Level.STUDY, exact("StudyInstanceUID", made.StudyInstanceUID))
        assert [row.study for row in rows] == [made.StudyInstanceUID]
        [(_, body)] = (await retrieved(adapter, Ref(made.StudyInstanceUID))).values()
    assert pydicom.dcmread(BytesIO(body)) == made


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


# --- peers that are not well


NETWORKED: dict[str, Callable[[int], Callable[[Limits], Any]]] = {
    "dicomweb": lambda port: over_dicomweb(f"http://127.0.0.1:{port}/dicom-web"),
    "dimse": lambda port: over_dimse(port, "SILENT"),
    "fhir": lambda port: over_fhir(f"http://127.0.0.1:{port}/fhir", "R4"),
}


def _operations(adapter: Any, native: Any) -> list[AsyncIterator[Any]]:
    operations = [adapter.find(native)]
    if isinstance(adapter, Retrieves):
        operations.append(adapter.retrieve(Ref("1.2.3")))
    if isinstance(adapter, Describes):
        operations.append(adapter.describe(Ref("1.2.3")))
    return operations


@pytest.mark.parametrize("protocol", NETWORKED)
async def test_a_peer_that_takes_the_connection_and_says_nothing_is_a_timeout_in_time(protocol: str) -> None:
    with BlackHole() as silent:
        make = NETWORKED[protocol](silent.port)
        subject = Subject(protocol, make, "fhir-r4" if protocol == "fhir" else "dicom")
        async with opened(make(Limits(deadline=0.5))) as adapter:
            for operation in _operations(adapter, subject.native(Query(Level.STUDY))):
                began = time.monotonic()
                with pytest.raises(NodeTimeout):
                    await anext(operation)
                assert time.monotonic() - began < 3
        await eventually(lambda: _connections(silent.port) == [])


@pytest.mark.parametrize("protocol", NETWORKED)
async def test_a_port_nobody_listens_on_is_a_node_that_cannot_be_reached(protocol: str) -> None:
    make = NETWORKED[protocol](free_port())
    subject = Subject(protocol, make, "fhir-r4" if protocol == "fhir" else "dicom")
    async with opened(make(Limits(deadline=5))) as adapter:
        for operation in _operations(adapter, subject.native(Query(Level.STUDY))):
            with pytest.raises(NodeUnreachable):
                await anext(operation)


async def test_a_directory_that_is_not_there_is_a_node_that_cannot_be_reached(tmp_path: Any) -> None:
    make = over_files(tmp_path / "gone")
    subject = Subject("files", make)
    with pytest.raises(NodeUnreachable):
        async with opened(make(Limits())) as adapter:
            await anext(adapter.find(subject.native(Query(Level.STUDY))))


@pytest.mark.parametrize("protocol", [*NETWORKED, "files"])
def test_a_constructor_reads_nothing_connects_nowhere_and_starts_no_thread(protocol: str, tmp_path: Any) -> None:
    make = over_files(tmp_path / "gone") if protocol == "files" else NETWORKED[protocol](free_port())
    process = psutil.Process()
    files, threads = process.num_fds(), process.num_threads()  # of which those of earlier tests may be about to end
    adapter = make(Limits())
    assert process.num_fds() <= files
    assert process.num_threads() <= threads
    assert not (tmp_path / "gone").exists()
    assert isinstance(adapter, Adapter)
