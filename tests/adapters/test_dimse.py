"""The DIMSE adapter against dcmqrscp, Orthanc and the simulator."""

import asyncio
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import replace

import psutil
import pydicom
import pytest
from dimse_peers import CT, MOVE_DESTINATION, NAMES, dcmqrscp, multi_frame, named_file, orthanc
from hypothesis import assume, given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.dimse_primitives import C_GET
from pynetdicom.sop_class import CTImageStorage, StudyRootQueryRetrieveInformationModelGet, Verification

from gateway.adapters.dimse import DimseAdapter, StorageReceiver, storage_scp
from gateway.adapters.dimse.identifiers import TextMatching, request_of
from gateway.adapters.dimse.messages import EXPLICIT, encoded_identifier, identifier_of
from gateway.errors import (
    NodeBusy,
    NodeError,
    NodeProtocolError,
    NodeRefused,
    NodeTimeout,
    NodeUnreachable,
    Unsupported,
)
from gateway.model.folding import fold_name
from gateway.model.matching import matches, wildcard
from gateway.model.query import Match, Operator, Ref
from gateway.model.seam import NativeMatch, NativeQuery, Part, Report
from gateway.model.vocabulary import PATIENT_NAME, Level
from gateway.simulators._dimse_index import STUDY
from gateway.simulators._dimse_query import PENDING
from gateway.simulators._dimse_sending import StoredFile
from gateway.simulators.dimse import DimseOptions, DimseSimulator
from gateway.wire.charset import codec_of
from gateway.wire.filemeta import file_meta
from tests import peers

FILES = ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm", "rtplan.dcm", "test-SR.dcm"]


@pytest.fixture(scope="module")
def destination_port():
    return peers.free_port()


@pytest.fixture(scope="module")
def named_files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("names")
    return {character_set: named_file(directory, character_set) for character_set in NAMES}


@pytest.fixture(scope="module")
def dcmtk(tmp_path_factory, destination_port, named_files):
    with dcmqrscp(tmp_path_factory.mktemp("dcmqrscp") / "peer", destination_port) as peer:
        peer.load(get_testdata_file("CT_small.dcm"), get_testdata_file("MR_small.dcm"), *named_files.values())
        peer.load(get_testdata_file("JPEG2000.dcm"), option="-xw")
        yield peer


@pytest.fixture(scope="module")
def orthanc_peer(tmp_path_factory, destination_port, named_files):
    with orthanc(tmp_path_factory.mktemp("orthanc") / "peer", destination_port) as peer:
        peer.load(get_testdata_file("CT_small.dcm"), get_testdata_file("MR_small.dcm"), *named_files.values())
        peer.load(get_testdata_file("JPEG2000.dcm"), option="-xw")
        yield peer


@pytest.fixture(params=["dcmqrscp", "Orthanc"])
def peer(request):
    return request.getfixturevalue("dcmtk" if request.param == "dcmqrscp" else "orthanc_peer")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, named_files):
    directory = tmp_path_factory.mktemp("corpus")
    for name in FILES:
        shutil.copy(get_testdata_file(name), directory / name)
    for path in named_files.values():
        shutil.copy(path, directory)
    return directory


@pytest.fixture
def simulator(corpus):
    with DimseSimulator(corpus) as running:
        yield running


@asynccontextmanager
async def adapter_of(peer, **options):
    address = {"host": "127.0.0.1", "port": peer.port, "called_ae_title": peer.ae_title}
    adapter = DimseAdapter("hospital", **(address | options))
    await adapter.open()
    try:
        yield adapter
    finally:
        await adapter.close()


@asynccontextmanager
async def receiver_on(port, *senders):
    receiver = StorageReceiver(MOVE_DESTINATION, "127.0.0.1", port, {sender: ["localhost"] for sender in senders})
    await receiver.open()
    try:
        yield receiver
    finally:
        await receiver.close()


async def rows_of(adapter, query):
    found = [item async for item in adapter.find(query)]
    assert isinstance(found[-1], Report)
    return found[:-1], found[-1]


async def parts_of(adapter, ref):
    return {
        part.sop_instance_uid: (part, b"".join([c async for c in part.body])) async for part in adapter.retrieve(ref)
    }


def key(path, value, operator=Operator.EXACT):
    return NativeMatch(path, operator, value if isinstance(value, tuple) else (value,))


def dimse_threads():
    return [t for t in threading.enumerate() if "RequestorThread" in t.name or "run_reactor" in t.name]


async def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert condition()


# Finds


async def test_every_level_is_found_below_its_parents(peer):
    async with adapter_of(peer) as adapter:
        studies, _ = await rows_of(adapter, NativeQuery(Level.STUDY, (key("StudyInstanceUID", CT),)))
        assert [row.value("PatientID") for row in studies] == ["1CT1"]
        series, _ = await rows_of(adapter, NativeQuery(Level.SERIES, study=CT))
        assert [row.value("Modality") for row in series] == ["CT"]
        uid = series[0].value("SeriesInstanceUID")
        images, _ = await rows_of(adapter, NativeQuery(Level.IMAGE, study=CT, series=uid))
        assert [row.value("SOPInstanceUID") for row in images] == ["1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"]


@pytest.mark.parametrize("character_set", NAMES)
async def test_a_name_in_raw_bytes_is_found_with_and_without_diacritics_and_case(simulator, character_set):
    name = NAMES[character_set]
    async with adapter_of(simulator) as adapter:
        for asked in (name, fold_name(name), name.upper(), fold_name(name)[:3] + "*"):
            operator = Operator.WILDCARD if "*" in asked else Operator.EXACT
            rows, report = await rows_of(adapter, NativeQuery(Level.STUDY, (key("PatientName", asked, operator),)))
            assert name in [row.value("PatientName") for row in rows]
            assert report.ignored >= {"PatientName"}


