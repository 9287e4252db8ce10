"""DICOM words: tags, keywords, VRs, and which attribute belongs to which level of the hierarchy (PS3.3, PS3.4 C.6, PS3.18 10.6)."""

from __future__ import annotations

from enum import StrEnum
from functools import cache

from pydicom import datadict
from pydicom._uid_dict import UID_dictionary

from gateway.errors import InvalidQuery


class Level(StrEnum):
    """Query/Retrieve Level (0008,0052)."""

    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"
    __hash__ = str.__hash__  # Enum's own is written in Python, and every row is looked up by its level

    @property
    def below(self) -> Level:
        """The next level down. Raises ValueError at IMAGE."""
        order = list(Level)
        if self is Level.IMAGE:
            raise ValueError("IMAGE is the lowest level")
        return order[order.index(self) + 1]


@cache
def tag(keyword: str) -> str:
    """'PatientID' -> '00100020'; an 8-hex tag comes back in upper case. Raises KeyError for an unknown keyword."""
    if len(keyword) == 8 and all(c in "0123456789abcdefABCDEF" for c in keyword):
        return keyword.upper()
    number = datadict.tag_for_keyword(keyword)
    if number is None:
        raise KeyError(keyword)
    return f"{number:08X}"


@cache
def keyword(tag_: str) -> str:
    """'00100020' -> 'PatientID'; '' where the dictionary has no entry."""
    return datadict.keyword_for_tag(int(tag_, 16))


@cache
def vr(tag_: str) -> str:
    """The VR of PS3.6 for an 8-hex tag; the first where it lists several; 'UN' for unknown and private tags, 'LO' for private
    creators (PS3.5 7.8.1)."""
    if is_private(tag_) and "0010" <= tag_[4:] <= "00FF":
        return "LO"
    try:
        return datadict.dictionary_VR(int(tag_, 16)).split(" or ")[0]
    except KeyError:
        return "UN"


def is_private(tag_: str) -> bool:
    """Whether the group is odd (PS3.5 7.8)."""
    return tag_[3] in "13579BDF"


def creator_tag(tag_: str) -> str:
    """The tag of the Private Creator that gives a private tag its meaning: '00091002' -> '00090010'. Its own for a creator."""
    return tag_ if tag_[4:6] == "00" else f"{tag_[:4]}00{tag_[4:6]}"


@cache
def has_several_values(tag_: str) -> bool:
    """Whether PS3.6 gives the attribute more than one value (VM 1-n, 2, ...)."""
    try:
        return datadict.dictionary_VM(int(tag_, 16)) != "1"
    except KeyError:
        return False


def path(name: str) -> tuple[str, ...]:
    """A QIDO-RS attribute ('PatientID', '00101002.00100020') as a tuple of 8-hex tags. Raises InvalidQuery (PS3.18 8.3.4.1)."""
    try:
        found = tuple(tag(step) for step in name.split("."))
    except KeyError:
        raise InvalidQuery(
            f"'{name}' is not an attribute: give a DICOM keyword or an 8-digit hexadecimal tag", parameter=name
        ) from None
    if any(step.startswith(("0000", "FFFE")) for step in found):
        raise InvalidQuery(f"'{name}' is of commands or of items, and no attribute", parameter=name)
    if any(vr(step) not in ("SQ", "UN") for step in found[:-1]):
        raise InvalidQuery(f"'{name}' leads into what is no sequence", parameter=name)
    return found


def path_name(path_: tuple[str, ...]) -> str:
    """The inverse of `path`, in keywords where there are any: 'RequestAttributesSequence.ScheduledProcedureStepID'."""
    return ".".join(keyword(t) or t for t in path_)


def _tags(*keywords: str) -> tuple[str, ...]:
    return tuple(tag(k) for k in keywords)


SPECIFIC_CHARACTER_SET = tag("SpecificCharacterSet")
STUDY_UID = tag("StudyInstanceUID")
SERIES_UID = tag("SeriesInstanceUID")
INSTANCE_UID = tag("SOPInstanceUID")
SOP_CLASS_UID = tag("SOPClassUID")
PATIENT_ID = tag("PatientID")
PATIENT_NAME = tag("PatientName")
ISSUER = tag("IssuerOfPatientID")
ISSUER_QUALIFIERS = tag("IssuerOfPatientIDQualifiersSequence")
OTHER_PATIENT_IDS = tag("OtherPatientIDsSequence")
MODALITY = tag("Modality")
MODALITIES_IN_STUDY = tag("ModalitiesInStudy")
STUDY_DATE = tag("StudyDate")
STUDY_TIME = tag("StudyTime")
TIMEZONE_OFFSET = tag("TimezoneOffsetFromUTC")
RETRIEVE_URL = tag("RetrieveURL")
RETRIEVE_AE_TITLE = tag("RetrieveAETitle")
INSTANCE_AVAILABILITY = tag("InstanceAvailability")
STUDY_SERIES_COUNT = tag("NumberOfStudyRelatedSeries")
STUDY_INSTANCE_COUNT = tag("NumberOfStudyRelatedInstances")
SERIES_INSTANCE_COUNT = tag("NumberOfSeriesRelatedInstances")
PIXEL_DATA = tag("PixelData")

