"""The audit: what it holds, what it never holds, and that nothing is lost when its sink fails."""

import asyncio
import os
import stat
import subprocess
import sys
import time

import orjson
import pytest

from gateway.errors import AuditUnavailable, SettingsError
from gateway.model.answer import Issue
from gateway.model.query import Query, Ref, parse_match
from gateway.model.vocabulary import STUDY_UID, Level, tag
from gateway.model.zoned import at_offset
from gateway.security.audit import Audit, match_hash
from gateway.security.caller import Caller
from gateway.telemetry import request_id

SECRET = b"a secret of the tests"
CALLER = Caller("dr-a", "viewer", frozenset({"system/*.rs"}), "TREAT")


def query(*keys, **options):
    matches = tuple(parse_match((tag(keyword),), raw) for keyword, raw in keys)
    return Query(Level.STUDY, matches, **options)


def lines(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def audited(path, *writes):
    """Opens an audit, lets each of `writes` begin and change a record, closes it, and gives the lines."""
    audit = Audit(path, SECRET)
    await audit.open()
    for begin, change in writes:
        record = audit.begin(*begin)
        change(record)
        audit.write(record)
    await audit.close()
    return lines(path)


async def test_a_record_says_who_what_why_of_whom_and_what_came_of_it(tmp_path):
    request_id.set("0af7651916cd43dd8448eb211c80319c")

    def change(record):
        record.outcome, record.studies, record.count = "partial", ["1.2.3", "1.2.4"], 2
        record.issues = (Issue("paris", "GW202", "node paris: DOE^JANE timed out"),)

    (line,) = await audited(tmp_path / "audit", (("search", CALLER, ["berlin", "paris"], query()), change))
    assert line.pop("time").endswith("+00:00")
    assert line.pop("seconds") >= 0
    assert line == {
        "request_id": "0af7651916cd43dd8448eb211c80319c",
        "subject": "dr-a",
        "client": "viewer",
        "purpose": "TREAT",
        "action": "search",
        "nodes": ["berlin", "paris"],
        "ref": "",
        "match": {},
        "outcome": "partial",
        "studies": ["1.2.3", "1.2.4"],
        "count": 2,
        "issues": [{"node": "paris", "code": "GW202"}],
    }


async def test_a_retrieve_names_its_uids(tmp_path):
    ref = Ref("1.2.3", "1.2.3.4")
    (line,) = await audited(tmp_path / "audit", (("retrieve", CALLER, ["berlin"], None, ref), lambda record: None))
    assert line["ref"] == "studies/1.2.3/series/1.2.3.4"
    assert line["studies"] == ["1.2.3"]


async def test_match_values_are_never_in_clear(tmp_path):
    asked = query(
        ("PatientID", "4711-0815"),
        ("PatientName", "Żółć^Łucja*"),
        ("PatientBirthDate", "19700101-19701231"),
        ("StudyInstanceUID", "1.2.840.99,1.2.840.98"),
        study="1.2.3",
    )
    path = tmp_path / "audit"
    (line,) = await audited(path, (("search", CALLER, ["berlin"], asked), lambda record: None))
    text = path.read_text()
    for secret in ("4711", "ucja", "Łucja", "19700101", "1970", "1.2.840.99", SECRET.decode()):
        assert secret not in text
    assert line["match"]["PatientID"] == match_hash(SECRET, "PatientID", "4711-0815")
    assert line["match"]["PatientBirthDate"] == match_hash(SECRET, "PatientBirthDate", "19700101-19701231")
    assert line["match"]["StudyInstanceUID"] == [
        match_hash(SECRET, "StudyInstanceUID", "1.2.840.99"),
        match_hash(SECRET, "StudyInstanceUID", "1.2.840.98"),
    ]
    assert line["studies"] == ["1.2.3"]
    assert line["ref"] == "studies/1.2.3"
    assert STUDY_UID not in line["match"]


def test_a_hash_depends_on_the_secret_the_attribute_and_the_value():
    hashes = {
        match_hash(SECRET, "PatientID", "1"),
        match_hash(b"another", "PatientID", "1"),
        match_hash(SECRET, "AccessionNumber", "1"),
        match_hash(SECRET, "PatientID", "2"),
    }
    assert len(hashes) == 4
    assert match_hash(SECRET, "PatientID", "1 ") == match_hash(SECRET, "PatientID", "1")
    assert match_hash(SECRET, "PatientName", "Mu\u0308ller") == match_hash(SECRET, "PatientName", "M\u00fcller")


async def test_the_file_is_private_and_appended_to(tmp_path):
    path = tmp_path / "audit"
    before = os.umask(0)
    try:
        await audited(path, (("search", CALLER, ["berlin"]), lambda record: None))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(await audited(path, (("search", CALLER, ["berlin"]), lambda record: None))) == 2


async def test_a_file_that_cannot_be_opened_names_the_setting(tmp_path):
    with pytest.raises(SettingsError) as caught:
        await Audit(tmp_path / "missing" / "audit", SECRET).open()
    assert caught.value.parameter == "GATEWAY_AUDIT"


async def test_thousands_of_records_are_written_in_order_by_the_time_of_closing(tmp_path):
    path = tmp_path / "audit"
    audit = Audit(path, SECRET)
    await audit.open()
    for number in range(5000):
        record = audit.begin("search", CALLER, ["berlin"])
        record.count = number
        audit.write(record)
    await audit.close()
    assert [line["count"] for line in lines(path)] == list(range(5000))


async def test_a_sink_that_fails_stops_new_requests_loses_nothing_and_recovers(tmp_path):
    path, good = tmp_path / "audit", tmp_path / "good"
    path.symlink_to("/dev/full")
    audit = Audit(path, SECRET)
    await audit.open()
    under_way = [audit.begin("search", CALLER, ["berlin"]) for _ in range(3)]
    for number, record in enumerate(under_way):
        record.count = number
        audit.write(record)
    await until(lambda: refused(audit))
    good.touch()
    path.unlink()
    path.symlink_to(good)
    await until(lambda: not refused(audit))
    audit.write(audit.begin("search", CALLER, ["berlin"]))
    await audit.close()
    assert [line["count"] for line in lines(good)] == [0, 1, 2, 0]


def refused(audit):
    try:
        audit.begin("search", CALLER, ["berlin"])
    except AuditUnavailable:
        return True
    return False


async def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


CUT_SHORT = """
import asyncio, resource, sys
from pathlib import Path
from gateway.security.audit import Audit
from gateway.security.caller import Caller

async def main():
    audit = Audit(Path(sys.argv[1]), b"secret")
    await audit.open()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), unlimited[1]))
    records = [audit.begin("search", Caller("dr-a", "viewer", frozenset(), "TREAT"), ["berlin"]) for _ in range(4)]
    for number, record in enumerate(records):
        record.count = number
        audit.write(record)
    while not audit._sink.failing:
        await asyncio.sleep(0.02)
    if "recovers" in sys.argv:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    while "recovers" in sys.argv and audit._sink.failing:
        await asyncio.sleep(0.02)
    await audit.close()

asyncio.run(main())
"""


def cut_short(path, size, *more):
    """What a process says on standard error that writes four records where its file takes no more than `size` bytes."""
    asked = [sys.executable, "-c", CUT_SHORT, str(path), str(size), *more]
    return subprocess.run(asked, check=True, capture_output=True).stderr.splitlines()


def whole_and_broken(path):
    whole, broken = [], []
    for line in path.read_bytes().splitlines():
        try:
            whole.append(orjson.loads(line)["count"])
        except orjson.JSONDecodeError:
            broken.append(line)
    return whole, broken


@pytest.mark.parametrize("size", [1, 100, 600])
async def test_a_record_that_is_cut_short_is_a_line_of_its_own_and_is_written_again(tmp_path, size):
    path = tmp_path / "audit"
    await asyncio.to_thread(cut_short, path, size, "recovers")
    whole, broken = whole_and_broken(path)
    assert whole == [0, 1, 2, 3]
    assert [line[:1] for line in broken] == [b"{"]


async def test_a_record_behind_one_that_another_process_could_not_end_is_a_line_of_its_own(tmp_path):
    path = tmp_path / "audit"
    told = await asyncio.to_thread(cut_short, path, 600)
    assert not path.read_bytes().endswith(b"\n")
    audit = Audit(path, SECRET)
    await audit.open()
    record = audit.begin("search", CALLER, ["berlin"])
    record.count = 9
    audit.write(record)
    await audit.close()
    whole, broken = whole_and_broken(path)
    assert whole[-1] == 9
    assert len(broken) == 1
    refused = [orjson.loads(line)["count"] for line in told if b"subject" in line]
    assert [*whole[:-1], *refused] == [0, 1, 2, 3]


async def test_what_the_file_refuses_to_the_end_goes_to_standard_error(tmp_path, capfd):
    path = tmp_path / "audit"
    path.symlink_to("/dev/full")
    audit = Audit(path, SECRET)
    await audit.open()
    record = audit.begin("search", CALLER, ["berlin"])
    record.studies = ["1.2.3.4.5"]
    audit.write(record)
    await audit.close()
    written = [line for line in capfd.readouterr().err.splitlines() if "1.2.3.4.5" in line]
    assert len(written) == 1
    assert orjson.loads(written[0])["action"] == "search"


async def test_what_begins_while_the_sink_fails_is_refused_though_it_was_let_in_before(tmp_path):
    path = tmp_path / "audit"
    path.symlink_to("/dev/full")
    audit = Audit(path, SECRET)
    await audit.open()
    record = audit.begin("retrieve", CALLER, ["berlin"], ref=Ref("1.2.3"))
    audit.write(audit.begin("search", CALLER, ["berlin"]))
    await until(lambda: refused(audit))
    with pytest.raises(AuditUnavailable):
        audit.begun(record)
    await audit.close()


async def test_a_sink_that_hangs_is_felt_as_refusal_not_as_a_stopped_event_loop(tmp_path):
    """A FIFO whose reader does not read: writing blocks in the audit's own thread only."""
    path = tmp_path / "audit"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    audit = Audit(path, SECRET, most_waiting=50)
    await audit.open()
    big = ["1.2." + "9" * 60] * 2000  # more than the pipe holds
    started = time.monotonic()
    served = 0
    try:
        while not refused(audit) and served < 1000:
            record = audit.begin("search", CALLER, ["berlin"])
            record.studies = big
            audit.write(record)
            served += 1
        assert 50 <= served < 1000
        assert time.monotonic() - started < 5
    finally:
        drained = asyncio.create_task(asyncio.to_thread(drain, reader, served))
        await audit.close()
        assert await drained == served


def drain(reader, expected):
    """Reads until as many lines have come, or nothing for a while."""
    seen, quiet = 0, 0
    while seen < expected and quiet < 200:
        try:
            chunk = os.read(reader, 1 << 20)
        except BlockingIOError:
            chunk = b""
        seen += chunk.count(b"\n")
        quiet = 0 if chunk else quiet + 1
        if not chunk:
            time.sleep(0.02)
    os.close(reader)
    return seen


async def test_a_rotated_file_is_followed(tmp_path):
    path = tmp_path / "audit"
    audit = Audit(path, SECRET)
    await audit.open()
    audit.write(audit.begin("search", CALLER, ["berlin"]))
    await until(lambda: path.stat().st_size > 0)
    path.rename(tmp_path / "audit.1")
    audit.write(audit.begin("retrieve", CALLER, ["berlin"]))
    await audit.close()
    assert [line["action"] for line in lines(tmp_path / "audit.1")] == ["search"]
    assert [line["action"] for line in lines(path)] == ["retrieve"]


async def test_a_record_that_outlives_the_audit_is_still_written(tmp_path):
    path = tmp_path / "audit"
    audit = Audit(path, SECRET)
    await audit.open()
    late = audit.begin("retrieve", CALLER, ["berlin"])
    await audit.close()
    audit.write(late)
    assert [line["action"] for line in lines(path)] == ["retrieve"]


async def test_standard_error_is_the_default(capfd):
    audit = Audit(None, SECRET)
    await audit.open()
    audit.write(audit.begin("search", CALLER, ["berlin"]))
    await audit.close()
    assert orjson.loads(capfd.readouterr().err)["subject"] == "dr-a"


async def test_processes_that_share_a_pipe_leave_each_others_records_whole():
    write = (
        "import sys; from gateway.security.audit import Sink\n"
        "sink = Sink(None); sink.open()\n"
        "for length in (30_000, 90, 5_000) * 40:\n"
        "    rest = memoryview(sys.argv[1].encode() * length + b'\\n' + sys.argv[1].encode() * 90 + b'\\n')\n"
        "    while rest:\n"
        "        rest = rest[sink.write(rest):]\n"
    )
    reading, writing = os.pipe()
    processes = [subprocess.Popen([sys.executable, "-c", write, letter], stderr=writing) for letter in "ab"]
    os.close(writing)
    with open(reading, "rb") as pipe:
        written = await asyncio.to_thread(pipe.read)
    assert [process.wait() for process in processes] == [0] * 2
    told = written.splitlines()
    assert {len(set(line)) for line in told} == {1}
    assert sorted(map(len, told)) == sorted([30_000, 90, 5_000] * 80 + [90] * 240)


async def test_dates_at_the_request_s_own_offset_are_recorded_as_they_were_asked_for(tmp_path):
    asked = at_offset(query(("StudyDate", "20260301"), ("StudyTime", "1000-1100"), combined_datetime=True), "+0200")
    assert asked.match_on(tag("StudyDate")).values == ("20260228", "20260302")
    (line,) = await audited(tmp_path / "audit", (("search", CALLER, [], asked), lambda record: None))
    assert line["match"] == {
        "StudyDate": match_hash(SECRET, "StudyDate", "20260301"),
        "StudyTime": match_hash(SECRET, "StudyTime", "1000-1100"),
    }