@pytest.mark.parametrize("character_set", NAMES)
async def test_a_real_peers_names_are_found_however_they_are_asked_for(peer, character_set):
    """Neither peer gives (0008,0005) of the file back with certainty: the node's own set decides (dcmqrscp)."""
    name = NAMES[character_set]
    async with adapter_of(peer, character_set=character_set) as adapter:
        await adapter.probe()
        for asked in (name, fold_name(name), name.upper()):
            rows, _ = await rows_of(adapter, NativeQuery(Level.STUDY, (key("PatientName", asked),)))
            mine = [row for row in rows if row.value("PatientID") == character_set.replace(" ", "")]
            assert [row.value("PatientName") for row in mine] == [name]


async def test_a_widened_name_still_narrows_where_the_node_ignores_case_and_its_set_is_known(orthanc_peer):
    async with adapter_of(orthanc_peer, character_set="ISO_IR 101") as adapter:
        everything, _ = await rows_of(adapter, NativeQuery(Level.STUDY))
        await adapter.probe()
        rows, report = await rows_of(adapter, NativeQuery(Level.STUDY, (key("PatientName", "zizka^jan"),)))
        assert [row.value("PatientName") for row in rows] == ["Žižka^Jan"]
        assert len(everything) > 1
        assert report.ignored == {"PatientName"}


async def test_exact_name_matching_pushes_the_key_in_the_nodes_character_set(simulator):
    async with adapter_of(simulator, name_matching="exact", character_set="ISO_IR 101") as adapter:
        rows, report = await rows_of(adapter, NativeQuery(Level.STUDY, (key("PatientName", "Žižka^Jan"),)))
        assert [row.value("PatientName") for row in rows] == ["Žižka^Jan"]
        assert report.matched == {"PatientName"}
        assert simulator.requests[-1][1].SpecificCharacterSet == "ISO_IR 101"


async def test_letters_that_the_nodes_set_lacks_go_out_as_question_marks_and_the_key_is_not_matched(simulator):
    async with adapter_of(simulator, name_matching="exact", character_set="ISO_IR 101") as adapter:
        _, report = await rows_of(adapter, NativeQuery(Level.STUDY, (key("PatientName", "Žiжka^Jan"),)))
        assert simulator.requests[-1][1].PatientName == "Ži?ka^Jan"
        assert report.ignored == {"PatientName"}


async def test_an_ascii_request_leaves_the_character_set_empty(simulator):
    async with adapter_of(simulator, character_set="ISO_IR 101") as adapter:
        await rows_of(adapter, NativeQuery(Level.STUDY, (key("PatientID", "1CT1"),)))
        identifier = simulator.requests[-1][1]
        assert "SpecificCharacterSet" in identifier
        assert not identifier.SpecificCharacterSet


async def test_a_key_that_the_node_returns_no_value_for_counts_as_ignored(dcmtk):
    async with adapter_of(dcmtk) as adapter:
        rows, report = await rows_of(adapter, NativeQuery(Level.STUDY, (key("ModalitiesInStudy", "ZZ"),)))
        assert rows
        assert report.ignored == {"ModalitiesInStudy"}


async def test_status_ff01_makes_every_key_but_the_unique_ones_ignored(corpus):
    with DimseSimulator(corpus, options=DimseOptions(ignored_keys=frozenset({"Modality"}))) as simulator:
        async with adapter_of(simulator) as adapter:
            query = NativeQuery(Level.SERIES, (key("Modality", "ZZ"), key("SeriesInstanceUID", "*")), study=CT)
            query = replace(query, match=(key("Modality", "ZZ"), key("StudyInstanceUID", CT)))
            rows, report = await rows_of(adapter, query)
    assert len(rows) == 1
    assert (report.matched, report.ignored) == ({"StudyInstanceUID"}, {"Modality"})


async def test_times_numbers_and_lists_are_left_to_us_and_uid_lists_and_date_ranges_are_pushed(simulator):
    uids = (CT, "1.3.6.1.4.1.5962.1.2.4.20040826185059.5457")
    keys = (
        key("StudyInstanceUID", uids, Operator.LIST),
        key("StudyDate", ("20040101", "20041231"), Operator.RANGE),
        key("StudyTime", ("0900", "1000"), Operator.RANGE),
        key("ModalitiesInStudy", ("CT", "MR"), Operator.LIST),
        key("SomethingElse", "1"),
    )
    async with adapter_of(simulator) as adapter:
        rows, report = await rows_of(adapter, NativeQuery(Level.STUDY, keys))
    assert {row.value("StudyInstanceUID") for row in rows} == set(uids)
    assert report.matched == {"StudyInstanceUID", "StudyDate"}
    assert report.ignored == {"StudyTime", "ModalitiesInStudy"}
    assert report.unknown == {"SomethingElse"}
    assert simulator.requests[-1][1].StudyDate == "20040101-20041231"


async def test_a_sequence_key_goes_into_its_item_and_cannot_become_two_values(simulator):
    keys = (key("RequestAttributesSequence.ScheduledProcedureStepID", "A\\B"),)
    async with adapter_of(simulator) as adapter:
        _, report = await rows_of(adapter, NativeQuery(Level.SERIES, keys, study=CT))
    (item,) = simulator.requests[-1][1].RequestAttributesSequence
    assert item.ScheduledProcedureStepID == "A?B"
    assert not report.matched


async def test_a_series_query_without_its_study_is_unsupported_on_a_hierarchical_node(simulator):
    async with adapter_of(simulator) as adapter:
        with pytest.raises(Unsupported):
            await rows_of(adapter, NativeQuery(Level.SERIES))


async def test_a_limit_stops_the_node_and_says_that_there_was_more(simulator):
    async with adapter_of(simulator) as adapter:
        rows, report = await rows_of(adapter, NativeQuery(Level.STUDY, limit=2))
        assert (len(rows), report.truncated) == (2, True)
        rows, report = await rows_of(adapter, NativeQuery(Level.STUDY, limit=50))
        assert not report.truncated


@pytest.mark.parametrize("status", [0xA700, 0xFE00])
async def test_out_of_resources_is_a_truncated_answer_and_so_is_a_cancel_that_nobody_asked_for(corpus, status):
    """Orthanc ends with FE00 at its LimitFindResults."""
    with DimseSimulator(corpus, options=DimseOptions(max_results=2, max_results_status=status)) as simulator:
        async with adapter_of(simulator) as adapter:
            rows, report = await rows_of(adapter, NativeQuery(Level.STUDY))
    assert (len(rows), report.truncated) == (2, True)


