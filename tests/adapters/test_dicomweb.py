from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import pydicom
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from gateway.adapters.dicomweb import DicomwebAdapter
from gateway.adapters.dicomweb import qido as qido
from gateway.adapters.dicomweb.quirks import ANSWERS_204, NO_FRAMES, NO_METADATA
from gateway.adapters.http.client import HttpClient, Timeouts
from gateway.errors import (
    InvalidQuery,
    NodeProtocolError,
    NodeRefused,
    NodeTimeout,
    NodeUnreachable,
    Unsupported,
)
from gateway.model.dataset import text, texts
from gateway.model.folding import fold_name
from gateway.model.query import Operator, Ref
from gateway.model.seam import (
    Adapter,
    BulkData,
    Describes,
    Finds,
    Frames,
    NativeMatch,
    NativeQuery,
    Part,
    Retrieves,
    Stores,
)
from gateway.model.vocabulary import Level, tag
from gateway.simulators.dicomweb import DicomwebOptions, DicomwebSimulator
from gateway.wire import maximum as maximum
from gateway.wire.widen import widen_name

NAMES = ["Müller^Jürgen", "Muller^Hans", "Kempf^Bo", "Żółć^Jan"]
QUICK = Timeouts(connect=1, first_byte=1, idle=0.5, total=3)


# --- what is searched with


def built(*matches: NativeMatch, level=Level.STUDY, quirks=(), **query):
    return qido.build(NativeQuery(level, matches, **query), frozenset(quirks))


def exact(path, *values):
    return NativeMatch(path, Operator.EXACT, values)


def test_keywords_are_sent_where_there_are_any_and_private_tags_as_hex():
    search = built(exact("00100020", "P 1"), exact("00091001", "x"), exact("RequestAttributesSequence.00400009", "s"))
    assert search.query == "PatientID=P%201&00091001=x&RequestAttributesSequence.ScheduledProcedureStepID=s"
    assert search.matched == {"00100020", "00091001", "RequestAttributesSequence.00400009"}


def test_wildcards_commas_and_ranges_go_out_unescaped_and_carets_do_not():
    search = built(
        NativeMatch("StudyDescription", Operator.WILDCARD, ("a^*",)),
        NativeMatch("StudyDate", Operator.RANGE, ("20200101", "")),
        NativeMatch("StudyInstanceUID", Operator.LIST, ("1.2", "1.3")),
    )
    assert search.query == "StudyDescription=a%5E*&StudyDate=20200101-&StudyInstanceUID=1.2,1.3"


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("1015", "1015-101559.999999"),
        ("101530", "101530-101530.999999"),
        ("101530.25", "101530.25-101530.259999"),
        ("100000-105959", "10-105959.999999"),
        ("000000-235959", "00-235959.999999"),
        ("1015-", "1015-"),
        ("-1015", "-101559.999999"),
    ],
)
def test_a_time_goes_out_as_a_range_of_all_the_texts_that_mean_it(asked, sent):
    """Orthanc compares texts: '101530.5' is not within '101500-101530', nor '10' within '100000-105959'."""
    values = tuple(asked.split("-"))
    operator = Operator.RANGE if len(values) > 1 else Operator.EXACT
    assert built(NativeMatch("StudyTime", operator, values)).query == f"StudyTime={sent}"


def test_a_node_that_does_not_decode_gets_raw_values_and_a_wildcard_for_what_cannot_go_raw():
    quirks = [qido.NO_PERCENT_DECODING]
    search = built(exact("StudyDescription", "Schädel & Hals^x"), exact("PatientID", "a^b"), quirks=quirks)
    assert search.query == "StudyDescription=Sch*del*Hals^x&PatientID=a^b"
    assert search.matched == {"PatientID"}
    assert search.ignored == {"StudyDescription"}


def test_a_node_that_does_not_decode_is_not_asked_for_a_date_or_number_it_could_not_read():
    search = built(exact("SeriesNumber", "1 2"), quirks=[qido.NO_PERCENT_DECODING])
    assert search.query == ""
    assert search.ignored == {"SeriesNumber"}


@pytest.mark.parametrize(("asked", "sent"), [("CT, thorax", "CT*%20thorax"), ("Sch?del", "Sch*del"), ("a?*%b", "a*b")])
def test_what_nodes_take_in_different_ways_goes_out_as_a_wildcard_and_is_matched_here(asked, sent):
    """To Orthanc ',' ends a value, '?' is one byte of UTF-8, and '%' a wildcard of its database."""
    search = built(NativeMatch("StudyDescription", Operator.WILDCARD, (asked,)))
    assert search.query == f"StudyDescription={sent}"
    assert search.ignored == {"StudyDescription"}


def test_what_leaves_nothing_but_wildcards_is_not_asked():
    assert built(NativeMatch("StudyDescription", Operator.WILDCARD, ("*%,",))).query == ""
    for asked in ("*", "?*"):
        assert built(NativeMatch("StudyDescription", Operator.WILDCARD, (asked,))).query == f"StudyDescription={asked}"


def test_a_number_below_one_study_is_left_to_be_matched_here():
    """A series number 1 may be held as '01'."""
    number = exact("SeriesNumber", "1")
    assert built(number, level=Level.SERIES, study="1.2").query == ""
    assert built(number, level=Level.SERIES).query == "SeriesNumber=1"


def test_a_list_of_anything_but_uids_is_left_to_be_matched_here():
    search = built(NativeMatch("Modality", Operator.LIST, ("CT", "MR")))
    assert search.query == ""
    assert search.ignored == {"Modality"}


