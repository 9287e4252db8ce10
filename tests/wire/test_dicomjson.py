"""The DICOM JSON model equals pydicom's where pydicom can, and survives where pydicom cannot."""

import io
import json
import warnings
from pathlib import Path

import orjson
import pydicom
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from gateway.wire import foreign
from gateway.wire.dicomjson import DicomRecord, from_json, sanitize, to_json

DATA = Path(pydicom.__file__).parent / "data"
FILES = sorted(p for d in ("test_files", "charset_files") for p in (DATA / d).rglob("*") if p.is_file())
warnings.filterwarnings("ignore", module="pydicom")


def read(path, **options):
    try:
        return pydicom.dcmread(path, **options)
    except pydicom.errors.InvalidDicomError:
        return None


def raw_dataset(values, encoding="latin-1", implicit=True, little=True):
    """A data set of raw bytes, as it comes from the wire."""
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = implicit, little
    dataset = Dataset()
    for tag, (vr, value) in values.items():
        dataset.add_new(tag, vr, value)
    write_dataset(out, dataset)
    return pydicom.filereader.read_dataset(io.BytesIO(out.getvalue()), implicit, little)


def expected(attributes):
    """pydicom's JSON with its known faults taken out: padding and '' in CS, empty values at the end, (0008,0005)."""
    found = {}
    for tag, attribute in attributes.items():
        if tag == "00080005" or tag.startswith("FFFC") or tag.endswith("0000"):
            continue
        content = attribute.get("Value")
        if attribute["vr"] == "SQ":
            attribute = {"vr": "SQ", **({"Value": [expected(item) for item in content]} if content else {})}
        elif content:
            content = [(one.strip(" ") or None) if isinstance(one, str) else one for one in content]
            while content and content[-1] is None:
                content.pop()
            attribute = {"vr": attribute["vr"], **({"Value": content} if content else {})}
        found[tag] = attribute
    return found


# What pydicom leaves out of its own JSON because it cannot convert it ('1A' as IS), and its unswapped big-endian words.
PYDICOM_LACKS = {"00280008", "300C0002"}


@pytest.mark.parametrize("file", [p for p in FILES if read(p, stop_before_pixels=True)], ids=lambda p: p.name)
def test_every_file_of_pydicom_reads_as_pydicom_reads_it(file):
    untouched = read(file)
    written = to_json(untouched)
    orjson.dumps(written)
    reference = json.loads(read(file).to_json(suppress_invalid_tags=True))
    big_endian = untouched.original_encoding[1] is False
    ignored = {"00080005"} | (PYDICOM_LACKS - set(reference)) | ({"7FE00010"} if big_endian else set())
    assert {t: a for t, a in written.items() if t not in ignored} == {
        t: a for t, a in expected(reference).items() if t not in ignored
    }


def test_a_bad_number_keeps_its_text():
    dataset = pydicom.dcmread(DATA / "test_files/badVR.dcm")
    assert to_json(dataset)["00280008"] == {"vr": "IS", "Value": ["1A"]}


def test_a_value_of_the_wrong_length_is_handed_on_as_bytes():
    dataset = raw_dataset({0x00280010: ("US", 5)})
    raw = dataset.get_item(0x00280010)
    dataset[0x00280010] = raw._replace(value=b"\x05\x00\x07", length=3)
    assert to_json(dataset)["00280010"] == {"vr": "UN", "InlineBinary": "BQAH"}


def test_a_truncated_sequence_is_handed_on_as_bytes():
    item = Dataset()
    item.CodeValue = "1"
    dataset = raw_dataset({0x00081032: ("SQ", Sequence([item])), 0x00100020: ("LO", "P")})
    raw = dataset.get_item(0x00081032)
    dataset[0x00081032] = raw._replace(value=raw.value[:5])
    written = to_json(dataset)
    assert written["00081032"]["vr"] == "UN"
    assert written["00100020"] == {"vr": "LO", "Value": ["P"]}