async def test_searches_share_one_association_and_it_is_released_when_idle(simulator, monkeypatch):
    monkeypatch.setattr("gateway.adapters.dimse.operations.KEPT_IDLE", 0.3)
    async with adapter_of(simulator) as adapter:
        for _ in range(5):
            await rows_of(adapter, NativeQuery(Level.STUDY))
        assert simulator.operations["association"] == 1
        assert adapter.associations.idle == 1
        await until(lambda: simulator.operations["released"] == 1 and simulator.open_associations == 0)


async def test_an_idle_association_that_the_node_closed_is_not_used_again(corpus):
    simulator = DimseSimulator(corpus)
    port = simulator.start()
    async with adapter_of(simulator) as adapter:
        await rows_of(adapter, NativeQuery(Level.STUDY))
        simulator.stop()
        simulator = DimseSimulator(corpus, port=port)
        simulator.start()
        rows, _ = await rows_of(adapter, NativeQuery(Level.STUDY))
        assert rows
    simulator.stop()


async def test_leaving_a_search_early_aborts_its_association(simulator, monkeypatch):
    monkeypatch.setattr("gateway.adapters.dimse.adapter._ROWS_AHEAD", 1)
    async with adapter_of(simulator) as adapter:
        async with aclosing(adapter.find(NativeQuery(Level.STUDY))) as rows:
            await anext(rows)
        await until(lambda: simulator.operations["aborted"] == 1 and simulator.open_associations == 0, 1.0)
        assert adapter.associations.in_use == 0
        assert adapter.associations.idle == 0


async def test_an_association_that_was_stopped_as_its_search_ended_is_never_used_again(simulator):
    async with adapter_of(simulator) as adapter:
        first = [item async for item in adapter.find(NativeQuery(Level.STUDY))]
        ((_, idle),) = adapter.associations._idle
        idle.stop()
        second = [item async for item in adapter.find(NativeQuery(Level.STUDY))]
    assert len(second) == len(first)
    assert isinstance(second[-1], Report)


async def test_work_that_is_stopped_under_its_reader_is_an_error_and_no_end(simulator):
    async with adapter_of(simulator) as adapter:
        simulator.options = replace(simulator.options, delay=0.5)
        try:
            asking = asyncio.ensure_future(anext(adapter.find(NativeQuery(Level.STUDY))))
            await until(lambda: simulator.open_associations == 1, 3.0)
            for operation in list(adapter.associations._operations):
                operation.stop()
            with pytest.raises(NodeBusy):
                await asyncio.wait_for(asking, 5)
        finally:
            simulator.options = replace(simulator.options, delay=0.0)


async def test_a_slow_reader_gets_every_row(simulator):
    async with adapter_of(simulator) as adapter:
        seen = 0
        async for _ in adapter.find(NativeQuery(Level.STUDY)):
            await asyncio.sleep(0.01)
            seen += 1
        assert seen == 9 + 1


@given(
    name=st.text("KkBbSsŠśŽzżŁlAaÄáěEe0^ -", min_size=1, max_size=12),
    plain=st.booleans(),
    upper=st.booleans(),
    start=st.integers(0, 12),
    character_set=st.sampled_from(["ISO_IR 101", "ISO_IR 100", "ISO_IR 192", ""]),
    ignores_case=st.booleans(),
)
def test_a_pushed_name_finds_at_least_what_we_would_match(name, plain, upper, start, character_set, ignores_case):
    """Whatever of the stored name the caller types, the pushed key must not be narrower than our own matching."""
    assume(set(name) <= set("^ -") or set(name).issubset(_letters_of(character_set) | set("^ -")))
    typed = fold_name(name) if plain else name
    typed = (typed.upper() if upper else typed)[:start] + "*"
    row = {PATIENT_NAME: {"vr": "PN", "Value": [{"Alphabetic": name}]}}
    assume(matches(Match((PATIENT_NAME,), Operator.WILDCARD, (typed,)), row))
    matching = TextMatching(character_set=character_set, ignores_case=ignores_case)
    pushed, is_same = matching.name(typed)
    assert not is_same
    stored, sent = (name.lower(), pushed.lower()) if ignores_case else (name, pushed)
    assert not pushed or wildcard(sent).fullmatch(stored)


def _letters_of(character_set):
    codec = codec_of(character_set) if character_set else "utf_8"
    return {c for c in "KkBbSsŠśŽzżŁlAaÄáěEe0" if c.encode(codec, "ignore")}


def test_a_latin_2_name_keeps_the_letters_that_have_no_accented_kin():
    matching = TextMatching(character_set="ISO_IR 101", ignores_case=True)
    assert matching.name("Kowalski^Jan") == ("*K*w*k*J*", False)
    assert TextMatching(character_set="ISO_IR 192", ignores_case=True).name("Kowalski^Jan") == ("", False)
    assert TextMatching(character_set="ISO_IR 101").name("Kowalski^Jan") == ("", False)


def test_other_text_is_pushed_as_it_is_unless_it_is_not_ascii():
    assert TextMatching().text(" CT*HEAD ", "LO") == ("CT*HEAD", True)
    assert TextMatching().text("Kręgosłup szyjny", "LO") == ("Kr*gos*up szyjny", False)


@pytest.mark.parametrize(("value", "sent"), [("Müll", "M*ll"), ("山MR", "*MR"), ("山", None)])
def test_what_no_character_set_is_for_is_asked_in_ascii_also_where_keys_go_out_as_they_are(value, sent):
    matching = TextMatching(exact=True, character_set="ISO_IR 192")
    request = request_of(NativeQuery(Level.SERIES, (key("Modality", value),), study=CT), matching)
    asked = identifier_of(encoded_identifier(request.identifier, EXPLICIT), EXPLICIT)
    assert (asked.Modality or None) == sent
    assert not request.report(truncated=False).matched