def test_an_attribute_is_sent_only_once():
    search = built(exact("PatientID", "a"), exact("00100020", "b"))
    assert search.query == "PatientID=a"
    assert (search.matched, search.ignored) == ({"PatientID"}, {"00100020"})


def test_a_path_that_is_no_dicom_attribute_is_unknown():
    assert built(exact("PID-3.1", "a")).unknown == {"PID-3.1"}


def test_a_key_that_the_node_ignores_is_sent_and_reported_as_ignored():
    search = built(exact("ModalitiesInStudy", "CT"), quirks=["ignores-ModalitiesInStudy"])
    assert search.query == "ModalitiesInStudy=CT"
    assert search.ignored == {"ModalitiesInStudy"}


def test_names_are_widened_unless_the_node_is_known_to_fold_them():
    assert built(exact("PatientName", "Kempf^Bo")).query == "PatientName=*mpf%5EB*"
    folding = built(exact("PatientName", "Kempf^Bo"), quirks=[qido.FOLDS_NAMES])
    assert (folding.query, folding.matched) == ("PatientName=Kempf%5EBo", {"PatientName"})
    assert built(exact("PatientName", "Jan")).query == ""


@pytest.mark.parametrize(
    ("level", "above", "resource", "query"),
    [
        (Level.STUDY, {"study": "1.2"}, "studies", "StudyInstanceUID=1.2"),
        (Level.SERIES, {}, "series", ""),
        (Level.SERIES, {"study": "1.2"}, "studies/1.2/series", ""),
        (Level.SERIES, {"study": "1.2", "series": "3"}, "studies/1.2/series", "SeriesInstanceUID=3"),
        (Level.IMAGE, {}, "instances", ""),
        (Level.IMAGE, {"study": "1.2"}, "studies/1.2/instances", ""),
        (Level.IMAGE, {"study": "1.2", "series": "3"}, "studies/1.2/series/3/instances", ""),
        (Level.IMAGE, {"series": "3"}, "instances", "SeriesInstanceUID=3"),
    ],
)
def test_the_resource_holds_the_parents_that_are_known(level, above, resource, query):
    search = built(level=level, **above)
    assert (search.resource, search.query) == (resource, query)


def test_include_fields_are_whole_sequences_and_leave_out_what_comes_anyway():
    search = built(return_=("StudyInstanceUID", "PatientWeight", "OtherPatientIDsSequence.PatientID"))
    assert search.query == "includefield=PatientWeight,OtherPatientIDsSequence"
    assert built(all_attributes=True, return_=("PatientWeight",)).query == "includefield=all"


VARIANTS = {
    "a": "aáàâäåãąA",
    "l": "lłĺL",
    "o": "oóøöőO",
    "s": "sšśşS",
    "u": "uüůúU",
    "m": "mM",
    "k": "kķK",
    "z": "zžżZ",
}
NAME_LETTERS = "aloumksz^ -=4"


@given(st.data(), st.text(NAME_LETTERS, min_size=1, max_size=12), st.booleans())
def test_a_widened_name_finds_every_spelling_that_folds_alike(data, plain, case_folded):
    def spelling():
        return "".join(data.draw(st.sampled_from(VARIANTS.get(char, char))) for char in plain)

    asked, held = spelling(), spelling()
    assert fold_name(asked) == fold_name(held)
    key = widen_name(asked, keep_ascii=False, case_folded=case_folded)
    assume(key is not None)
    pattern = ".*".join(map(re.escape, key.split("*")))
    assert re.fullmatch(pattern, held, re.IGNORECASE if case_folded else 0)


@pytest.mark.parametrize(
    ("asked", "held"), [("Strasse", "Straße"), ("Aebi", "Æbi"), ("Thor*", "Þór"), ("Kempf", "Kempf=健夫=けんぷ")]
)
def test_letters_that_stand_for_two_and_further_component_groups_are_found(asked, held):
    key = widen_name(asked, keep_ascii=False, case_folded=True)
    assert key is None or re.fullmatch(".*".join(map(re.escape, key.split("*"))), held, re.IGNORECASE)


def test_a_name_that_leaves_nothing_specific_is_not_asked_for():
    assert widen_name("山田^太郎", keep_ascii=True) is None
    assert widen_name("Jan^*", keep_ascii=False, case_folded=True) is None
    assert widen_name("Żółć^Jan", keep_ascii=True) == "*^Jan*"


# --- peers


def _instance(number: int, name: str, folder: Path) -> None:
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = name, f"P{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.9.{number}", f"1.2.9.{number}.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.9.{number}.1.1"
    dataset.StudyDate, dataset.Modality = f"2020010{number + 1}", "CT"
    dataset.save_as(folder / f"{number}.dcm")


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(NAMES):
        _instance(number, name, folder)
    for name in ("JPEG2000.dcm", "SC_rgb_rle_2frame.dcm"):
        (folder / name).write_bytes(Path(get_testdata_file(name)).read_bytes())
    return folder


TWO_FRAMES = "SC_rgb_rle_2frame.dcm"


def ref_of(path: Path) -> Ref:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    return Ref(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)


@pytest.fixture(scope="session")
def filled_orthanc(orthanc, files) -> str:
    for path in files.glob("*.dcm"):
        request = urllib.request.Request(f"{orthanc}/instances", path.read_bytes(), method="POST")
        urllib.request.urlopen(request).close()
    return f"{orthanc}/dicom-web"


