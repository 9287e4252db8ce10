"""Metadata that is kept as the text that goes out."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.written import read, write

ROOT = 'https://gw.example/"quoted"/dicom-web'


def instance(uid, **more):
    return {
        "0020000D": {"vr": "UI", "Value": ["1.2"]},
        "0020000E": {"vr": "UI", "Value": ["1.2.3"]},
        "00080018": {"vr": "UI", "Value": [uid]},
        **more,
    }


def kept(written):
    return read(orjson.dumps(written.stored))


PIXELS = {"7FE00010": {"vr": "OW", "BulkDataURI": "http://pacs/7"}}
NESTED = {"54000100": {"vr": "SQ", "Value": [{"54001010": {"vr": "OW", "BulkDataURI": "http://pacs/5"}}, {}]}}


def test_our_addresses_stand_under_whatever_root_is_put_in_and_the_nodes_own_are_nowhere_in_the_text():
    written = kept(write([instance("1.2.3.4", **PIXELS, **NESTED)]))
    (given_,) = orjson.loads(b"[" + written.at(ROOT) + b"]")
    address = f"{ROOT}/studies/1.2/series/1.2.3/instances/1.2.3.4"
    assert given_["00081190"]["Value"] == [address]
    assert given_["7FE00010"]["BulkDataURI"] == f"{address}/bulkdata/7FE00010"
    assert given_["54000100"]["Value"][0]["54001010"]["BulkDataURI"] == f"{address}/bulkdata/54000100.1.54001010"
    assert b"pacs" not in written.text
    assert written.address("1.2.3.4", "54000100.1.54001010") == "http://pacs/5"
    assert written.address("1.2.3.4", "54000100.2.54001010") is None
    assert written.address("1.2.3.9", "7FE00010") is None


def test_attributes_without_a_value_are_left_out_and_of_a_repeated_instance_the_first_stays():
    written = write([instance("1.2.3.4", **{"00100010": {"vr": "PN"}}), instance("1.2.3.4", **PIXELS)])
    (given_,) = written.datasets()
    assert "00100010" not in given_
    assert "7FE00010" not in given_


names = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(['","texts":["', '"', "\\", '{"head":'])


@given(st.lists(names, max_size=5), st.sets(st.integers(0, 5)))
def test_what_is_kept_comes_back_whole_and_any_part_of_it_alone_whatever_the_values_hold(patients, chosen):
    made = [instance(f"1.{n}", **{"00100020": {"vr": "LO", "Value": [name]}}) for n, name in enumerate(patients)]
    written = kept(write(made))
    assert [one["00100020"]["Value"] for one in written.datasets()] == [[name] for name in patients]
    part = kept(written.only({f"1.{n}" for n in chosen}))
    assert [one["00080018"]["Value"][0] for one in part.datasets()] == [
        f"1.{n}" for n in range(len(patients)) if n in chosen
    ]
    assert len(part) == len(part.uids)


def test_the_digest_is_of_what_is_said_and_not_of_the_placeholder_that_was_drawn():
    assert write([instance("1.2.3.4")]).digest == write([instance("1.2.3.4")]).digest
    assert write([instance("1.2.3.4")]).digest != write([instance("1.2.3.5")]).digest


@pytest.mark.parametrize("encoded", [b"", b"[]", b'{"head":{},"texts":[]}', b'[{"00080018":{"vr":"UI"}}]'])
def test_what_is_no_written_metadata_is_refused(encoded):
    with pytest.raises(ValueError):
        read(encoded)