# Retrieves


def bare_get(peer, study):
    """SOPInstanceUID -> data set bytes, as pynetdicom alone gets them."""
    received = {}

    def on_store(event):
        received[event.request.AffectedSOPInstanceUID] = event.request.DataSet.getvalue()
        return 0x0000

    entity = AE()
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
    entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    roles = [build_role(CTImageStorage, scp_role=True)]
    association = entity.associate(
        "127.0.0.1", peer.port, ae_title=peer.ae_title, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    identifier = pydicom.Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", study
    list(association.send_c_get(identifier, StudyRootQueryRetrieveInformationModelGet))
    association.release()
    return received


async def test_a_part_is_exactly_the_bytes_that_a_bare_c_get_gets(peer):
    expected = await asyncio.to_thread(bare_get, peer, CT)
    async with adapter_of(peer) as adapter:
        parts = await parts_of(adapter, Ref(CT))
    assert expected.keys() == parts.keys()
    for uid, (part, body) in parts.items():
        header = file_meta(CTImageStorage, uid, part.transfer_syntax)
        assert body == header + expected[uid]
        assert part.series_instance_uid == "1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322"


async def test_what_is_stored_compressed_comes_compressed(peer):
    stored = pydicom.dcmread(get_testdata_file("JPEG2000.dcm"))
    async with adapter_of(peer) as adapter:
        ((part, body),) = (await parts_of(adapter, Ref(stored.StudyInstanceUID))).values()
    assert part.transfer_syntax == stored.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.91"
    assert stored.PixelData in body


async def test_files_of_the_simulator_come_with_their_own_data_set_bytes(simulator, corpus):
    async with adapter_of(simulator) as adapter:
        for name in FILES:
            stored = pydicom.dcmread(corpus / name)
            parts = await parts_of(adapter, Ref(stored.StudyInstanceUID))
            part, body = parts[stored.SOPInstanceUID]
            assert part.transfer_syntax == stored.file_meta.TransferSyntaxUID
            header = file_meta(stored.SOPClassUID, stored.SOPInstanceUID, part.transfer_syntax)
            assert (corpus / name).read_bytes().endswith(body[len(header) :])


async def test_series_and_instances_are_retrieved_alone(peer):
    series = "1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322"
    instance = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"
    async with adapter_of(peer) as adapter:
        for ref in (Ref(CT, series), Ref(CT, series, instance), Ref(CT, None, instance)):
            assert list(await parts_of(adapter, ref)) == [instance]


@pytest.mark.parametrize("retrieve", ["get", "auto"])
async def test_what_the_node_does_not_have_is_an_empty_stream(peer, retrieve):
    async with adapter_of(peer, retrieve=retrieve) as adapter:
        assert await parts_of(adapter, Ref("1.2.3.4.5.6.7.8.9")) == {}


async def test_c_move_brings_the_same_bytes_as_c_get(peer, destination_port):
    async with (
        receiver_on(destination_port, peer.ae_title) as receiver,
        adapter_of(peer, retrieve="move", move_receiver=receiver) as moving,
        adapter_of(peer, retrieve="get") as getting,
    ):
        moved, got = await parts_of(moving, Ref(CT)), await parts_of(getting, Ref(CT))
    assert {uid: body for uid, (_, body) in moved.items()} == {uid: body for uid, (_, body) in got.items()}
    assert len(moved) == 1


@pytest.mark.parametrize("takes_no_storage", [False, True])
async def test_where_c_get_is_not_offered_c_move_takes_over(corpus, takes_no_storage):
    """Also at an AE title for queries alone, which accepts nothing at all of what is proposed for a C-GET."""
    receiver = StorageReceiver(
        MOVE_DESTINATION, "127.0.0.1", 0, {"SIMULATOR": ["127.0.0.1"], "PYNETDICOM": ["127.0.0.1"]}
    )
    await receiver.open()
    destinations = {MOVE_DESTINATION: ("127.0.0.1", receiver.port)}
    options = DimseOptions(no_get=True, no_storage=takes_no_storage, destinations=destinations)
    with DimseSimulator(corpus, options=options) as simulator:
        async with adapter_of(simulator, move_receiver=receiver) as adapter:
            parts = await parts_of(adapter, Ref(CT))
        assert (len(parts), simulator.operations["C-MOVE"]) == (1, 1)
        async with adapter_of(simulator) as adapter:
            with pytest.raises(Unsupported):
                await parts_of(adapter, Ref(CT))
    await receiver.close()


class Refusing(DimseSimulator):
    """A PACS that answers every C-GET with one status."""

    status = 0xA701

    def _on_get(self, event):
        self._count("C-GET")
        yield 1
        yield self.status, None


@pytest.mark.parametrize(("status", "error"), [(0xA701, NodeBusy), (0x0124, NodeRefused)])
async def test_a_pacs_that_refuses_a_c_get_is_not_asked_again_in_each_transfer_syntax(corpus, status, error):
    """It got 18 of them for each series, also where it had just said that it is out of resources."""
    with Refusing(corpus) as simulator:
        simulator.status = status
        async with adapter_of(simulator) as adapter:
            with pytest.raises(error):
                await parts_of(adapter, Ref(CT))
        assert simulator.operations["C-GET"] == 1


async def test_a_pacs_that_does_not_take_the_role_of_sending_is_not_asked_again_in_each_transfer_syntax(corpus):
    with DimseSimulator(corpus) as simulator:
        for context in simulator._server.contexts:
            context.scu_role = context.scp_role = None
        async with adapter_of(simulator) as adapter:
            with pytest.raises(Unsupported):
                await parts_of(adapter, Ref(CT))
        assert simulator.operations["association"] == 2  # one for C-FIND


class Listless(DimseSimulator):
    """A PACS that cannot list what it has below a study; it sends an instance twice, and then gives up over that."""

    def _on_find(self, event):
        yield 0xA900, None

    def _on_get(self, event):
        yield 3
        first = StoredFile(self._selected(event.identifier, STUDY)[0])
        yield PENDING, first
        yield PENDING, first
        given_up = C_GET()
        given_up.MessageIDBeingRespondedTo, given_up.Status = event.message_id, 0xC000  # and no counts
        event.assoc.dimse.send_msg(given_up, event.context.context_id)


async def test_where_nothing_is_listed_a_c_move_to_another_host_than_ours_is_an_error_and_no_empty_study(
    corpus, tmp_path
):
    with DimseSimulator(tmp_path) as elsewhere:
        options = DimseOptions(no_get=True, destinations={MOVE_DESTINATION: ("127.0.0.1", elsewhere.port)})
        async with receiver_on(0, "SIMULATOR") as receiver:
            with Listless(corpus, options=options) as simulator:
                async with adapter_of(simulator, move_receiver=receiver) as adapter:
                    with pytest.raises(NodeProtocolError, match="1 instances that it says it sent did not arrive"):
                        await parts_of(adapter, Ref(CT))
        assert elsewhere.operations["C-STORE"] == 1


async def test_where_nothing_is_listed_a_pacs_that_gives_up_over_an_instance_that_we_refused_has_not_sent_all(corpus):
    with Listless(corpus) as simulator:
        async with adapter_of(simulator) as adapter:
            with pytest.raises(NodeRefused):
                await parts_of(adapter, Ref(CT))


class Forgetful(DimseSimulator):
    """A PACS that lists a series and says, with success, that it has no instances."""

    forgotten = ""

    def _on_find(self, event):
        asked = event.identifier
        if asked.QueryRetrieveLevel == "IMAGE" and asked.SeriesInstanceUID == self.forgotten:
            yield 0x0000, None
            return
        yield from super()._on_find(event)


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_series_that_is_listed_without_instances_comes_too_or_the_study_does_not_end_neatly(tmp_path, is_there):
    """Its class was not proposed, and that its instances could not be sent was nothing beside all listed ones."""
    study = generate_uid()[:50]
    classes = ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.67"]
    for number, sop_class in enumerate(classes):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.StudyInstanceUID, dataset.SOPInstanceUID = study, f"{study}.{number}"
        dataset.SeriesInstanceUID, dataset.Modality = f"{study}.9{number}", ("CT", "SR")[number]
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(tmp_path / f"{number}.dcm")
    with Forgetful(tmp_path) as simulator:
        simulator.forgotten = f"{study}.91"
        if not is_there:
            (tmp_path / "1.dcm").unlink()
        async with adapter_of(simulator) as adapter:
            if is_there:
                assert len(await parts_of(adapter, Ref(study))) == 2
            else:
                with pytest.raises(NodeError):
                    await parts_of(adapter, Ref(study))


async def test_the_receiver_refuses_strangers_and_what_nobody_asked_for(destination_port):
    path = get_testdata_file("CT_small.dcm")

    def send(calling):
        entity = AE(calling)
        entity.add_requested_context(CTImageStorage)
        association = entity.associate("127.0.0.1", destination_port, ae_title=MOVE_DESTINATION)
        if not association.is_established:
            return "rejected" if association.is_rejected else "aborted"
        status = association.send_c_store(pydicom.dcmread(path))
        association.release()
        return status.Status

    async with receiver_on(destination_port, "FRIEND"):
        assert await asyncio.to_thread(send, "STRANGER") == "rejected"
        assert await asyncio.to_thread(send, "FRIEND") == 0x0124


async def test_strangers_who_connect_and_say_nothing_keep_no_place_from_those_who_may_call(destination_port):
    def calls():
        entity = AE("FRIEND")
        entity.add_requested_context(CTImageStorage)
        association = entity.associate("127.0.0.1", destination_port, ae_title=MOVE_DESTINATION)
        was_taken = association.is_established
        association.release()
        return was_taken

    async with receiver_on(destination_port, "FRIEND"):
        with ExitStack() as stack:
            for _ in range(40):
                silent = socket.create_connection(
                    ("127.0.0.1", destination_port), timeout=5, source_address=("127.0.0.2", 0)
                )
                stack.enter_context(silent)
            assert await asyncio.to_thread(calls)


async def test_an_association_that_breaks_in_the_middle_raises_and_never_ends_neatly(tmp_path):
    study = generate_uid()[:50]
    for number in range(5):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.StudyInstanceUID, dataset.SOPInstanceUID = study, f"{study}.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(tmp_path / f"{number}.dcm")
    with DimseSimulator(tmp_path, options=DimseOptions(abort_after=3)) as simulator:
        async with adapter_of(simulator) as adapter:
            parts = adapter.retrieve(Ref(study))
            for _ in range(3):
                assert [chunk async for chunk in (await anext(parts)).body]
            with pytest.raises(NodeError):
                await anext(parts)


async def test_instances_of_another_study_are_not_taken(corpus):
    with DimseSimulator(corpus, options=DimseOptions(foreign_study=True)) as simulator:
        async with adapter_of(simulator) as adapter:
            with pytest.raises(NodeProtocolError, match="not asked for"):
                await anext(adapter.retrieve(Ref(CT)))


async def test_an_instance_that_the_node_lists_and_cannot_send_raises_after_the_others(tmp_path):
    study = generate_uid()[:50]
    for number in range(3):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.StudyInstanceUID, dataset.SOPInstanceUID = study, f"{study}.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(tmp_path / f"{number}.dcm")
    with DimseSimulator(tmp_path) as simulator:
        (tmp_path / "2.dcm").unlink()
        async with adapter_of(simulator) as adapter:
            parts = adapter.retrieve(Ref(study))
            for _ in range(2):
                assert [chunk async for chunk in (await anext(parts)).body]
            with pytest.raises(NodeProtocolError, match="1 sub-operations"):
                await anext(parts)


@pytest.mark.parametrize("product", ["simulator", "orthanc"])
async def test_an_instance_of_a_class_that_its_modality_does_not_suggest_comes_too(tmp_path, product):
    study = generate_uid()[:50]
    classes = ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.66"]
    for number, sop_class in enumerate(classes):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.StudyInstanceUID, dataset.SOPInstanceUID = study, f"{study}.{number}"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(tmp_path / f"{number}.dcm")
    files = sorted(tmp_path.glob("*.dcm"))
    served = DimseSimulator(tmp_path) if product == "simulator" else peers.orthanc(files)
    with served as node:
        async with adapter_of(node) as adapter:
            assert len(await parts_of(adapter, Ref(study))) == 3
            assert list(await parts_of(adapter, Ref(study, None, f"{study}.2"))) == [f"{study}.2"]


async def test_leaving_a_retrieve_in_the_middle_of_an_instance_aborts_it(dcmtk, big):
    async with adapter_of(dcmtk) as adapter:
        async with aclosing(adapter.retrieve(Ref(big[1]))) as parts:
            part = await anext(parts)
            await anext(part.body)
            await anext(part.body)
            begun = time.monotonic()
        assert time.monotonic() - begun < 4
        await until(lambda: adapter.associations.in_use == 0)
        await until(lambda: not dimse_threads())


async def test_a_body_that_is_not_read_does_not_spoil_the_next_part(simulator):
    async with adapter_of(simulator) as adapter:
        uids = [part.sop_instance_uid async for part in adapter.retrieve(Ref(CT))]
    assert len(uids) == 1


# Memory and time


@pytest.fixture(scope="module")
def big(tmp_path_factory, dcmtk):
    path, study, instance = multi_frame(tmp_path_factory.mktemp("big"), 60)
    dcmtk.load(path)
    path.unlink()
    return 60 << 20, study, instance


class PeakMemory:
    """How far the resident memory of this process rises above where it was."""

    def __enter__(self):
        self._process, self._stop, self.growth = psutil.Process(), threading.Event(), 0
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.005):
            self.growth = max(self.growth, self._process.memory_info().rss - self._before)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("at_once", [1, 4])