@pytest.fixture(scope="session")
def running_simulator(files):
    with DicomwebSimulator(files) as simulator:
        yield simulator


@pytest.fixture
def simulator(running_simulator):
    """Well at the start of each test; a test may make it ill with other `options`."""
    running_simulator.options = DicomwebOptions()
    running_simulator.operations.clear()
    running_simulator.seen.clear()
    return running_simulator


@pytest.fixture(params=["simulator", pytest.param("orthanc", marks=pytest.mark.interop)])
def base_url(request) -> str:
    if request.param == "simulator":
        return request.getfixturevalue("simulator").url
    return request.getfixturevalue("filled_orthanc")


@asynccontextmanager
async def adapter_on(base_url: str, *, quirks=None, timeouts=QUICK, **http):
    adapter = DicomwebAdapter(
        "alpha", http=HttpClient("alpha", base_url=base_url, timeouts=timeouts, **http), quirks=quirks
    )
    await adapter.open()
    try:
        yield adapter
    finally:
        await adapter.close()


NONE = frozenset()


async def found(adapter, level=Level.STUDY, *matches, **query):
    *rows, report = [row async for row in adapter.find(NativeQuery(level, matches, **query))]
    return rows, report


async def retrieved(adapter, ref) -> dict[str, bytes]:
    return {part.sop_instance_uid: b"".join([c async for c in part.body]) async for part in adapter.retrieve(ref)}


def test_the_adapter_has_the_capabilities_of_the_seam():
    adapter = DicomwebAdapter("alpha", http=HttpClient("alpha", base_url="http://x"))
    assert isinstance(adapter, Finds | Retrieves)
    for capability in (Finds, Retrieves, Describes, Frames, BulkData, Stores):
        assert isinstance(adapter, capability)
    accepted: Adapter = adapter
    assert accepted is adapter


# --- on the simulator and on Orthanc alike


async def test_a_study_is_found_by_patient_id_with_the_fields_asked_for(base_url):
    async with adapter_on(base_url) as adapter:
        rows, report = await found(adapter, Level.STUDY, exact("PatientID", "P1"), return_=("PatientWeight",))
    assert [row.value("StudyInstanceUID") for row in rows] == ["1.2.9.1"]
    assert rows[0].value("PatientWeight") == 0
    assert report.matched == {"PatientID"}
    assert not report.truncated


@pytest.mark.parametrize("asked", ["Müller*", "muller*", "MÜLLER^*"])
async def test_a_name_is_found_with_and_without_diacritics(base_url, asked):
    async with adapter_on(base_url) as adapter:
        rows, report = await found(adapter, Level.STUDY, NativeMatch("PatientName", Operator.WILDCARD, (asked,)))
    assert {row.value("StudyInstanceUID") for row in rows} >= {"1.2.9.0", "1.2.9.1"}
    assert report.ignored == {"PatientName"}


async def test_a_date_range_and_a_list_of_uids_are_matched_by_the_node(base_url):
    days = NativeMatch("StudyDate", Operator.RANGE, ("20200101", "20200102"))
    uids = NativeMatch("StudyInstanceUID", Operator.LIST, ("1.2.9.1", "1.2.9.2"))
    async with adapter_on(base_url) as adapter:
        rows, report = await found(adapter, Level.STUDY, days, uids)
    assert [row.value("StudyInstanceUID") for row in rows] == ["1.2.9.1"]
    assert report.matched == {"StudyDate", "StudyInstanceUID"}


async def test_series_and_instances_are_found_with_and_without_their_parents(base_url):
    async with adapter_on(base_url) as adapter:
        for above in ({}, {"study": "1.2.9.2"}):
            rows, _ = await found(adapter, Level.SERIES, exact("SeriesInstanceUID", "1.2.9.2.1"), **above)
            assert [row.value("SeriesInstanceUID") for row in rows] == ["1.2.9.2.1"]
        for above in ({"study": "1.2.9.2"}, {"study": "1.2.9.2", "series": "1.2.9.2.1"}):
            rows, _ = await found(adapter, Level.IMAGE, **above)
            assert [row.value("SOPInstanceUID") for row in rows] == ["1.2.9.2.1.1"]


async def test_no_match_is_an_empty_search(base_url):
    async with adapter_on(base_url) as adapter:
        rows, _ = await found(adapter, Level.STUDY, exact("PatientID", "nobody"))
        below, _ = await found(adapter, Level.SERIES, study="1.2.3.4.5")
    assert rows == below == []


async def test_the_limit_bounds_the_rows(base_url):
    async with adapter_on(base_url) as adapter:
        rows, report = await found(adapter, limit=2)
    assert len(rows) == 2
    assert report.truncated


async def test_retrieved_instances_are_the_exact_bytes_of_their_files(base_url, files):
    async with adapter_on(base_url) as adapter:
        for path in files.glob("*.dcm"):
            ref = ref_of(path)
            for asked in (Ref(ref.study), Ref(ref.study, ref.series), ref):
                assert (await retrieved(adapter, asked))[ref.instance] == path.read_bytes()


async def test_a_part_names_its_instance_series_and_transfer_syntax(base_url, files):
    ref = ref_of(files / TWO_FRAMES)
    async with adapter_on(base_url) as adapter:
        async for part in adapter.retrieve(ref):
            assert (part.sop_instance_uid, part.series_instance_uid) == (ref.instance, ref.series)
            assert part.transfer_syntax == "1.2.840.10008.1.2.5"
            assert max([len(chunk) async for chunk in part.body]) <= 1024 * 1024


