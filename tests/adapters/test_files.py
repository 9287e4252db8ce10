"""A directory of real DICOM files as a node: what is in it is found, and comes out byte for byte."""

import asyncio
import io
import os
import shutil
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from gateway.adapters.files import FilesAdapter, catalogue
from gateway.adapters.files.incoming import accept
from gateway.adapters.files.scan import Listing
from gateway.errors import InvalidQuery, NodeError, NodeProtocolError, NodeUnreachable, NotFound
from gateway.model.dataset import as_text, text, texts, values
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
    Report,
    Retrieves,
    Stores,
)
from gateway.model.vocabulary import Level, tag
from gateway.wire.instance import Part10Error, open_instance

DATA = Path(pydicom.__file__).parent / "data"


def identified(path):
    """The UIDs of a whole file; None for what is no instance."""
    try:
        with open_instance(path) as instance:
            found = instance.metadata(str)
            uids = tuple(text(found, tag(k)) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
            patient = (text(found, tag("IssuerOfPatientID")), text(found, tag("PatientID")).strip())
            return (*uids, *patient) if all(uids) and instance.is_complete() else None
    except Part10Error:
        return None


FILES = [p for d in ("test_files", "charset_files") for p in sorted((DATA / d).rglob("*")) if p.is_file()]
IDENTIFIED = {p: i for p in FILES if not p.name.startswith("DICOMDIR") and (i := identified(p))}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Every file of the pydicom wheel, in its folders."""
    directory = tmp_path_factory.mktemp("archive")
    for part in ("test_files", "charset_files"):
        shutil.copytree(DATA / part, directory / part)
    return directory


@pytest.fixture
async def adapter(archive):
    node = FilesAdapter("ee-tartu", directory=archive)
    await node.open()
    yield node
    await node.close()


@pytest.fixture
async def empty(tmp_path):
    """An adapter over an empty directory that is looked through before every search."""
    (tmp_path / "node").mkdir()
    node = FilesAdapter("n", directory=tmp_path / "node", rescan=0)
    await node.open()
    yield node, tmp_path / "node"
    await node.close()


def exact(path, *values):
    return NativeMatch(path, Operator.EXACT if len(values) == 1 else Operator.LIST, values)


async def find(node, level, *match, **query):
    found = [item async for item in node.find(NativeQuery(level, match=match, **query))]
    assert isinstance(found[-1], Report)
    return [record.dataset for record in found[:-1]], found[-1]


def instance(study="1.2.3", series="1.2.3.1", uid=None, patient="P", modality="CT", **elements):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uid or generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.PatientID, dataset.Modality, dataset.BitsAllocated = patient, modality, 8
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def one(dataset, keyword):
    return text(dataset, tag(keyword))


def test_it_has_every_capability_but_addresses():
    node = FilesAdapter("n", directory=Path("/nowhere"))
    assert isinstance(node, Adapter | Finds)
    for capability in (Adapter, Finds, Retrieves, Describes, Frames, BulkData, Stores):
        assert isinstance(node, capability)


async def test_every_level_counts_what_the_files_hold(adapter):
    studies, series, instances = defaultdict(set), defaultdict(set), set()
    for study, one_series, uid, *patient in IDENTIFIED.values():
        studies[study, *patient].add((one_series, uid))
        series[study, one_series, *patient].add(uid)
        instances.add((study, one_series, uid, *patient))
    rows, report = await find(adapter, Level.STUDY)
    assert report.complete_rows
    assert not report.truncated
    assert {
        (one(r, "StudyInstanceUID"), one(r, "IssuerOfPatientID"), one(r, "PatientID")): (
            values(r, tag("NumberOfStudyRelatedSeries"))[0],
            values(r, tag("NumberOfStudyRelatedInstances"))[0],
        )
        for r in rows
    } == {key: (len({s for s, _ in held}), len(held)) for key, held in studies.items()}
    rows, _ = await find(adapter, Level.SERIES)
    assert sorted(values(r, tag("NumberOfSeriesRelatedInstances"))[0] for r in rows) == sorted(
        map(len, series.values())
    )
    rows, _ = await find(adapter, Level.IMAGE)
    assert len(rows) == len(instances)
    assert {one(r, "SOPInstanceUID") for r in rows} == {i[2] for i in instances}


async def test_rows_hold_the_attributes_of_their_level_and_of_those_above(adapter):
    ct = exact("StudyInstanceUID", "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322")
    (study,), report = await find(adapter, Level.STUDY, ct)
    assert report.matched == {"StudyInstanceUID"}
    assert texts(study, tag("ModalitiesInStudy")) == ["CT"]
    assert one(study, "SOPClassesInStudy") == "1.2.840.10008.5.1.4.1.1.2"
    assert one(study, "InstanceAvailability") == "ONLINE"
    assert one(study, "StudyDate") == "20040119"
    assert not {tag("Modality"), tag("SeriesInstanceUID"), tag("Rows"), "7FE00010"} & set(study)
    (series,), _ = await find(adapter, Level.SERIES, ct)
    assert one(series, "Modality") == "CT"
    assert one(series, "PatientID") == "1CT1"
    assert tag("Rows") not in series
    (image,), _ = await find(adapter, Level.IMAGE, ct)
    assert values(image, tag("Rows")) == [128]
    assert one(image, "AvailableTransferSyntaxUID") == "1.2.840.10008.1.2.1"
    assert tag("KVP") not in image
    (image,), _ = await find(adapter, Level.IMAGE, ct, return_=("KVP",))
    assert values(image, tag("KVP")) == [120]
    (image,), _ = await find(adapter, Level.IMAGE, ct, all_attributes=True)
    assert tag("KVP") in image
    assert "7FE00010" not in image


async def test_what_sql_can_decide_is_matched_and_the_rest_is_reported(adapter):
    rows, report = await find(
        adapter, Level.STUDY, exact("PatientID", "1CT1"), NativeMatch("PatientName", Operator.WILDCARD, ("x*",))
    )
    assert {one(r, "PatientID") for r in rows} == {"1CT1"}
    assert (report.matched, report.ignored) == ({"PatientID"}, {"PatientName"})
    rows, _ = await find(adapter, Level.STUDY, NativeMatch("StudyDate", Operator.RANGE, ("20040101", "20041231")))
    assert rows
    assert {one(r, "StudyDate")[:4] for r in rows if len(one(r, "StudyDate")) == 8} == {"2004"}
    rows, report = await find(adapter, Level.SERIES, exact("Modality", "US", "MR"))
    assert {one(r, "Modality") for r in rows} == {"US", "MR"}
    rows, _ = await find(adapter, Level.STUDY, exact("ModalitiesInStudy", "RTPLAN"))
    assert rows
    assert all("RTPLAN" in texts(r, tag("ModalitiesInStudy")) for r in rows)
    _, report = await find(adapter, Level.STUDY, exact("Modality", "CT"), exact("NoSuchKeyword", "1"))
    assert (report.ignored, report.unknown) == ({"Modality"}, {"NoSuchKeyword"})


async def test_a_key_on_one_series_does_not_shrink_the_counts_of_its_study(empty):
    node, directory = empty
    for number, modality in enumerate(["CT", "CT", "SR"]):
        (directory / f"{number}").write_bytes(instance(series=f"1.2.{number}", modality=modality))
    (study,), _ = await find(node, Level.STUDY, exact("ModalitiesInStudy", "SR"))
    assert values(study, tag("NumberOfStudyRelatedSeries")) == [3]
    assert texts(study, tag("ModalitiesInStudy")) == ["CT", "SR"]
    (series,), _ = await find(node, Level.SERIES, exact("Modality", "SR"))
    assert values(series, tag("NumberOfStudyRelatedInstances")) == [3]


async def test_a_limit_is_kept_and_told(adapter):
    rows, report = await find(adapter, Level.IMAGE, limit=7)
    assert len(rows) == 7
    assert report.truncated
    everything, _ = await find(adapter, Level.STUDY)
    rows, report = await find(adapter, Level.STUDY, limit=len(everything))
    assert (len(rows), report.truncated) == (len(everything), False)


async def test_two_patients_under_one_study_uid_are_two_studies(empty):
    node, directory = empty
    for name, patient, issuer in (("a", "1", "X"), ("b", "1", "Y"), ("c", "2", "X"), ("d", "1", "X")):
        (directory / name).write_bytes(
            instance(patient=patient, IssuerOfPatientID=issuer, PatientName=f"{patient}^{issuer}")
        )
    rows, _ = await find(node, Level.STUDY)
    found = {(one(r, "IssuerOfPatientID"), one(r, "PatientID")): r for r in rows}
    assert {key: values(r, tag("NumberOfStudyRelatedInstances"))[0] for key, r in found.items()} == {
        ("X", "1"): 2, ("Y", "1"): 1, ("X", "2"): 1,
    }  # fmt: skip
    assert all(one(r, "PatientName") == f"{patient}^{issuer}" for (issuer, patient), r in found.items())
    series, _ = await find(node, Level.SERIES)
    assert len(series) == 3
    parts = [p.sop_instance_uid async for p in node.retrieve(Ref("1.2.3"))]
    assert len(parts) == 4


async def test_pixels_of_an_instance_that_two_patients_have_are_nobody_s(empty):
    node, directory = empty
    image = {"uid": "1.5", "Rows": 1, "Columns": 2, "SamplesPerPixel": 1, "PixelData": b"\1\2"}
    ref = Ref("1.2.3", "1.2.3.1", "1.5")
    for name, patient, issuer in (("a", "1", ""), ("b", "1", "X"), ("c", "2", "X")):
        (directory / name).write_bytes(instance(patient=patient, IssuerOfPatientID=issuer, **image))
        await find(node, Level.STUDY)
        if patient == "1":  # one who is named with and without an issuer
            assert [frame.number async for frame in node.frames(ref, [1])] == [1]
            assert [part.number async for part in node.bulkdata(ref, "1.5/7FE00010")] == [0]
    for pixels in (node.frames(ref, [1]), node.bulkdata(ref, "1.5/7FE00010")):
        with pytest.raises(NodeProtocolError):
            [part async for part in pixels]


@pytest.mark.parametrize(
    ("character_set", "declared", "name"),
    [("", "ISO_IR 101", "Wałęsa^Łukasz"), ("", "ISO_IR 126", "Παπαδόπουλος^Γιώργος"), ("", "ISO_IR 144", "Люкceмбypг"),
     ("ISO_IR 101", None, "Wałęsa^Łukasz"), ("ISO_IR 126", None, "Παπαδόπουλος^Γιώργος")],
)  # fmt: skip
async def test_names_come_back_right_with_and_without_a_declared_character_set(tmp_path, character_set, declared, name):
    codec = {"ISO_IR 101": "iso8859_2", "ISO_IR 126": "iso8859_7", "ISO_IR 144": "iso8859_5"}[declared or character_set]
    placeholder = "#" * len(name)
    elements = {"SpecificCharacterSet": declared} if declared else {}
    raw = instance(PatientName=placeholder, **elements).replace(placeholder.encode(), name.encode(codec))
    (tmp_path / "one.dcm").write_bytes(raw)
    node = FilesAdapter("n", directory=tmp_path, character_set=character_set)
    await node.open()
    try:
        (row,), _ = await find(node, Level.STUDY)
        assert as_text(values(row, "00100010")[0]) == name
        assert texts(row, "00080005") == ["ISO_IR 192"]
        (described,) = [d async for d in node.describe(Ref("1.2.3"))]
        assert as_text(values(described, "00100010")[0]) == name
    finally:
        await node.close()


async def collected(part):
    chunks = [chunk async for chunk in part.body]
    assert all(len(chunk) <= 1 << 20 for chunk in chunks)
    assert sum(map(len, chunks)) == part.size
    return b"".join(chunks)


async def test_every_file_comes_out_byte_for_byte(adapter):
    wanted = defaultdict(set)
    for path, (study, _, uid, *_) in IDENTIFIED.items():
        wanted[study, uid].add(path.read_bytes())
    given = defaultdict(list)
    for study in {study for study, _ in wanted}:
        async for part in adapter.retrieve(Ref(study)):
            given[study, part.sop_instance_uid].append(await collected(part))
    assert set(given) == set(wanted)
    assert all(body in wanted[key] for key, bodies in given.items() for body in bodies)


async def test_an_absent_study_is_an_empty_stream(adapter):
    assert [p async for p in adapter.retrieve(Ref("9.9"))] == []
    assert [p async for p in adapter.describe(Ref("9.9"))] == []
    assert [p async for p in adapter.frames(Ref("9.9", "9", "9"), [1])] == []


async def test_describe_gives_addresses_under_which_the_bulk_data_is_found(adapter):
    path = DATA / "test_files/waveform_ecg.dcm"
    study, series, uid, *_ = IDENTIFIED[path]
    (described,) = [d async for d in adapter.describe(Ref(study, series, uid))]
    address = described["54000100"]["Value"][0]["54001010"]["BulkDataURI"]
    (part,) = [(p, await collected(p)) async for p in adapter.bulkdata(Ref(study, series, uid), address)]
    assert part[1] == pydicom.dcmread(path).WaveformSequence[0].WaveformData
    assert (part[0].number, part[0].media_type) == (0, "application/octet-stream")
    for wrong in ("", "x", f"{uid}/7FE00010", f"{uid}/54000100.7.54001010", "1.2/54000100.1.54001010"):
        with pytest.raises(NotFound):
            [p async for p in adapter.bulkdata(Ref(study, series, uid), wrong)]


async def test_frames_come_in_the_order_asked_for(empty):
    adapter, directory = empty
    path = DATA / "test_files/rtdose.dcm"
    shutil.copy(path, directory)
    study, series, uid, *_ = IDENTIFIED[path]
    pixels = pydicom.dcmread(path).PixelData
    size = len(pixels) // 15
    found = [(p.number, await collected(p)) async for p in adapter.frames(Ref(study, series, uid), [15, 2, 2])]
    assert found == [(n, pixels[(n - 1) * size : n * size]) for n in (15, 2, 2)]
    for number in (0, 16, -1):
        with pytest.raises(InvalidQuery):
            [p async for p in adapter.frames(Ref(study, series, uid), [1, number])]


async def test_new_changed_and_deleted_files_are_noticed(empty):
    node, directory = empty
    assert (await find(node, Level.STUDY))[0] == []
    place = directory / "deep" / "er" / "one.dcm"
    place.parent.mkdir(parents=True)
    place.write_bytes(instance(PatientName="Old"))
    assert [one(r, "PatientName") for r in (await find(node, Level.STUDY))[0]] == ["Old"]
    place.write_bytes(instance(PatientName="Newer"))
    assert [one(r, "PatientName") for r in (await find(node, Level.STUDY))[0]] == ["Newer"]
    place.unlink()
    assert (await find(node, Level.STUDY))[0] == []


async def test_between_two_scans_a_retrieve_still_gives_what_is_there_now(tmp_path):
    node = FilesAdapter("n", directory=tmp_path, rescan=3600)
    (tmp_path / "a").write_bytes(instance(uid="1.1"))
    (tmp_path / "b").write_bytes(instance(uid="1.2"))
    await node.open()
    try:
        assert len((await find(node, Level.IMAGE))[0]) == 2
        (tmp_path / "b").unlink()
        (tmp_path / "a").write_bytes(new := instance(uid="1.1", PatientName="changed"))
        assert [await collected(p) async for p in node.retrieve(Ref("1.2.3"))] == [new]
    finally:
        await node.close()


async def test_a_file_that_was_held_and_is_broken_now_is_missed_and_not_forgotten(empty):
    node, directory = empty
    whole = instance(uid="1.2", PixelData=b"\0" * 100)
    (directory / "a").write_bytes(instance(uid="1.1"))
    (directory / "b").write_bytes(whole)
    assert len((await find(node, Level.IMAGE))[0]) == 2
    (directory / "b").write_bytes(whole[:-50])
    for moment in (None, (1, 1)):  # just now, and so long ago that nobody is writing it any more
        if moment:
            os.utime(directory / "b", moment)
        assert len((await find(node, Level.IMAGE))[0]) == 2
        with pytest.raises(NodeProtocolError):
            [await collected(part) async for part in node.retrieve(Ref("1.2.3"))]
    (directory / "b").write_bytes(whole)
    assert whole in [await collected(part) async for part in node.retrieve(Ref("1.2.3"))]
    (directory / "b").unlink()
    assert len((await find(node, Level.IMAGE))[0]) == 1


async def test_a_file_that_cannot_be_looked_at_now_is_missed_and_not_forgotten(empty):
    """As on a file server that has lost its disk for a while: its study must not pass for whole, nor for deleted."""
    node, directory = empty
    (directory / "a").write_bytes(instance(uid="1.1"))
    (directory / "b").write_bytes(whole := instance(uid="1.2"))
    assert len((await find(node, Level.IMAGE))[0]) == 2
    (directory / "b").unlink()
    (directory / "b").symlink_to(directory / "b")  # ELOOP
    assert len((await find(node, Level.IMAGE))[0]) == 2
    with pytest.raises(NodeUnreachable):
        [await collected(part) async for part in node.retrieve(Ref("1.2.3"))]
    (directory / "b").unlink()
    (directory / "b").write_bytes(whole)
    assert whole in [await collected(part) async for part in node.retrieve(Ref("1.2.3"))]


async def test_what_could_never_be_looked_at_is_missed_and_named(empty, monkeypatch):
    """Nobody knows what is in it: what is found beside it is not all."""
    node, directory = empty
    (directory / "a").write_bytes(instance(uid="1.1"))
    (directory / "b").symlink_to(directory / "b")  # ELOOP
    (directory / "c").write_bytes(instance(uid="1.3"))
    (directory / "lost+found").symlink_to(directory / "lost+found")
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *more, **own: refused(path) if path.name == "c" else real(path, *more, **own)
    )
    rows, report = await find(node, Level.IMAGE)
    assert len(rows) == 1
    assert report.gaps == ("may not read 2 of its files and directories, which are left out",)
    monkeypatch.undo()
    (directory / "b").unlink()
    rows, report = await find(node, Level.IMAGE)  # though the file's stamp is what it was
    assert (len(rows), report.gaps) == (2, ())


def refused(path):
    raise PermissionError(path)


async def test_a_file_that_a_share_fails_to_read_is_missed_and_named_and_never_taken_for_a_broken_one(empty):
    """It was skipped for as long as its stamp stayed: its study was whole without it."""
    node, directory = empty
    (directory / "a").write_bytes(instance(uid="1.1"))
    (directory / "b").symlink_to("/proc/self/mem")  # a regular file that opens, and whose first byte is EIO
    rows, report = await find(node, Level.IMAGE)
    assert len(rows) == 1
    assert report.gaps == ("may not read 1 of its files and directories, which are left out",)


async def test_broken_and_foreign_files_are_counted_and_skipped(empty):
    node, directory = empty
    good = instance(PixelData=b"\0" * 100)
    (directory / "good.dcm").write_bytes(good)
    broken = {
        "text.txt": b"hello",
        "empty": b"",
        "cut.dcm": good[:-50],
        "noise.dcm": b"\0" * 128 + b"DICM" + os.urandom(500),
    }
    for name, content in broken.items():
        (directory / name).write_bytes(content)
        os.utime(directory / name, (1, 1))
    (directory / "DICOMDIR").write_bytes(good)
    (directory / ".hidden").write_bytes(good)
    (directory / "dangling").symlink_to(directory / "nowhere")
    (directory / "loop").symlink_to(directory)
    rows, _ = await find(node, Level.IMAGE)
    assert len(rows) == 1
    assert (await node.probe()).details == {"files held": "1", "files skipped": "4"}


async def test_a_name_that_is_no_utf8_hides_nothing(empty):
    node, directory = empty
    (directory / "a.dcm").write_bytes(instance(uid="1.1"))
    named = Path(os.fsdecode(os.fsencode(directory) + b"/M\xfcller.dcm"))
    named.write_bytes(whole := instance(uid="1.2"))
    broken = Path(os.fsdecode(os.fsencode(directory) + b"/M\xfcll.dcm"))
    broken.write_bytes(whole[:-50])
    os.utime(broken, (1, 1))
    assert len((await find(node, Level.IMAGE))[0]) == 2
    assert [await collected(part) async for part in node.retrieve(Ref("1.2.3", None, "1.2"))] == [whole]
    assert (await node.probe()).details == {"files held": "2", "files skipped": "1"}
    assert [told.failure async for told in node.store(parts_of(whole, instance(uid="1.2", PatientName="Other")))] == [
        0,
        0x0111,
    ]
    named.unlink()
    assert len((await find(node, Level.IMAGE))[0]) == 1


async def test_what_is_no_regular_file_is_not_waited_for(empty):
    node, directory = empty
    (directory / "a.dcm").write_bytes(instance())
    os.mkfifo(directory / "pipe.dcm")
    async with asyncio.timeout(5):
        assert len((await find(node, Level.IMAGE))[0]) == 1


async def test_a_file_that_is_half_written_now_is_found_when_it_is_whole(empty):
    node, directory = empty
    whole = instance(PixelData=b"\0" * 5000)
    with (directory / "slow.dcm").open("wb") as out:
        out.write(whole[:3000])
        out.flush()
        assert (await find(node, Level.STUDY))[0] == []
        out.write(whole[3000:])
    assert len((await find(node, Level.STUDY))[0]) == 1


async def test_a_missing_directory_is_an_unreachable_node_and_its_index_survives(tmp_path):
    directory, index = tmp_path / "node", tmp_path / "cache" / "index.sqlite"
    directory.mkdir()
    (directory / "one").write_bytes(instance())
    node = FilesAdapter("n", directory=directory, index=index, rescan=0)
    await node.open()
    try:
        assert len((await find(node, Level.STUDY))[0]) == 1
        directory.rename(tmp_path / "unmounted")
        for ask in (node.find(NativeQuery(Level.STUDY)), node.retrieve(Ref("1.2.3")), node.describe(Ref("1.2.3"))):
            with pytest.raises(NodeUnreachable) as failure:
                await anext(ask)
            assert str(tmp_path) not in str(failure.value)
        with pytest.raises(NodeUnreachable):
            await node.probe()
        (tmp_path / "unmounted").rename(directory)
        assert len((await find(node, Level.STUDY))[0]) == 1
    finally:
        await node.close()


async def test_an_index_on_disk_is_private_and_spares_the_next_start_the_reading(tmp_path, monkeypatch):
    directory, index = tmp_path / "node", tmp_path / "index.sqlite"
    directory.mkdir()
    (directory / "one").write_bytes(instance(PatientName="A"))
    for expected in ("A", "A", ""):
        node = FilesAdapter("n", directory=directory, index=index, character_set="" if expected else "ISO_IR 101")
        await node.open()
        rows, _ = await find(node, Level.STUDY)
        await node.close()
        assert [one(r, "PatientName") for r in rows] == ([expected] if expected else [])
        assert index.stat().st_mode & 0o077 == 0
        monkeypatch.setattr("gateway.adapters.files.catalogue.read_held", refuse)


def refuse(path, stamp, character_set):
    raise Part10Error("read again")


async def test_a_damaged_index_is_made_anew(tmp_path):
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "one").write_bytes(instance())
    (tmp_path / "index").write_bytes(b"no database at all" * 100)
    node = FilesAdapter("n", directory=tmp_path / "node", index=tmp_path / "index")
    await node.open()
    try:
        assert len((await find(node, Level.STUDY))[0]) == 1
    finally:
        await node.close()


@pytest.mark.parametrize("is_tidied_away", [True, False], ids=["with its directory", "alone"])
async def test_an_index_that_is_deleted_while_it_is_used_is_made_anew(tmp_path, is_tidied_away):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.dcm").write_bytes(instance())
    index = tmp_path / "index" / "index.sqlite"
    node = FilesAdapter("n", directory=tmp_path / "files", index=index, rescan=0)
    await node.open()
    try:
        assert len((await find(node, Level.STUDY))[0]) == 1
        if is_tidied_away:
            shutil.rmtree(index.parent)
        else:
            index.unlink()
        assert len((await find(node, Level.STUDY))[0]) == 1
    finally:
        await node.close()


async def test_searches_that_run_while_the_directory_is_indexed_see_all_of_it(archive):
    node = FilesAdapter("n", directory=archive, rescan=0)
    await node.open()
    try:
        answers = await asyncio.gather(*(find(node, Level.IMAGE) for _ in range(8)))
        assert len({len(rows) for rows, _ in answers}) == 1
        assert answers[0][0]
    finally:
        await node.close()


@pytest.mark.timeout(30)
async def test_searches_that_come_in_the_moment_a_scan_ends_do_not_stop_the_event_loop(tmp_path):
    node = FilesAdapter("x", directory=tmp_path, rescan=1e-9)
    await node.open()

    async def search(turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        assert [type(item) async for item in node.find(NativeQuery(Level.STUDY))] == [Report]

    for _ in range(20):
        await asyncio.gather(*(search(turns) for turns in range(100)))
    await node.close()


async def test_closing_during_the_first_scan_does_not_wait_for_all_of_it(archive):
    node = FilesAdapter("n", directory=archive)
    await node.open()
    await node.close()


def open_files(directory):
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            targets.append(os.readlink(descriptor))
        except OSError:
            continue
    return [t for t in targets if t.startswith(str(directory)) or "index.sqlite" in t]


async def test_closing_does_not_wait_for_a_share_that_hangs(tmp_path, monkeypatch):
    """A mount whose server is gone keeps whoever looks into it; those who are to be closed after this node wait as well."""
    looks, may_see = threading.Event(), threading.Event()

    def hanging(directory):
        looks.set()
        may_see.wait(60)
        return Listing({}, [])

    monkeypatch.setattr(catalogue, "listing", hanging)
    monkeypatch.setattr(catalogue, "_PARTING", 0.5, raising=False)
    adapter = FilesAdapter("files", directory=tmp_path)
    await adapter.open()
    try:
        await asyncio.to_thread(looks.wait, 10)
        async with asyncio.timeout(10):
            await adapter.close()
    finally:
        may_see.set()


async def test_leaving_early_or_being_cancelled_frees_every_file_and_cursor(archive, tmp_path):
    node = FilesAdapter("n", directory=archive, index=tmp_path / "index.sqlite", rescan=3600)
    await node.open()
    try:
        study, series, uid, *_ = IDENTIFIED[DATA / "test_files/rtdose.dcm"]
        asks = [
            lambda: node.find(NativeQuery(Level.IMAGE)),
            lambda: node.retrieve(Ref(study)),
            lambda: node.describe(Ref(study)),
            lambda: node.frames(Ref(study, series, uid), [1, 1, 1]),
        ]
        for ask in asks:
            async with aclosing(ask()) as stream:
                first = await anext(stream)
                if isinstance(first, Part):
                    await anext(first.body)
        for ask in asks * 10:
            task = asyncio.create_task(anext(ask()))
            await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        del task  # a task that has ended still holds what it waited for
        for _ in range(50):
            await asyncio.sleep(0.02)
            if not open_files(archive) and not open_files(tmp_path):
                break
        assert open_files(archive) + open_files(tmp_path) == []
    finally:
        await node.close()


async def test_a_file_cut_off_while_it_is_read_raises_instead_of_ending_neatly(empty):
    node, directory = empty
    (directory / "long.dcm").write_bytes(instance(PixelData=b"\0" * (3 << 20)))
    async with aclosing(node.retrieve(Ref("1.2.3"))) as parts:
        part = await anext(parts)
        await anext(part.body)
        os.truncate(directory / "long.dcm", 600_000)
        with pytest.raises(NodeProtocolError):
            [chunk async for chunk in part.body]


async def parts_of(*contents):
    for content in contents:
        yield Part("", "1.2.840.10008.1.2.1", chunks_of(content))


async def chunks_of(content):
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


async def test_what_is_stored_is_found_and_comes_back_the_same(empty):
    node, directory = empty
    content = (DATA / "test_files/CT_small.dcm").read_bytes()
    (outcome,) = [told async for told in node.store(parts_of(content))]
    study, series, uid, *_ = IDENTIFIED[DATA / "test_files/CT_small.dcm"]
    assert (outcome.sop_instance_uid, outcome.failure) == (uid, 0)
    assert [await collected(p) async for p in node.retrieve(Ref(study))] == [content]
    assert [p.relative_to(directory).parts for p in directory.rglob("*") if p.is_file()] == [
        (study, series, f"{uid}.dcm")
    ]
    (again,) = [told async for told in node.store(parts_of(content))]
    assert again.failure == 0
    assert len([p for p in directory.rglob("*") if p.is_file()]) == 1


async def test_an_instance_that_is_here_with_other_bytes_is_a_duplicate_and_stays(empty):
    node, directory = empty
    (directory / "elsewhere.dcm").write_bytes(first := instance(uid="1.5", patient="A"))
    (outcome,) = [told async for told in node.store(parts_of(instance(uid="1.5", patient="B")))]
    assert outcome.failure == 0x0111
    assert [await collected(p) async for p in node.retrieve(Ref("1.2.3"))] == [first]


async def test_what_a_killed_gateway_left_of_an_instance_goes_with_the_next_store_and_nothing_else_does(empty):
    node, directory = empty
    names = (f".{'a' * 32}.incoming", f".{'b' * 32}.incoming", ".x.incoming")
    left, under_way, foreign = (directory / name for name in names)
    for path in (left, under_way, foreign):
        path.write_bytes(b"a part of an image")
    for path in (left, foreign):
        os.utime(path, (0, 0))
    assert [told.failure async for told in node.store(parts_of(instance(uid="1.5")))] == [0]
    assert (left.exists(), under_way.exists(), foreign.exists()) == (False, True, True)


async def test_of_two_that_store_an_instance_at_once_with_other_bytes_one_is_told_that_it_is_a_duplicate(tmp_path):
    both = threading.Barrier(2)

    def seen_by_both(uid):
        both.wait(10)

    with ThreadPoolExecutor(2) as executor:
        for number in range(150):  # one in fifteen went wrong
            directory = tmp_path / str(number)
            directory.mkdir()
            parts = [Part("1.5", ExplicitVRLittleEndian, chunks_of(instance(uid="1.5", patient=p))) for p in "AB"]
            found = await asyncio.gather(*(accept(executor, directory, one, seen_by_both, "") for one in parts))
            assert sorted(one.outcome.failure for one in found) == [0, 0x0111]
            (kept,) = [one.held.patient for one in found if one.held]
            (place,) = [path for path in directory.rglob("*") if path.is_file()]
            assert pydicom.dcmread(place).PatientID == kept


async def test_what_cannot_be_read_is_not_stored(empty):
    node, directory = empty
    whole = instance(PixelData=b"\0" * 100)
    bad = [b"no DICOM" * 100, whole[:-20], instance(study="../../etc")]
    outcomes = [told async for told in node.store(parts_of(*bad, whole))]
    assert [outcome.failure for outcome in outcomes] == [0xC000, 0xC000, 0xC000, 0]
    assert len([p for p in directory.rglob("*") if p.is_file()]) == 1


async def test_a_sender_that_breaks_off_leaves_nothing_behind(empty):
    node, directory = empty

    async def broken():
        yield instance()[:500]
        raise NodeProtocolError("other", "broke off")

    async def part():
        yield Part("1.5", "1.2.840.10008.1.2.1", broken())

    with pytest.raises(NodeError):
        [told async for told in node.store(part())]
    assert list(directory.iterdir()) == []


async def test_a_search_of_many_instances_is_quick(empty):
    node, directory = empty
    for number in range(600):
        (directory / f"{number}").write_bytes(
            instance(study=f"1.{number // 10}", series=f"1.{number // 10}.1", uid=f"1.9.{number}")
        )
    await find(node, Level.STUDY)
    began = time.process_time()
    rows, _ = await find(node, Level.STUDY)
    assert len(rows) == 60
    assert time.process_time() - began < 1