async def test_large_instances_pass_through_without_being_held(dcmtk, big, at_once):
    async def size_of_body():
        size = 0
        async for part in adapter.retrieve(Ref(big[1])):
            async for chunk in part.body:
                assert len(chunk) <= 1 << 20
                size += len(chunk)
                await asyncio.sleep(0)
        return size

    async with adapter_of(dcmtk) as adapter:
        with PeakMemory() as memory:
            sizes = await asyncio.gather(*(size_of_body() for _ in range(at_once)))
    assert all(size > big[0] for size in sizes)
    assert memory.growth < 40 << 20


async def test_a_slow_reader_slows_the_node_down_instead_of_filling_memory(dcmtk, big):
    async with adapter_of(dcmtk, response_timeout=1.0) as adapter, aclosing(adapter.retrieve(Ref(big[1]))) as parts:
        part = await anext(parts)
        with PeakMemory() as memory:
            await anext(part.body)
            await asyncio.sleep(2.5)
            size = sum([len(chunk) async for chunk in part.body])
    assert size > big[0]
    assert memory.growth < 40 << 20


async def test_a_node_that_never_answers_is_a_timeout_within_its_limit_and_leaves_nothing_behind():
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0), backlog=300) as silent:
        options = {"connect_timeout": 0.3, "max_associations": 16, "permit_timeout": 30.0}
        address = {"host": "127.0.0.1", "port": silent.getsockname()[1], "called_ae_title": "SILENT"}
        adapter = DimseAdapter("silent", **address, **options)
        await adapter.open()
        begun = time.monotonic()
        with pytest.raises(NodeTimeout):
            await rows_of(adapter, NativeQuery(Level.STUDY))
        assert time.monotonic() - begun < 5
        results = await asyncio.gather(
            *(rows_of(adapter, NativeQuery(Level.STUDY)) for _ in range(50)), return_exceptions=True
        )
        assert {type(result) for result in results} == {NodeTimeout}
        await until(lambda: adapter.associations.in_use == 0 and not dimse_threads())
        await adapter.close()
    assert threading.active_count() <= threads + 1  # asyncio's own executor may have started a thread