async def test_what_the_node_does_not_have_is_an_empty_stream(base_url):
    async with adapter_on(base_url) as adapter:
        for ref in (Ref("1.2.3.4.5"), Ref("1.2.9.0", "9.9"), Ref("1.2.9.0", "1.2.9.0.1", "9.9")):
            assert await retrieved(adapter, ref) == {}
            assert [dataset async for dataset in adapter.describe(ref)] == []
        assert [frame async for frame in adapter.frames(Ref("1.2.9.0", "1.2.9.0.1", "9.9"), [1])] == []


async def test_metadata_comes_at_every_level_with_bulk_data_as_absolute_addresses(base_url, files):
    ref = ref_of(files / "0.dcm")
    async with adapter_on(base_url) as adapter:
        for asked in (Ref(ref.study), Ref(ref.study, ref.series), ref):
            [dataset] = [dataset async for dataset in adapter.describe(asked)]
            assert texts(dataset, tag("PatientName")) == [NAMES[0]]
            assert text(dataset, tag("SOPInstanceUID")) == ref.instance
            addresses = [one["BulkDataURI"] for one in dataset.values() if "BulkDataURI" in one]
            assert all(address.startswith(base_url) for address in addresses)


async def test_frames_come_in_the_order_asked_for(base_url, files):
    async with adapter_on(base_url) as adapter:
        ref = ref_of(files / TWO_FRAMES)
        given = {}
        async for frame in adapter.frames(ref, [2, 1]):
            assert frame.transfer_syntax == "1.2.840.10008.1.2.5"
            given[frame.number] = b"".join([chunk async for chunk in frame.body])
    assert list(given) == [2, 1]
    expected = pydicom.encaps.generate_frames(pydicom.dcmread(files / TWO_FRAMES).PixelData, number_of_frames=2)
    assert [given[1].rstrip(b"\0"), given[2].rstrip(b"\0")] == [frame.rstrip(b"\0") for frame in expected]


async def test_an_uncompressed_frame_is_the_pixel_data(base_url, files):
    async with adapter_on(base_url) as adapter:
        [frame] = [
            (one.transfer_syntax, b"".join([c async for c in one.body]))
            async for one in adapter.frames(ref_of(files / "0.dcm"), [1])
        ]
    assert frame == ("1.2.840.10008.1.2.1", pydicom.dcmread(files / "0.dcm").PixelData)


async def test_a_frame_that_the_instance_does_not_have_is_an_invalid_query(base_url, files):
    async with adapter_on(base_url) as adapter:
        with pytest.raises(InvalidQuery, match="frame 3"):
            [frame async for frame in adapter.frames(ref_of(files / TWO_FRAMES), [1, 3])]


async def test_a_frame_that_the_instance_does_not_have_is_said_before_any_in_whatever_order_they_are_asked_for(
    base_url, files
):
    async with adapter_on(base_url) as adapter:
        with pytest.raises(InvalidQuery, match="frame 3"):
            await anext(adapter.frames(ref_of(files / TWO_FRAMES), [2, 1, 3]))


async def test_bulk_data_is_opened_by_the_address_of_the_metadata(base_url, files):
    ref = ref_of(files / "0.dcm")
    async with adapter_on(base_url) as adapter:
        [dataset] = [dataset async for dataset in adapter.describe(ref)]
        tag_, address = next((t, a["BulkDataURI"]) for t, a in dataset.items() if "BulkDataURI" in a)
        [value] = [b"".join([c async for c in part.body]) async for part in adapter.bulkdata(ref, address)]
    element = pydicom.dcmread(files / "0.dcm")[tag_]
    assert value == bytes(element.value)


async def test_a_stored_instance_comes_back_and_a_broken_one_is_reported(base_url, tmp_path):
    _instance(7, "Neu^Anna", tmp_path)
    raw = (tmp_path / "7.dcm").read_bytes()

    async def chunks(content):
        for start in range(0, len(content), 10_000):
            yield content[start : start + 10_000]

    async def parts():
        yield Part("1.2.9.7.1.1", "1.2.840.10008.1.2.1", chunks(raw))
        yield Part("1.2.9.8.1.1", "1.2.840.10008.1.2.1", chunks(b"no DICOM" * 100))

    async with adapter_on(base_url) as adapter:
        good, bad = [told async for told in adapter.store(parts())]
        assert (good.sop_instance_uid, good.failure) == ("1.2.9.7.1.1", 0)
        assert bad.failure != 0
        assert (await retrieved(adapter, Ref("1.2.9.7")))["1.2.9.7.1.1"] == raw


# --- Orthanc as it is


@pytest.mark.interop
async def test_orthancs_quirk_is_learned_from_its_answers(filled_orthanc):
    async with adapter_on(filled_orthanc) as adapter:
        probe = await adapter.probe()
    assert probe.product == "Orthanc"
    assert probe.quirks == (qido.NO_PERCENT_DECODING,)
    assert set(probe.capabilities) == {"find", "retrieve", "describe", "frames"}
    assert 'quirks = ["no-percent-decoding"]' in probe.advice
    assert probe.latency > 0


@pytest.mark.interop
async def test_a_value_with_a_caret_is_found_on_orthanc_without_any_configuration(filled_orthanc):
    asked = NativeMatch("PatientName", Operator.WILDCARD, ("Kempf^Bo",))
    async with adapter_on(filled_orthanc) as adapter:
        rows, _ = await found(adapter, Level.STUDY, asked)
    assert [row.value("PatientName") for row in rows] == ["Kempf^Bo"]


