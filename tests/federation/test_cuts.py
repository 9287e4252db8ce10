"""What a cut by time, by modality or by date takes away without a word."""

import re

import pytest

from tests.catalogue import catalogue_nodes
from tests.federation.test_handmade_pages import study
from tests.handmade import dicomweb_node, given, server
from tests.running import Gateway

MOST = 60


def of_modality(number, modality):
    return study(number, **{"00080061": {"vr": "CS", "Value": [modality]} if modality else {"vr": "CS"}})


class Honest:
    """Matches as PS3.18 says, but for a key that it does not look at; gives at most MOST and says that there are more."""

    def __init__(self, studies, ignored=""):
        self.studies, self.ignored, self.asked = studies, ignored, []

    def __call__(self, method, path, query, body, port):
        flat = {name: values[0] for name, values in query.items() if name != self.ignored}
        self.asked.append(flat)
        found = [one for one in self.studies if self.fits(one, flat)]
        more = {"Warning": f'299 n "There are {len(found) - MOST} additional results that can be requested"'}
        return given(found[:MOST], {"Content-Type": "application/dicom+json", **(more if len(found) > MOST else {})})

    @staticmethod
    def fits(one, flat):
        value = lambda tag: "".join(one[tag].get("Value", [""]))  # noqa: E731
        for name, tag in (("StudyDate", "00080020"), ("StudyTime", "00080030")):
            wanted = flat.get(name)
            if wanted:
                low, dash, high = wanted.partition("-")
                if not value(tag) or not low <= value(tag) <= (high or ("99999999" if dash else low)):
                    return False
        if flat.get("ModalitiesInStudy") and value("00080061") != flat["ModalitiesInStudy"]:
            return False
        if not value("00100020").startswith(flat.get("PatientID", "").rstrip("*")):
            return False
        uids = flat.get("StudyInstanceUID")
        return not uids or value("0020000D") in re.split(r"[,\\]", uids)


def qido(studies, query="StudyDate=20240229-20240302"):
    with server(Honest(studies)) as port, Gateway([dicomweb_node("n", port)], cache=False) as gateway:
        answer = gateway.get(f"/dicom-web/studies?{query}")
        fhir = gateway.get("/fhir/ImagingStudy?started=2024-03-01&_total=accurate&_count=200")
    return {row["0020000D"]["Value"][0] for row in answer.json()}, answer.headers.get("warning", ""), fhir.json()


def test_a_day_cut_by_the_clock_does_not_hide_what_has_no_time():
    timed = [study(n, time=f"{8 + n % 10:02}{n % 60:02}00") for n in range(90)]
    found, said, fhir = qido([*timed, *(study(n) for n in range(90, 100))])
    assert len(found) == 100 or "not all is shown" in said
    assert fhir.get("total") in (None, 100)


@pytest.mark.parametrize("odd", ["CD", "XX", ""])
def test_a_day_cut_by_modality_does_not_hide_an_odd_one(odd):
    plain = [of_modality(n, ("CT", "MR")[n % 2]) for n in range(90)]
    found, said, fhir = qido([*plain, *(of_modality(n, odd) for n in range(90, 100))])
    assert len(found) == 100 or "not all is shown" in said
    assert fhir.get("total") in (None, 100)


def rows(count=3000):
    for n in range(count):
        yield {
            "StudyInstanceUID": f"1.2.4.{n}",
            "StudyDate": f"{2000 + n % 20}{1 + n // 20 % 12:02}{1 + n // 240 % 28:02}",
            "StudyTime": f"{n % 24:02}3000",
            "ModalitiesInStudy": ["CT"],
            "PatientID": f"P{n}",
            "PatientName": f"Madeup^{n}",
            "IssuerOfPatientID": "I",
            "AccessionNumber": f"A{n}",
            "NumberOfStudyRelatedSeries": 1,
            "NumberOfStudyRelatedInstances": 1,
        }


@pytest.mark.parametrize("maximum", [500, None])
@pytest.mark.parametrize(
    "query", ["StudyTime=080000-100000", "StudyTime=080000-100000&limit=20", "StudyTime=080000-&limit=20"]
)
def test_a_range_of_times_alone_stays_one_when_the_archive_is_cut_by_date(query, maximum):
    every = list(rows())
    with catalogue_nodes([every], maximum=maximum) as nodes, Gateway(nodes.tables(), cache=False) as gateway:
        answer = gateway.get(f"/dicom-web/studies?{query}")
    clocks = {row["00080030"]["Value"][0] for row in answer.json()}
    high = "100000" if "100000" in query else "999999"
    assert all("080000" <= clock <= high for clock in clocks)
    wanted = sum("080000" <= one["StudyTime"] <= high for one in every)
    assert len(answer.json()) == (20 if "limit" in query else wanted) or "not all is shown" in answer.headers.get(
        "warning", ""
    )