async def test_a_cancelled_request_to_a_silent_node_ends_at_once():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"host": "127.0.0.1", "port": silent.getsockname()[1], "called_ae_title": "SILENT"}
        adapter = DimseAdapter("silent", **address, connect_timeout=30)
        await adapter.open()
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await rows_of(adapter, NativeQuery(Level.STUDY))
        await until(lambda: adapter.associations.in_use == 0 and not dimse_threads())
        assert time.monotonic() - begun < 10
        await adapter.close()


async def test_a_node_that_falls_silent_in_an_operation_is_a_timeout(corpus):
    with DimseSimulator(corpus, options=DimseOptions(black_hole="association")) as simulator:
        async with adapter_of(simulator, response_timeout=0.5) as adapter:
            begun = time.monotonic()
            with pytest.raises(NodeTimeout):
                await rows_of(adapter, NativeQuery(Level.STUDY))
            assert time.monotonic() - begun < 10
            with pytest.raises(NodeTimeout):
                await parts_of(adapter, Ref(CT))
            await until(lambda: not dimse_threads())


@pytest.mark.parametrize("longest", [3, 6])
async def test_a_node_that_takes_no_pdu_in_which_a_byte_has_room_is_told_at_once(corpus, longest):
    """Nothing was sent, and an answer waited for; and of an instance for it all was read at once."""
    with DimseSimulator(corpus) as simulator:
        simulator._server.ae.maximum_pdu_size = longest
        async with adapter_of(simulator) as adapter:
            with pytest.raises(NodeProtocolError, match="no PDU"):
                await adapter.probe()
        await until(lambda: simulator.operations["aborted"] == 1)


async def test_half_a_pdu_and_then_silence_is_a_timeout():
    async def half(reader, writer):
        await reader.read(10)
        writer.write(b"\x02\x00\x00\x00\x01\x00")
        await asyncio.sleep(30)

    server = await asyncio.start_server(half, "127.0.0.1", 0)
    address = {"host": "127.0.0.1", "port": server.sockets[0].getsockname()[1], "called_ae_title": "HALF"}
    adapter = DimseAdapter("half", **address, connect_timeout=0.4, response_timeout=5)
    await adapter.open()
    begun = time.monotonic()
    with pytest.raises(NodeTimeout):
        await rows_of(adapter, NativeQuery(Level.STUDY))
    assert time.monotonic() - begun < 4.5
    await until(lambda: not dimse_threads())
    await adapter.close()
    server.close()