# --- quirks, on the simulator


@pytest.mark.parametrize(
    ("options", "quirks"),
    [
        (DicomwebOptions(), set()),
        (DicomwebOptions(no_percent_decoding=True), {qido.NO_PERCENT_DECODING}),
        (DicomwebOptions(status_204_for_none=True), {ANSWERS_204}),
        (DicomwebOptions(ignores_offset=True), {qido.IGNORES_OFFSET}),
        (DicomwebOptions(no_metadata=True, no_frames=True), {NO_METADATA, NO_FRAMES}),
        (DicomwebOptions(ignores_keys=frozenset({"StudyDate"})), {"ignores-StudyDate"}),
    ],
)
async def test_the_probe_finds_what_the_node_does_otherwise(simulator, options, quirks):
    simulator.options = options
    async with adapter_on(simulator.url) as adapter:
        assert set((await adapter.probe()).quirks) - {qido.FOLDS_NAMES} == quirks


async def test_learning_happens_once_for_all_who_wait_and_not_where_quirks_are_configured(simulator):
    async with adapter_on(simulator.url) as adapter:
        await asyncio.gather(*(found(adapter, limit=1) for _ in range(5)))
        learning = simulator.operations.total() - 5
        await found(adapter, limit=1)
        assert simulator.operations.total() == learning + 6
    simulator.operations.clear()
    async with adapter_on(simulator.url, quirks=NONE) as adapter:
        await found(adapter, limit=1)
    assert simulator.operations.total() == 1


async def test_a_status_of_204_is_an_empty_search(simulator):
    simulator.options = DicomwebOptions(status_204_for_none=True)
    async with adapter_on(simulator.url) as adapter:
        assert (await found(adapter, Level.STUDY, exact("PatientID", "nobody")))[0] == []