UID_OF_LEVEL = {Level.STUDY: STUDY_UID, Level.SERIES: SERIES_UID, Level.IMAGE: INSTANCE_UID}

# Attributes returned without being asked for: PS3.18 Table 10.6.3-3, -4, -5.
RETURNED = {
    Level.STUDY: _tags(
        "StudyDate", "StudyTime", "AccessionNumber", "InstanceAvailability", "ModalitiesInStudy",
        "ReferringPhysicianName", "TimezoneOffsetFromUTC", "RetrieveURL", "PatientName", "PatientID", "IssuerOfPatientID",
        "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDescription",
        "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
    ),
    Level.SERIES: _tags(
        "Modality", "TimezoneOffsetFromUTC", "SeriesDescription", "RetrieveURL", "SeriesInstanceUID", "SeriesNumber",
        "NumberOfSeriesRelatedInstances", "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime",
        "RequestAttributesSequence", "BodyPartExamined", "Laterality", "SeriesDate", "SeriesTime",
    ),
    Level.IMAGE: _tags(
        "SOPClassUID", "SOPInstanceUID", "InstanceAvailability", "TimezoneOffsetFromUTC", "RetrieveURL", "InstanceNumber",
        "Rows", "Columns", "BitsAllocated", "NumberOfFrames", "AvailableTransferSyntaxUID",
    ),
}  # fmt: skip

# Of these the ones that every QIDO-RS server gives, so that an absent one has no value (types 1 and 2 of the same tables).
ALWAYS_RETURNED = frozenset(
    _tags(
        "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
        "PatientBirthDate", "PatientSex", "StudyID", "Modality", "SeriesNumber", "InstanceNumber",
    )
)  # fmt: skip

# Patient and study attributes that may be matched at the STUDY level (PS3.4 C.6.2.1, PS3.18 Table 10.6.1-5, optional keys).
STUDY_KEYS = frozenset(
    _tags(
        "StudyDate", "StudyTime", "AccessionNumber", "IssuerOfAccessionNumberSequence", "ModalitiesInStudy",
        "SOPClassesInStudy", "ReferringPhysicianName", "PatientName", "PatientID", "IssuerOfPatientID",
        "IssuerOfPatientIDQualifiersSequence", "OtherPatientIDsSequence", "PatientBirthDate", "PatientBirthTime", "PatientSex",
        "PatientAge", "PatientSize", "PatientWeight", "PatientComments", "EthnicGroup", "Occupation",
        "StudyInstanceUID", "StudyID", "StudyDescription", "TimezoneOffsetFromUTC", "ProcedureCodeSequence",
        "NameOfPhysiciansReadingStudy", "AdmittingDiagnosesDescription", "AdditionalPatientHistory", "InstanceAvailability",
        "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "NumberOfPatientRelatedStudies",
        "RetrieveURL", "RetrieveAETitle", "SpecificCharacterSet", "QueryRetrieveLevel",
    )
)  # fmt: skip
SERIES_KEYS = frozenset(
    _tags(
        "Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime",
        "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "PerformedProcedureStepDescription",
        "RequestAttributesSequence", "BodyPartExamined", "AnatomicRegionSequence", "Laterality", "ProtocolName", "Manufacturer",
        "ManufacturerModelName", "InstitutionName", "InstitutionalDepartmentName", "StationName", "PerformingPhysicianName",
        "OperatorsName", "PatientPosition", "FrameOfReferenceUID", "NumberOfSeriesRelatedInstances",
    )
)  # fmt: skip


def level_of(path_: tuple[str, ...]) -> Level:
    """The highest level at which an attribute can be known. What is neither of study nor of series belongs to the instance."""
    if path_[0] in STUDY_KEYS:
        return Level.STUDY
    return Level.SERIES if path_[0] in SERIES_KEYS else Level.IMAGE


# A study-level attribute that a node may leave out and that the rows one level down can decide instead.
DECIDED_BELOW = {
    MODALITIES_IN_STUDY: (Level.SERIES, MODALITY),
    tag("SOPClassesInStudy"): (Level.IMAGE, SOP_CLASS_UID),
}


@cache
def uid_name(uid: str) -> str:
    """The name of a UID in PS3.6 Annex A, or the UID itself."""
    entry = UID_dictionary.get(uid)
    return entry[0] if entry else uid