# Failures


async def test_a_closed_port_is_unreachable():
    adapter = DimseAdapter("down", host="127.0.0.1", port=peers.free_port(), called_ae_title="DOWN")
    await adapter.open()
    with pytest.raises(NodeUnreachable):
        await rows_of(adapter, NativeQuery(Level.STUDY))
    await adapter.close()


async def test_an_unknown_calling_ae_title_is_refused_and_too_many_associations_are_busy(corpus):
    with DimseSimulator(corpus, options=DimseOptions(calling_ae_titles=("SOMEONE",))) as simulator:
        async with adapter_of(simulator) as adapter:
            with pytest.raises(NodeRefused, match="calling AE title"):
                await rows_of(adapter, NativeQuery(Level.STUDY))
    with DimseSimulator(corpus, options=DimseOptions(max_associations=1)) as simulator:
        async with adapter_of(simulator) as first, adapter_of(simulator) as second:
            await rows_of(first, NativeQuery(Level.STUDY))
            with pytest.raises(NodeBusy, match="limit exceeded"):
                await rows_of(second, NativeQuery(Level.STUDY))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    key, crt = directory / "key.pem", directory / "crt.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", crt], check=True, capture_output=True)
    return crt, key


async def test_tls_protects_search_and_get_and_an_unknown_certificate_is_unreachable(corpus, certificate):
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    server_side.load_cert_chain(*certificate)
    client_side.load_verify_locations(certificate[0])
    with DimseSimulator(corpus, options=DimseOptions(tls=server_side)) as simulator:
        async with adapter_of(simulator, tls=client_side) as adapter:
            rows, _ = await rows_of(adapter, NativeQuery(Level.STUDY))
            assert len(rows) == 9
            assert len(await parts_of(adapter, Ref(CT))) == 1
        async with adapter_of(simulator, tls=ssl.create_default_context()) as adapter:
            with pytest.raises(NodeUnreachable):
                await rows_of(adapter, NativeQuery(Level.STUDY))


async def test_the_receiver_takes_tls_and_one_who_never_shakes_hands_keeps_nobody_out(certificate):
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    server_side.load_cert_chain(*certificate)
    client_side.load_verify_locations(certificate[0])
    receiver = StorageReceiver("GW", "127.0.0.1", 0, {"FRIEND": ["127.0.0.1"]}, tls=server_side)
    await receiver.open()

    def call():
        entity = AE("FRIEND")
        entity.add_requested_context(CTImageStorage)
        association = entity.associate("127.0.0.1", receiver.port, tls_args=(client_side, "localhost"))
        is_established = association.is_established
        association.release()
        return is_established

    with socket.create_connection(("127.0.0.1", receiver.port)):
        assert await asyncio.to_thread(call)
    await receiver.close()


async def test_waiting_for_a_permit_has_a_deadline(corpus):
    with DimseSimulator(corpus, options=DimseOptions(delay=1.0)) as simulator:
        async with adapter_of(simulator, max_associations=1, permit_timeout=0.2) as adapter:
            first = asyncio.create_task(rows_of(adapter, NativeQuery(Level.STUDY)))
            await asyncio.sleep(0.1)
            with pytest.raises(NodeBusy):
                await rows_of(adapter, NativeQuery(Level.STUDY))
            rows, _ = await first
            assert rows


async def test_one_node_never_sees_more_associations_than_its_cap(corpus):
    with DimseSimulator(corpus, options=DimseOptions(delay=0.1)) as simulator:
        peak = 0
        async with adapter_of(simulator, max_associations=2) as adapter:
            tasks = [asyncio.create_task(parts_of(adapter, Ref(CT))) for _ in range(6)]
            while not all(task.done() for task in tasks):
                peak = max(peak, simulator.open_associations)
                await asyncio.sleep(0.002)
            assert [len(task.result()) for task in tasks] == [1] * 6
    assert peak <= 2


async def test_nothing_of_a_patient_is_ever_logged(simulator, caplog):
    caplog.set_level(logging.DEBUG)
    async with adapter_of(simulator) as adapter:
        await rows_of(adapter, NativeQuery(Level.STUDY, (key("PatientID", "1CT1"),)))
        await parts_of(adapter, Ref(CT))
    assert "CompressedSamples" not in caplog.text
    assert "1CT1" not in caplog.text


# Stores and probe


async def test_what_is_stored_comes_back_byte_for_byte(tmp_path, corpus):
    names = ["CT_small.dcm", "JPEG2000.dcm", "rtplan.dcm"]

    async def parts():
        for name in names:

            async def body(path=corpus / name):
                yield path.read_bytes()

            yield Part("", "", body())

    with DimseSimulator(tmp_path) as simulator:
        async with adapter_of(simulator) as adapter:
            outcomes = [told async for told in adapter.store(parts())]
            assert [outcome.failure for outcome in outcomes] == [0, 0, 0]
            for name in names:
                stored = pydicom.dcmread(corpus / name)
                part, body = (await parts_of(adapter, Ref(stored.StudyInstanceUID)))[stored.SOPInstanceUID]
                header = file_meta(stored.SOPClassUID, stored.SOPInstanceUID, part.transfer_syntax)
                assert (corpus / name).read_bytes().endswith(body[len(header) :])


async def test_storing_a_large_instance_does_not_hold_it(dcmtk, big):
    _, study, instance = big

    async with adapter_of(dcmtk) as adapter, adapter_of(dcmtk) as other:
        with PeakMemory() as memory:
            outcomes = [told async for told in adapter.store(other.retrieve(Ref(study)))]
    assert [(outcome.sop_instance_uid, outcome.failure) for outcome in outcomes] == [(instance, 0)]
    assert memory.growth < 40 << 20


