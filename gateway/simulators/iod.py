"""The modules of PS3.3 that every generated instance is made of: patient, study, series, equipment, image."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless

from gateway.simulators.hospitals import Examination, Hospital

_NAMESPACE = uuid.UUID("6c1d1a3e-0c58-4d0e-9d8b-1f0a6b6d1f10")
_IMPLEMENTATION = "2.25.243402375927093834"


def uid(*of: object) -> UID:
    """A UID that is the same in every build (PS3.5 B.2: 2.25 and a UUID)."""
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(map(str, of))).int}")


def code(value: str, scheme: str, meaning: str, **more: Any) -> Dataset:
    """One item of a code sequence (PS3.3 8.8)."""
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning, **more)


def item(**attributes: Any) -> Dataset:
    """A data set with these attributes; a list of data sets becomes a sequence."""
    made = Dataset()
    put(made, **attributes)
    return made


def put(dataset: Dataset, **attributes: Any) -> None:
    """Sets attributes by keyword."""
    for keyword, value in attributes.items():
        is_sequence = isinstance(value, list) and all(isinstance(v, Dataset) for v in value)
        setattr(dataset, keyword, Sequence(value) if is_sequence and keyword.endswith("Sequence") else value)


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    """One series of an examination; `name` is its part of the UIDs."""

    name: str
    number: int
    modality: str
    sop_class: UID
    description: str
    body_part: str
    laterality: str = ""
    protocol: str = ""


def study_uid(examination: Examination) -> UID:
    return uid("study", examination.study_key or examination.key)


def series_uid(examination: Examination, series: str) -> UID:
    return uid("series", examination.key, series)


def instance_uid(examination: Examination, series: str, number: int) -> UID:
    return uid("instance", examination.key, series, number)


def frame_of_reference_uid(examination: Examination) -> UID:
    return uid("frame of reference", examination.key)


def instance(examination: Examination, hospital: Hospital, series: SeriesPlan, number: int) -> Dataset:
    """An instance without its picture: File Meta, SOP Common, Patient, Study, Series and Equipment."""
    made = Dataset()
    made.file_meta = _file_meta(examination, series, number)
    made.SpecificCharacterSet = examination.character_set or hospital.character_set
    put(made, SOPClassUID=series.sop_class, SOPInstanceUID=made.file_meta.MediaStorageSOPInstanceUID)
    put(made, InstanceCreationDate=examination.date, InstanceCreationTime=examination.time, InstanceNumber=number)
    if examination.timezone_offset:
        made.TimezoneOffsetFromUTC = examination.timezone_offset
    _patient(made, examination)
    _study(made, examination)
    _series(made, examination, series)
    _equipment(made, hospital, series)
    return made


def _file_meta(examination: Examination, series: SeriesPlan, number: int) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = series.sop_class
    meta.MediaStorageSOPInstanceUID = instance_uid(examination, series.name, number)
    # The picture is compressed, where it is, by `pixels`; what has none is stored plainly.
    wanted = UID(examination.transfer_syntax)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if wanted == RLELossless else wanted
    meta.ImplementationClassUID = UID(_IMPLEMENTATION)
    meta.ImplementationVersionName = "GATEWAY_DEMO"
    return meta


def _patient(made: Dataset, examination: Examination) -> None:
    person = examination.person
    put(made, PatientName=person.name, PatientID=person.id, PatientBirthDate=person.birth_date, PatientSex=person.sex)
    if person.issuer:
        made.IssuerOfPatientID = person.issuer
    if person.universal_id:
        qualifiers = item(UniversalEntityID=person.universal_id, UniversalEntityIDType="ISO")
        put(made, IssuerOfPatientIDQualifiersSequence=[qualifiers])
    if person.birth_date and examination.date:
        made.PatientAge = f"{int(examination.date[:4]) - int(person.birth_date[:4]):03d}Y"


def _study(made: Dataset, examination: Examination) -> None:
    put(
        made,
        StudyInstanceUID=study_uid(examination),
        StudyID=examination.accession[-4:],
        StudyDate=examination.date,
        StudyTime=examination.time,
        AccessionNumber=examination.accession,
        ReferringPhysicianName=examination.referring,
        StudyDescription=examination.description,
    )


def _series(made: Dataset, examination: Examination, series: SeriesPlan) -> None:
    put(
        made,
        Modality=series.modality,
        SeriesInstanceUID=series_uid(examination, series.name),
        SeriesNumber=series.number,
        SeriesDescription=series.description,
        BodyPartExamined=series.body_part,
    )
    if examination.date:
        put(made, SeriesDate=examination.date, SeriesTime=examination.time)
    if series.laterality:
        made.Laterality = series.laterality
    if series.protocol:
        made.ProtocolName = series.protocol


def _equipment(made: Dataset, hospital: Hospital, series: SeriesPlan) -> None:
    put(
        made,
        Manufacturer=hospital.manufacturer,
        ManufacturerModelName=f"Phantom {series.modality}",
        DeviceSerialNumber=f"{hospital.country}-{series.modality}-1",
        SoftwareVersions="1.0",
        InstitutionName=hospital.organisation,
        InstitutionalDepartmentName=hospital.department,
        StationName=f"{hospital.ae_title}{series.modality}1"[:16],
    )


def general_image(made: Dataset, examination: Examination, *image_type: str, orientation: str = "") -> None:
    """General Image, acquisition moment, and the remarks that a viewer looks for (PS3.3 C.7.6.1)."""
    put(made, ImageType=list(image_type), PatientOrientation=orientation.split("\\") if orientation else "")
    put(made, ContentDate=examination.date, ContentTime=examination.time, AcquisitionNumber=1)
    if examination.date:
        put(made, AcquisitionDate=examination.date, AcquisitionTime=examination.time)
    put(made, BurnedInAnnotation="NO", LossyImageCompression="00")


def frame_of_reference(made: Dataset, examination: Examination) -> None:
    put(made, FrameOfReferenceUID=frame_of_reference_uid(examination), PositionReferenceIndicator="")


def plane(
    made: Dataset, position: tuple[float, float, float], orientation: tuple[int, ...], spacing: float, thickness: float
) -> None:
    """Image Plane (PS3.3 C.7.6.2): position, pixel spacing and thickness in mm, direction cosines of row and column."""
    put(
        made,
        ImagePositionPatient=[round(coordinate, 3) for coordinate in position],
        ImageOrientationPatient=list(orientation),
        PixelSpacing=[spacing, spacing],
        SliceThickness=thickness,
        SliceLocation=round(position[2], 3),
    )


def pixels(
    made: Dataset, picture: NDArray[np.uint16], *, window: tuple[int, int] | None, transfer_syntax: str, **more: Any
) -> None:
    """Image Pixel, 12 bits stored in 16, and the VOI window (centre, width); frames first where there are several."""
    put(
        made,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        Rows=picture.shape[-2],
        Columns=picture.shape[-1],
        BitsAllocated=16,
        BitsStored=12,
        HighBit=11,
        PixelRepresentation=0,
    )
    if window:
        put(made, WindowCenter=window[0], WindowWidth=window[1])
    put(made, **more)
    if picture.ndim == 3:
        made.NumberOfFrames = picture.shape[0]
    made.add_new("PixelData", "OW", picture.astype("<u2").tobytes())
    if transfer_syntax == RLELossless:
        made.compress(RLELossless, generate_instance_uid=False)