def filled(folder, root, count, moments=None):
    """The folder with so many studies of one instance, `root`.0 and on, at the moments (date, time) given by their numbers."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    del dataset.PixelData
    for number in range(count):
        if moments:
            dataset.StudyDate, dataset.StudyTime = moments(number)
        dataset.StudyInstanceUID = f"{root}.{number}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{root}.{number}.1"
        dataset.save_as(folder / f"{number}.dcm")
    return folder


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    with DicomwebSimulator(filled(tmp_path_factory.mktemp("many"), "1.2.7", 130)) as simulator:
        yield simulator


@pytest.mark.parametrize("silent", [False, True])
async def test_a_node_that_stops_at_its_own_maximum_is_asked_on(many, silent):
    many.options = DicomwebOptions(max_results=50, silent_maximum=silent)
    async with adapter_on(many.url, quirks=NONE) as adapter:
        rows, report = await found(adapter)
        limited, _ = await found(adapter, limit=60)
    assert len({row.value("StudyInstanceUID") for row in rows}) == len(rows) == 130
    assert len(limited) == 60
    assert not report.truncated


@pytest.fixture(scope="session")
def dated(tmp_path_factory):
    """120 studies of two days, of which the node gives 101, as Orthanc does with LimitFindResults 100."""
    folder = filled(
        tmp_path_factory.mktemp("dated"),
        "1.2.8",
        120,
        lambda number: (f"2020010{1 + number % 2}", f"{number % 24:02}3000.5"),
    )
    with DicomwebSimulator(folder, DicomwebOptions(max_results=100, ends_at_maximum=True)) as simulator:
        yield simulator


DAYS = NativeMatch("StudyDate", Operator.RANGE, ("20200101", "20200102"))


@pytest.mark.parametrize("keys", [(), (DAYS,)])
async def test_a_node_that_hides_what_lies_behind_its_maximum_is_found_out(dated, keys):
    async with adapter_on(dated.url, quirks=NONE) as adapter:
        rows, report = await found(adapter, Level.STUDY, *keys)
        part, whole = await found(adapter, Level.STUDY, exact("StudyDate", "20200101"))
    assert (len(rows), report.truncated) == (101, True)
    assert (len(part), whole.truncated) == (60, False)


@pytest.mark.parametrize(
    ("days", "asked"),
    [("1234", "2020010[34]"), ("4321", "2020010[12]"), ("1111", "")],
    ids=["the newest are hidden", "the oldest are hidden", "nothing tells"],
)
def test_the_half_is_asked_for_on_whose_side_an_archive_that_keeps_an_order_hides_some(days, asked):
    rows = [
        {"00080020": {"vr": "DA", "Value": [f"2020010{day}"]}, "00100020": {"vr": "LO", "Value": ["P"]}} for day in days
    ]
    parts = maximum.parts_that_tell(NativeQuery(Level.STUDY, (DAYS,)), rows)
    ends = {"2020010[34]": ("20200103", "20200102"), "2020010[12]": ("20200101", "20200102")}
    assert [part.match for part in parts] == (
        [(NativeMatch("StudyDate", Operator.RANGE, ends[asked]),)] if asked else []
    )


def test_studies_of_one_moment_are_told_by_how_their_patient_ids_begin_the_rarest_way_first():
    """An archive that keeps its order hides the last ids, of which it has shown but few."""

    def told(*ids):
        rows = [{"00100020": {"vr": "LO", "Value": [each]}} for each in ids]
        parts = maximum.parts_that_tell(NativeQuery(Level.STUDY, (DAYS,)), rows)
        return [part.match[1].values[0] for part in parts]

    assert told("P17", "P18", "P2") == ["P2*", "P1*"]
    assert told("P1", "P2", "P2", "", "Pü") == ["P*"]
    assert told("P1", "P12") == ["P12*"]
    assert told(*(f"{letter}{letter}" for letter in "ABCDEFGHIJKLMNOP")) == [f"{letter}*" for letter in "ABCDEFGHIJ"]
    assert told("P1", "P1") == told("a,b", "a%b") == []


@pytest.mark.parametrize("day", ["20200101", "20200102"])
async def test_a_round_number_of_studies_is_shown_to_be_all_by_a_part_of_it(many, dated, day):
    """50 of one day are told apart by their times, 100 of two days by their days."""
    few = NativeMatch("StudyTime", Operator.RANGE, ("00", "1930"))
    async with adapter_on(dated.url, quirks=NONE) as adapter:
        rows, report = await found(adapter, Level.STUDY, exact("StudyDate", day), few)
    assert (len(rows), report.truncated) == (50, False)


async def test_a_round_number_of_studies_is_believed_where_the_node_gives_more_of_any_and_that_is_remembered(tmp_path):
    """A hundred studies of one moment; twenty more are of another."""
    folder = filled(tmp_path, "1.2.9", 120, lambda number: (f"2020010{1 + (number >= 100)}", "101500"))
    with DicomwebSimulator(folder) as simulator:
        async with adapter_on(simulator.url, quirks=NONE) as adapter:
            asked = []
            for _ in range(2):
                before = simulator.operations.total()
                rows, report = await found(adapter, Level.STUDY, exact("StudyDate", "20200101"))
                asked.append(simulator.operations.total() - before)
                assert (len(rows), report.truncated) == (100, False)
    assert asked == [3, 1]  # it, what lies behind it and any; then it alone


async def test_a_round_number_of_studies_that_nothing_tells_apart_is_believed(many):
    """All are of one moment and of one patient."""
    async with adapter_on(many.url, quirks=NONE) as adapter:
        many.options = DicomwebOptions(max_results=127, ends_at_maximum=True)
        rows, report = await found(adapter)
    assert (len(rows), report.truncated) == (128, False)


async def test_a_node_that_once_gave_more_has_not_stopped_at_fifty(many):
    many.options = DicomwebOptions()
    fifty = NativeMatch("StudyInstanceUID", Operator.LIST, tuple(f"1.2.7.{number}" for number in range(50)))
    asked = []
    async with adapter_on(many.url, quirks=NONE) as adapter:
        for keys in ((fifty,), (), (fifty,)):
            many.operations.clear()
            rows, report = await found(adapter, Level.STUDY, *keys)
            assert (len(rows), report.truncated) == (50 if keys else 130, False)
            asked.append(many.operations.total())
        await adapter.probe()  # who knows what was set there meanwhile
        many.operations.clear()
        await found(adapter, Level.STUDY, fifty)
        asked.append(many.operations.total())
    assert asked == [2, 1, 1, 2]


async def test_a_look_at_some_of_many_shows_too_that_fifty_are_no_maximum(many):
    many.options = DicomwebOptions()
    fifty = NativeMatch("StudyInstanceUID", Operator.LIST, tuple(f"1.2.7.{number}" for number in range(50)))
    async with adapter_on(many.url, quirks=NONE) as adapter:
        rows, report = await found(adapter, limit=60)
        assert (len(rows), report.truncated) == (60, True)
        many.operations.clear()
        rows, report = await found(adapter, Level.STUDY, fifty)
    assert (len(rows), report.truncated, many.operations.total()) == (50, False, 1)


async def test_who_asks_for_a_sample_gets_the_days_of_what_is_cut_off_and_the_rows_of_what_is_not(many):
    many.options = DicomwebOptions()
    async with adapter_on(many.url, quirks=NONE) as adapter:
        rows, whole = await found(adapter, samples=True, limit=130)
        few, cut = await found(adapter, samples=True, limit=60)
        below, _ = await found(adapter, samples=True)
    assert (len(rows), whole.sample, whole.truncated) == (130, (), False)
    assert (few, cut.sample, cut.truncated) == ([], (("20040119", "072730"),) * 60, True)
    assert len(below) == 130  # without a limit nothing is cut off


@pytest.mark.parametrize(
    ("sent", "sample"),
    [
        ({"00080020": {"vr": "DA", "Value": ["20200101 "]}}, ("20200101", None)),
        ({"00080020": {"vr": "DA"}, "00080030": {"vr": "TM", "Value": []}}, ("", "")),
        ({"00080030": {"vr": "TM", "Value": ["0101", "0202"]}}, ("", "0101")),
        ({"00080020": {"vr": "DA", "Value": None}, "00080030": {}}, ("", "")),
    ],
)
async def test_a_sample_says_what_has_no_day_and_what_says_nothing_of_a_time(scripted, sent, sample):
    async def answer(exchange):
        row = {"0020000D": {"vr": "UI", "Value": ["1.2"]}, **sent}
        await exchange.reply(200, json.dumps([row] * 3).encode(), Content_Type="application/dicom+json")

    peer = await scripted(answer)
    async with adapter_on(peer.url, quirks=NONE) as adapter:
        _, report = await found(adapter, samples=True, limit=2)
    assert report.sample == (sample,) * 2


@pytest.mark.parametrize("day", ["20200101", {"vr": "DA", "Value": "20200101"}, {"vr": "DA", "Value": [20200101]}])
async def test_what_is_to_be_mended_first_is_no_sample_but_rows(scripted, day):
    async def answer(exchange):
        rows = [{"0020000D": {"vr": "UI", "Value": [f"1.2.{number}"]}, "00080020": day} for number in range(3)]
        await exchange.reply(200, json.dumps(rows).encode(), Content_Type="application/dicom+json")

    peer = await scripted(answer)
    async with adapter_on(peer.url, quirks=NONE) as adapter:
        if isinstance(day, str):
            with pytest.raises(NodeProtocolError):
                await found(adapter, samples=True, limit=2)
            return
        rows, report = await found(adapter, samples=True, limit=2)
    assert [row.value("StudyDate") for row in rows] == ["20200101"] * 2
    assert (report.sample, report.truncated) == ((), True)


@pytest.mark.parametrize("silent", [False, True])
async def test_a_node_that_stops_and_ignores_the_offset_is_reported_as_truncated(many, silent):
    many.options = DicomwebOptions(max_results=50, silent_maximum=silent, ignores_offset=True)
    async with adapter_on(many.url, quirks=NONE) as adapter:
        for limit in (None, 55, 60, 1000):  # near the maximum the second question is for a few rows only
            rows, report = await found(adapter, limit=limit)
            assert len(rows) == 50
            assert report.truncated, limit


async def test_a_missing_service_is_unsupported_where_the_study_is_there(simulator, files):
    simulator.options = DicomwebOptions(no_metadata=True, no_frames=True)
    ref = ref_of(files / "0.dcm")
    async with adapter_on(simulator.url, quirks=NONE) as adapter:
        with pytest.raises(Unsupported):
            [dataset async for dataset in adapter.describe(Ref(ref.study))]
        with pytest.raises(Unsupported):
            [frame async for frame in adapter.frames(ref, [1])]
        assert [dataset async for dataset in adapter.describe(Ref("1.2.3.4.5"))] == []


@pytest.mark.parametrize(
    "options",
    [
        DicomwebOptions(parameters_inside_quotes=True),
        DicomwebOptions(quirk_unquoted_type=True),
        DicomwebOptions(lf_only=True),
        DicomwebOptions(framing="content-length"),
    ],
)
async def test_the_ways_of_writing_multipart_are_all_read(simulator, files, options):
    simulator.options = options
    ref = ref_of(files / TWO_FRAMES)
    async with adapter_on(simulator.url, quirks=NONE) as adapter:
        assert (await retrieved(adapter, ref))[ref.instance] == (files / TWO_FRAMES).read_bytes()
        syntaxes = [(frame.media_type, frame.transfer_syntax) async for frame in adapter.frames(ref, [1])]
    assert [syntax for _, syntax in syntaxes] == ["1.2.840.10008.1.2.5"]


# --- faults, on the simulator


@pytest.mark.parametrize(
    "options",
    [
        DicomwebOptions(framing="content-length", truncate_after=20_000),
        DicomwebOptions(truncate_after=20_000),
        DicomwebOptions(truncate_after=20_000, no_closing_boundary=True),
        DicomwebOptions(no_closing_boundary=True),
        DicomwebOptions(framing="content-length", no_closing_boundary=True),
    ],
)
async def test_a_truncated_body_raises_instead_of_ending_neatly(simulator, options):
    simulator.options = options
    async with adapter_on(simulator.url, quirks=NONE) as adapter:
        with pytest.raises(NodeProtocolError):
            await retrieved(adapter, Ref("1.2.9.0"))


async def test_a_body_that_stalls_is_a_timeout(simulator):
    simulator.options = DicomwebOptions(stall_after=20_000)
    async with adapter_on(simulator.url, quirks=NONE) as adapter:
        with pytest.raises(NodeTimeout):
            await retrieved(adapter, Ref("1.2.9.0"))


async def test_a_silent_node_delays_a_first_search_by_no_more_than_the_deadline(simulator):
    simulator.options = DicomwebOptions(black_hole=True)
    timeouts = Timeouts(connect=1, first_byte=9, idle=9, total=1.5)
    async with adapter_on(simulator.url, timeouts=timeouts) as adapter:
        started = time.monotonic()
        with pytest.raises(NodeTimeout):
            await found(adapter)
    assert time.monotonic() - started < 2.8


async def test_a_node_that_is_down_is_unreachable():
    async with adapter_on("http://127.0.0.1:9") as adapter:
        with pytest.raises(NodeUnreachable):
            await found(adapter)
        with pytest.raises(NodeUnreachable):
            await adapter.probe()


async def test_another_study_than_asked_for_is_out_of_protocol(simulator):
    simulator.options = DicomwebOptions(foreign_study=True)
    async with adapter_on(simulator.url, quirks=NONE) as adapter:
        with pytest.raises(NodeProtocolError, match="another study"):
            await retrieved(adapter, Ref("1.2.9.0"))
        with pytest.raises(NodeProtocolError, match="another study"):
            [dataset async for dataset in adapter.describe(Ref("1.2.9.0"))]


async def test_garbage_instead_of_json_is_out_of_protocol(simulator):
    simulator.options = DicomwebOptions(garbage_json=True)
    async with adapter_on(simulator.url, quirks=NONE) as adapter:
        with pytest.raises(NodeProtocolError):
            await found(adapter)


@pytest.mark.parametrize("body", [b'{"a":1}', b'"x"', b"[1]", b'[{"00100010":{"vr":"SQ","Value":["x"]}}]', b"[[]]"])
async def test_json_that_is_no_list_of_data_sets_is_out_of_protocol(scripted, body):
    async def script(exchange):
        await exchange.reply(200, body)

    peer = await scripted(script)
    async with adapter_on(peer.url, quirks=NONE) as adapter:
        with pytest.raises(NodeProtocolError):
            await found(adapter)
        with pytest.raises(NodeProtocolError):
            [dataset async for dataset in adapter.describe(Ref("1.2"))]


async def test_bulk_data_on_a_host_outside_the_allow_list_is_refused(simulator, files):
    simulator.options = DicomwebOptions(absolute_bulk_host="http://elsewhere.example")
    ref = ref_of(files / "0.dcm")
    async with adapter_on(simulator.url, quirks=NONE) as adapter:
        [dataset] = [dataset async for dataset in adapter.describe(ref)]
        address = next(a["BulkDataURI"] for a in dataset.values() if "BulkDataURI" in a)
        with pytest.raises(NodeRefused, match=r"elsewhere\.example"):
            [part async for part in adapter.bulkdata(ref, address)]


@pytest.mark.parametrize("what", ["bulkdata", "frames"])
async def test_a_part_of_bytes_that_nobody_asked_for_a_part_of_is_out_of_protocol(scripted, what):
    async def script(exchange):
        await exchange.reply(206, b"half", Content_Type="application/octet-stream", Content_Range="bytes 0-3/8")

    peer = await scripted(script)
    async with adapter_on(peer.url, quirks=NONE) as adapter:
        ref = Ref("1.2", "1.3", "1.4")
        parts = adapter.frames(ref, [1]) if what == "frames" else adapter.bulkdata(ref, f"{peer.url}/bulk/1")
        with pytest.raises(NodeProtocolError, match="206"):
            [part async for part in parts]


async def test_leaving_a_retrieve_early_frees_its_connection(simulator):
    async with adapter_on(simulator.url, quirks=NONE, max_connections=1) as adapter:
        for _ in range(5):
            stream = adapter.retrieve(Ref("1.2.9.0"))
            part = await anext(stream)
            await anext(part.body)
            await stream.aclose()
        assert await retrieved(adapter, Ref("1.2.9.0"))


# --- faults that only a script can have


def dicom_bytes() -> bytes:
    return Path(get_testdata_file("CT_small.dcm")).read_bytes()


CT_SMALL = Ref("1.3.6.1.4.1.5962.1.2.1.20040119072730.12322")


async def test_a_single_part_reply_is_read_and_noticed_when_the_connection_ends_it_too_early(scripted):
    sent = [dicom_bytes()]

    async def script(exchange):
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom\r\nConnection: close\r\n\r\n" + sent[0]
        )
        raise ConnectionError

    peer = await scripted(script)
    async with adapter_on(peer.url, quirks=NONE) as adapter:
        assert list((await retrieved(adapter, CT_SMALL)).values()) == sent
        sent[0] = sent[0][:-1000]
        with pytest.raises(NodeProtocolError):
            await retrieved(adapter, CT_SMALL)


async def test_another_media_type_than_dicom_is_out_of_protocol(scripted):
    async def script(exchange):
        await exchange.reply(200, b"PK\3\4", Content_Type="application/zip")

    peer = await scripted(script)
    async with adapter_on(peer.url, quirks=NONE) as adapter:
        with pytest.raises(NodeProtocolError):
            await retrieved(adapter, CT_SMALL)


async def test_a_node_that_refuses_the_transfer_syntax_wildcard_is_asked_without_it_from_then_on(scripted):
    async def script(exchange):
        if "transfer-syntax=*" in exchange.headers["accept"]:
            await exchange.reply(406)
        else:
            await exchange.reply(200, dicom_bytes(), Content_Type="application/dicom")

    peer = await scripted(script)
    async with adapter_on(peer.url, quirks=NONE) as adapter:
        assert len(await retrieved(adapter, CT_SMALL)) == 1
        assert len(await retrieved(adapter, CT_SMALL)) == 1
    assert len(peer.requests) == 3


async def test_an_answer_that_says_it_is_partial_gives_its_parts_and_then_fails(scripted):
    async def script(exchange):
        await exchange.reply(206, dicom_bytes(), Content_Type="application/dicom")

    peer = await scripted(script)
    async with adapter_on(peer.url, quirks=NONE) as adapter:
        stream = adapter.retrieve(CT_SMALL)
        assert (await anext(stream)).sop_instance_uid
        with pytest.raises(NodeProtocolError):
            await anext(stream)


async def test_a_relational_search_that_the_node_does_not_have_is_unsupported(scripted):
    async def script(exchange):
        await exchange.reply(404)

    peer = await scripted(script)
    async with adapter_on(peer.url, quirks=NONE) as adapter:
        with pytest.raises(Unsupported):
            await found(adapter, Level.SERIES)
        assert (await found(adapter, Level.SERIES, study="1.2"))[0] == []
        with pytest.raises(NodeProtocolError):
            await found(adapter, Level.STUDY)


async def test_rows_of_another_study_than_the_one_in_the_path_are_out_of_protocol(scripted):
    async def script(exchange):
        await exchange.reply(
            200, b'[{"0020000D":{"vr":"UI","Value":["1.3"]},"0020000E":{"vr":"UI","Value":["1.3.1"]}}]'
        )

    peer = await scripted(script)
    async with adapter_on(peer.url, quirks=NONE) as adapter:
        with pytest.raises(NodeProtocolError, match="another study"):
            await found(adapter, Level.SERIES, study="1.2")