async def test_a_part_that_is_no_dicom_file_is_an_outcome_and_the_next_is_stored(tmp_path, corpus):
    async def parts():
        for content in (b"nothing", (corpus / "CT_small.dcm").read_bytes()):

            async def body(content=content):
                yield content

            yield Part("1.2.3", "", body())

    with DimseSimulator(tmp_path) as simulator:
        async with adapter_of(simulator) as adapter:
            outcomes = [told async for told in adapter.store(parts())]
    assert [outcome.failure for outcome in outcomes] == [0xC000, 0]


async def test_the_probe_tells_what_the_node_can_do_and_what_its_administrator_enters(peer, destination_port):
    async with (
        receiver_on(destination_port, peer.ae_title) as receiver,
        adapter_of(peer, move_receiver=receiver) as adapter,
    ):
        probe = await adapter.probe()
    assert probe.capabilities == ("echo", "find", "get", "move")
    assert probe.product.startswith("OFFIS_DCMTK")
    assert f"PACS: C-MOVE destination AE title GWSTORE, host 127.0.0.1, port {destination_port}" in probe.advice
    assert ("ignores-modalities-in-study" in probe.quirks) == (peer.product == "dcmqrscp")
    assert ("matches-names-case-sensitively" in probe.quirks) == (peer.product == "dcmqrscp")
    assert 0 < probe.latency < 5


@pytest.mark.parametrize("is_matched", [True, False])
async def test_times_go_out_to_a_node_that_was_seen_to_find_by_them(corpus, is_matched):
    options = DimseOptions(ignored_keys=frozenset() if is_matched else frozenset({"StudyTime"}))
    with DimseSimulator(corpus, options=options) as simulator:
        async with adapter_of(simulator) as adapter:
            everything, _ = await rows_of(adapter, NativeQuery(Level.STUDY, return_=("StudyTime",)))
            clock = next(filter(None, (row.value("StudyTime") for row in everything)))
            query = NativeQuery(Level.STUDY, (NativeMatch("StudyTime", Operator.EXACT, (clock[:6],)),))
            unknown, _ = await rows_of(adapter, query)
            assert not simulator.requests[-1][1].StudyTime
            assert ("does-not-match-times" in (await adapter.probe()).quirks) != is_matched
            rows, report = await rows_of(adapter, query)
            assert adapter.takes_times == is_matched
            assert bool(simulator.requests[-1][1].StudyTime) == is_matched
    assert report.ignored == {"StudyTime"}
    assert clock in [row.value("StudyTime") for row in rows]
    assert len(unknown) == len(everything)
    assert (len(rows) < len(everything)) == is_matched


async def test_a_node_whose_ae_title_does_not_answer_c_echo_is_up_and_its_probe_learns_the_rest(simulator):
    simulator._server.contexts = [one for one in simulator._server.contexts if one.abstract_syntax != Verification]
    async with adapter_of(simulator) as adapter:
        probe = await adapter.probe()
    assert probe.capabilities == ("find", "get", "move")
    assert 0 < probe.latency < 5
    assert simulator.operations["C-FIND STUDY"]


async def test_the_probe_of_a_hierarchical_node_says_so(simulator):
    async with adapter_of(simulator) as adapter:
        assert "not-relational" in (await adapter.probe()).quirks


async def test_a_node_out_of_resources_before_its_first_row_is_busy_and_has_not_answered(simulator):
    simulator.options = DimseOptions(failure=0xA700)
    async with adapter_of(simulator) as adapter:
        with pytest.raises(NodeBusy):
            await rows_of(adapter, NativeQuery(Level.STUDY))


def takes(title, receiver):
    calling = AE(title)
    calling.add_requested_context("1.2.840.10008.1.1")
    association = calling.associate("127.0.0.1", receiver.port)
    accepted = association.is_established
    association.abort()
    return accepted


async def test_names_that_no_name_server_answers_for_keep_the_c_move_receiver_from_nothing(monkeypatch):
    resolved, answers = socket.getaddrinfo, threading.Event()

    def by_a_silent_name_server(host, *more, **options):
        if host in ("pacs.example", "ris.example"):
            if not answers.wait(6):
                raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")
            host = "127.0.0.1"
        return resolved(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", by_a_silent_name_server)
    monkeypatch.setattr(storage_scp, "_LOOK_UP_SECONDS", 0.2)
    receiver = StorageReceiver(
        "GW", "127.0.0.1", 0, {"FAR": ["pacs.example"], "FARTHER": ["ris.example"], "NEAR": ["127.0.0.1"]}
    )
    began = time.monotonic()
    await receiver.open()
    try:
        assert time.monotonic() - began < 5
        assert await asyncio.to_thread(takes, "NEAR", receiver)
        answers.set()
        assert await asyncio.to_thread(takes, "FAR", receiver)
        answers.clear()
        await receiver.admit({"FAR": ["pacs.example"], "FARTHER": ["pacs.example"]})
        assert await asyncio.to_thread(takes, "FAR", receiver), "it is where it was"
        assert not await asyncio.to_thread(takes, "NEAR", receiver)
    finally:
        answers.set()
        await receiver.close()


async def test_a_pacs_whose_name_was_not_known_at_the_start_or_that_has_moved_may_call_all_the_same(monkeypatch):
    resolved, addresses = socket.getaddrinfo, []

    def by_our_own_name_server(host, *more, **options):
        if host != "pacs.example":
            return resolved(host, *more, **options)
        if not addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in addresses]

    def is_let_in():
        return takes("FRIEND", receiver)

    monkeypatch.setattr(socket, "getaddrinfo", by_our_own_name_server)
    monkeypatch.setattr(storage_scp, "_LOOK_UP_EVERY", 0.0)
    receiver = StorageReceiver("GW", "127.0.0.1", 0, {"FRIEND": ["pacs.example"]})
    await receiver.open()
    try:
        assert not await asyncio.to_thread(is_let_in)
        addresses.append("10.0.0.7")
        assert not await asyncio.to_thread(is_let_in)
        addresses[:] = ["127.0.0.1"]
        assert await asyncio.to_thread(is_let_in)
        addresses.clear()
        assert await asyncio.to_thread(is_let_in)
    finally:
        await receiver.close()