def test_the_default_of_the_node_applies_only_without_a_character_set_and_the_answer_is_utf_8():
    silent = raw_dataset({0x00100010: ("PN", b"Wa\xb3\xeasa".decode("latin-1"))})
    assert to_json(silent, default_character_set="ISO_IR 101")["00100010"]["Value"] == [{"Alphabetic": "Wałęsa"}]
    assert to_json(silent, default_character_set="ISO_IR 101")["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert to_json(silent)["00100010"]["Value"] == [{"Alphabetic": "Wa\ufffd\ufffdsa"}]
    declared = raw_dataset({0x00080005: ("CS", "ISO_IR 100"), 0x00100010: ("PN", "Müller")})
    assert to_json(declared, default_character_set="ISO_IR 101")["00100010"]["Value"] == [{"Alphabetic": "Müller"}]


def test_an_ascii_data_set_without_a_character_set_stays_without():
    assert "00080005" not in to_json(raw_dataset({0x00100020: ("LO", "P1")}))


def test_an_item_without_a_character_set_inherits_that_of_its_data_set():
    item = Dataset()
    item.add_new(0x00080104, "LO", "Łokieć".encode("iso8859_2").decode("latin-1"))
    own = Dataset()
    own.SpecificCharacterSet = "ISO_IR 144"
    own.add_new(0x00080104, "LO", "Люк")
    dataset = raw_dataset({0x00081032: ("SQ", Sequence([item, own]))})
    meanings = [
        one["00080104"]["Value"] for one in to_json(dataset, default_character_set="ISO_IR 101")["00081032"]["Value"]
    ]
    assert meanings == [["Łokieć"], ["Люк"]]


def test_long_values_go_to_addresses_made_of_dotted_tags_and_item_numbers():
    wave = Dataset()
    wave.add_new(0x54001010, "OW", b"\0" * 2000)
    dataset = raw_dataset(
        {
            0x54000100: ("SQ", Sequence([Dataset(), wave])),
            0x00420011: ("OB", b"12"),
            0x7FE00010: ("OW", b"\0\1"),
        },
        implicit=False,
    )
    written = to_json(dataset, bulk=lambda path: f"bulk/{path}")
    assert written["54000100"]["Value"][1]["54001010"] == {"vr": "OW", "BulkDataURI": "bulk/54000100.2.54001010"}
    assert written["00420011"] == {"vr": "OB", "InlineBinary": "MTI="}
    assert written["7FE00010"] == {"vr": "OW", "BulkDataURI": "bulk/7FE00010"}


def test_what_implicit_vr_leaves_open_is_resolved():
    values = {
        0x00280103: ("US", 1),
        0x00280106: ("SS", -5),
        0x00091001: ("LO", "x"),
        0x00090010: ("LO", "nobody"),
        0x00280002: ("US", 1),
        0x7FE00010: ("OW", b"\0\1"),
    }
    written = to_json(raw_dataset(dict(sorted(values.items()))))
    assert written["00280106"] == {"vr": "SS", "Value": [-5]}
    assert written["00091001"] == {"vr": "UN", "InlineBinary": "eCA="}
    assert written["7FE00010"]["vr"] == "OW"


def test_big_endian_words_are_swapped():
    written = to_json(raw_dataset({0x00280010: ("US", 258), 0x7FE00010: ("OW", b"\0\1")}, implicit=False, little=False))
    assert written["00280010"]["Value"] == [258]
    assert written["7FE00010"]["InlineBinary"] == "AQA="


def test_numbers_that_json_lacks_are_words_and_empty_values_keep_their_place():
    dataset = raw_dataset(
        {
            0x00189309: ("FD", [float("nan"), float("inf"), 1.5]),
            0x00080008: ("CS", ["A", "", "B"]),
            0x00100030: ("DA", ""),
        },
        implicit=False,
    )
    written = to_json(dataset)
    assert written["00189309"]["Value"] == ["NaN", "Infinity", 1.5]
    assert written["00080008"]["Value"] == ["A", None, "B"]
    assert written["00100030"] == {"vr": "DA"}


@given(st.binary(max_size=120))
def test_no_bytes_make_it_raise(value):
    dataset = raw_dataset({0x00100020: ("LO", "P")})
    for tag, vr in ((0x00081032, "SQ"), (0x00100010, "PN"), (0x00280010, "US"), (0x00200013, "IS"), (0x00280009, "AT")):
        raw = dataset.get_item(0x00100020)
        dataset[tag] = raw._replace(tag=pydicom.tag.Tag(tag), VR=vr, value=value, length=len(value))
    written = to_json(dataset)
    assert orjson.loads(orjson.dumps(written)) == written


@pytest.mark.parametrize("name", ["CT_small.dcm", "test-SR.dcm", "rtplan.dcm", "chrH31.dcm", "waveform_ecg.dcm"])
def test_from_json_is_the_way_back(name):
    written = to_json(pydicom.dcmread(next(p for p in FILES if p.name == name)))
    assert to_json(from_json(written)) == written


def test_from_json_names_the_tag_of_a_bad_value_and_not_the_value():
    with pytest.raises(ValueError, match=r"^00280009 does not hold a AT$"):
        from_json({"00280009": {"vr": "AT", "Value": ["secret"]}})


RECORD = DicomRecord(
    {
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B", "Phonetic": "p"}]},
        "00201208": {"vr": "IS", "Value": [4]},
        "00080061": {"vr": "CS", "Value": ["CT", "MR"]},
        "00080050": {"vr": "SH"},
        "00101002": {
            "vr": "SQ",
            "Value": [
                {"00100020": {"vr": "LO", "Value": ["1"]}},
                {"00100020": {"vr": "LO", "Value": ["2"]}, "00100021": {"vr": "LO", "Value": ["X"]}},
            ],
        },
    }
)


def test_a_record_is_read_by_keyword_and_by_tag():
    assert RECORD.value("PatientName") == "A^B==p"
    assert RECORD.value("00201208") == 4
    assert RECORD.value("ModalitiesInStudy") == ["CT", "MR"]
    assert RECORD.value("OtherPatientIDsSequence.PatientID") == "1"
    assert RECORD.value("OtherPatientIDsSequence.IssuerOfPatientID") is None
    assert RECORD.value("AccessionNumber") is None
    assert RECORD.value("StudyDate") is None
    assert RECORD.value("OtherPatientIDsSequence") is None


def test_the_children_of_a_record_keep_together_what_belongs_together():
    found = [(c.value("PatientID"), c.value("IssuerOfPatientID")) for c in RECORD.children("00101002")]
    assert found == [("1", None), ("2", "X")]
    assert list(RECORD.children("RequestAttributesSequence")) == []


@pytest.mark.parametrize(
    ("sent", "mended"),
    [
        ({"0008103e": {"vr": "LO", "Value": ["x "]}}, {"0008103E": {"vr": "LO", "Value": ["x"]}}),
        ({"00080020": {"vr": "DA"}}, {"00080020": {"vr": "DA"}}),
        ({"00080020": None}, {"00080020": {"vr": "DA"}}),
        ({"00080020": {"vr": "DA", "Value": None}}, {"00080020": {"vr": "DA"}}),
        ({"00080020": {"vr": "DA", "Value": [""]}}, {"00080020": {"vr": "DA"}}),
        ({"00080020": {"Value": "20200101"}}, {"00080020": {"vr": "DA", "Value": ["20200101"]}}),
        ({"00100010": {"vr": "PN", "Value": ["A^B=C"]}}, {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B", "Ideographic": "C"}]}}),
        ({"00100010": {"vr": "PN", "Value": [{"Alphabetic": ""}]}}, {"00100010": {"vr": "PN"}}),
        ({"00201208": {"vr": "IS", "Value": ["4"]}}, {"00201208": {"vr": "IS", "Value": [4]}}),
        ({"00201208": {"vr": "IS", "Value": ["4a"]}}, {"00201208": {"vr": "IS", "Value": ["4a"]}}),
        ({"00100020": {"vr": "LO", "Value": [17]}}, {"00100020": {"vr": "LO", "Value": ["17"]}}),
        ({"00100020": {"vr": "IS", "Value": [17]}}, {"00100020": {"vr": "LO", "Value": ["17"]}}),
        ({"00080061": {"vr": "CS", "Value": ["CT", None, "MR", ""]}}, {"00080061": {"vr": "CS", "Value": ["CT", None, "MR"]}}),
        ({"00080005": {"vr": "CS", "Value": ["ISO_IR 100"]}}, {"00080005": {"vr": "CS", "Value": ["ISO_IR 192"]}}),
        ({"00080000": {"vr": "UL", "Value": [4]}}, {}),
        ({"00081032": {"vr": "SQ", "Value": [None, {"00080100": {"Value": ["1"]}}]}}, {"00081032": {"vr": "SQ", "Value": [{}, {"00080100": {"vr": "SH", "Value": ["1"]}}]}}),
        ({"7FE00010": {"vr": "OW", "BulkDataURI": "http://x"}}, {"7FE00010": {"vr": "OW", "BulkDataURI": "http://x"}}),
        ({"00091001": {"vr": "UN", "Value": ["x"]}}, {"00091001": {"vr": "LO", "Value": ["x"]}}),
    ],
)  # fmt: skip
def test_the_small_mistakes_of_servers_are_mended(sent, mended):
    assert sanitize(sent) == mended
    assert sanitize(sent) == mended, "what was learned from the first one"


@pytest.mark.parametrize(
    "sent",
    [
        [],
        {"00100020": []},
        {"00100020": {"vr": "SQ", "Value": []}},
        {"00100020": {"vr": "LO", "Value": [{"Alphabetic": "secret"}]}},
        {"00100020": {"vr": "LO", "Value": [["secret"]]}},
        {"00100020": {"vr": "LO", "Value": [True]}},
        {"00100010": {"vr": "PN", "Value": [{"Alphabetic": 3}]}},
        {"00081032": {"vr": "SQ", "Value": ["secret"]}},
        {"00081032": {"vr": "LO", "Value": ["secret"]}},
        {"00280010": {"vr": "US", "Value": ["secret"]}},
        {"00280009": {"vr": "AT", "Value": ["secret"]}},
        {"7FE00010": {"vr": "OW", "Value": ["secret"]}},
        {"7FE00010": {"vr": "OW", "InlineBinary": ["secret"]}},
        {"secret": {"vr": "LO"}},
    ],
)
def test_a_wrong_shape_is_refused_without_a_word_of_its_content(sent):
    with pytest.raises(ValueError) as refusal:
        sanitize(sent)
    assert "secret" not in str(refusal.value)


def test_endless_nesting_is_refused():
    nested: dict = {}
    for _ in range(2000):
        nested = {"00081032": {"vr": "SQ", "Value": [nested]}}
    with pytest.raises(ValueError, match="nested"):
        sanitize(nested)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["vr", "Value", "00100010", "00081032", "00280010", "Alphabetic"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_either_mended_once_and_for_all_or_refused(sent):
    try:
        mended = sanitize(sent)
    except ValueError:
        return
    assert sanitize(mended) == mended
    assert orjson.loads(orjson.dumps(mended)) == mended


VRS_SENT = {
    "00080005": "CS", "00080020": "DA", "00080061": "CS", "0008103E": "LO", "00081032": "SQ", "00100010": "PN",
    "00100020": "LO", "00201208": "IS", "00280010": "US", "00280009": "AT", "00091001": "UN", "7FE00010": "OW",
}  # fmt: skip
SENT = st.dictionaries(
    st.sampled_from(sorted(VRS_SENT)),
    st.tuples(
        st.none() | st.sampled_from(["vr", "Value", "BulkDataURI", "BulkDataURI alone", "InlineBinary alone"]),
        st.lists(
            st.none()
            | st.integers(-(2**70), 2**70)
            | st.floats()
            | st.sampled_from(["", " ", "x", " x", "x\0", "7", "A^B"])
            | st.fixed_dictionaries(
                {}, optional={"Alphabetic": st.sampled_from(["", "A^B", "A ", 3]), "x": st.just("y")}
            )
            | st.dictionaries(
                st.sampled_from(["00080005", "00080100", "0008010a", "00080000"]),
                st.fixed_dictionaries(
                    {"vr": st.sampled_from(["SH", "CS"]), "Value": st.lists(st.just("a"), max_size=2)}
                ),
                max_size=2,
            ),
            max_size=3,
        ),
    ),
    max_size=4,
)


def made_of(sent):
    try:
        return orjson.dumps(sanitize(sent))
    except ValueError as refusal:
        return str(refusal)


@example({"00081032": (None, [{"00080005": {"vr": "CS", "Value": ["a"]}}])})
@example({"00081032": (None, [{"0008010a": {"vr": "SH", "Value": ["a"]}}, {"00080100": {"vr": "CS", "Value": []}}])})
@example({"00201208": (None, [1, 2.5, "3"])})
@example({"7FE00010": ("BulkDataURI alone", [7]), "00091001": ("InlineBinary alone", [])})
@given(SENT)
def test_what_is_learned_of_a_node_s_rows_changes_nothing_of_what_is_made_of_them(parts):
    def row():
        made = {tag_: {"vr": VRS_SENT[tag_], "Value": list(values)} for tag_, (_, values) in parts.items()}
        for tag_, (lost, _) in parts.items():
            if lost and lost.endswith(" alone"):
                made[tag_] = {"vr": VRS_SENT[tag_], lost.split()[0]: next(iter(parts[tag_][1]), "http://x")}
            elif lost == "BulkDataURI":
                made[tag_][lost] = "http://x"
            elif lost:
                del made[tag_][lost]
        return made

    foreign._shapes.clear()
    foreign._looks.clear()
    first = made_of(row())
    sanitize({tag_: {"vr": VRS_SENT[tag_]} for tag_ in parts})
    assert made_of(row()) == first


@pytest.mark.parametrize("vr", [[], {}, 1, None, "lo", "XX"])
def test_a_vr_that_is_none_is_mended_or_refused_never_a_fault(vr: object) -> None:
    assert sanitize({"00100020": {"vr": vr, "Value": ["1"]}}) == {"00100020": {"vr": "LO", "Value": ["1"]}}
