"""What a second hospital draws on another's CT: structure set, segmentation and report that refer to its instances."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import ComprehensiveSRStorage, CTImageStorage, RTStructureSetStorage, SegmentationStorage

from gateway.simulators import phantoms
from gateway.simulators.examinations import AXIAL, Setting
from gateway.simulators.iod import (
    SeriesPlan,
    code,
    frame_of_reference,
    frame_of_reference_uid,
    instance_uid,
    item,
    put,
    series_uid,
    study_uid,
    uid,
)

_RTSTRUCT = SeriesPlan("rtstruct", 11, "RTSTRUCT", RTStructureSetStorage, "Target volumes", "PELVIS")
_SEG = SeriesPlan("seg", 12, "SEG", SegmentationStorage, "Tumour segmentation", "PELVIS")
_SR = SeriesPlan("sr", 13, "SR", ComprehensiveSRStorage, "Tumour measurement", "PELVIS")
_TUMOUR = ("86049000", "SCT", "Neoplasm, Primary")


def contours(setting: Setting) -> Iterator[tuple[str, Dataset]]:
    """RTSTRUCT, SEG and SR on the CT that `planning` makes for an examination of the same key."""
    yield "rtstruct", _structure_set(setting)
    yield "seg", _segmentation(setting)
    yield "sr", _report(setting)


def _slices(setting: Setting) -> list[int]:
    """The numbers of the CT slices that show the tumour."""
    count = setting.scale.slices // 2
    return [number for number in range(1, count + 1) if _mask(setting, number).any()]


def _mask(setting: Setting, number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    matrix = setting.scale.matrix
    return phantoms.lesion_mask(number / (setting.scale.slices // 2), (matrix, matrix))


def _reference(setting: Setting, number: int, **more: object) -> Dataset:
    uid_ = instance_uid(setting.examination, "ct", number)
    return item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=uid_, **more)


def _structure_set(setting: Setting) -> Dataset:
    """RT Structure Set (PS3.3 A.19)."""
    made = setting.instance(_RTSTRUCT, 1)
    # RT Series has no body part (PS3.3 C.8.8.1).
    del made.BodyPartExamined
    exam = setting.examination
    frame_of_reference(made, exam)
    roi = item(
        ROINumber=1,
        ReferencedFrameOfReferenceUID=frame_of_reference_uid(exam),
        ROIName="GTV",
        ROIGenerationAlgorithm="MANUAL",
    )
    observation = item(
        ObservationNumber=1,
        ReferencedROINumber=1,
        ROIObservationLabel="GTV",
        RTROIInterpretedType="GTV",
        ROIInterpreter="",
    )
    drawn = [_contour(setting, number) for number in _slices(setting)]
    put(
        made,
        StructureSetLabel="GTV",
        StructureSetDate=exam.date,
        StructureSetTime=exam.time,
        OperatorsName="",
        ApprovalStatus="UNAPPROVED",
        ReferencedFrameOfReferenceSequence=[_referenced_frame(setting)],
        StructureSetROISequence=[roi],
        ROIContourSequence=[item(ReferencedROINumber=1, ROIDisplayColor=[255, 0, 0], ContourSequence=drawn)],
        RTROIObservationsSequence=[observation],
    )
    return made


def _referenced_frame(setting: Setting) -> Dataset:
    exam = setting.examination
    images = [_reference(setting, number) for number in range(1, setting.scale.slices // 2 + 1)]
    series = item(SeriesInstanceUID=series_uid(exam, "ct"), ContourImageSequence=images)
    study = item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=study_uid(exam),
        RTReferencedSeriesSequence=[series],
    )
    return item(FrameOfReferenceUID=frame_of_reference_uid(exam), RTReferencedStudySequence=[study])


def _contour(setting: Setting, number: int) -> Dataset:
    """The outline of the tumour in one slice, in patient coordinates."""
    rows, columns = np.nonzero(_mask(setting, number))
    spacing = 400 / setting.scale.matrix
    centre = (columns.mean(), rows.mean())
    radius = ((np.ptp(columns) + 1) / 2, (np.ptp(rows) + 1) / 2)
    points: list[str] = []
    for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
        x = -200 + spacing * (centre[0] + radius[0] * np.cos(angle))
        y = -200 + spacing * (centre[1] + radius[1] * np.sin(angle))
        points += [f"{x:.2f}", f"{y:.2f}", f"{5.0 * number:.2f}"]
    return item(
        ContourImageSequence=[_reference(setting, number)],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=24,
        ContourData=points,
    )


def _segmentation(setting: Setting) -> Dataset:
    """A binary Segmentation, one frame per slice that shows the tumour (PS3.3 A.51)."""
    exam = setting.examination
    made = setting.instance(_SEG, 1)
    frame_of_reference(made, exam)
    numbers = _slices(setting)
    organization = uid("dimension", exam.key, "seg")
    put(
        made,
        ImageType=["DERIVED", "PRIMARY"],
        ContentDate=exam.date,
        ContentTime=exam.time,
        ContentLabel="TUMOUR",
        ContentDescription="",
        ContentCreatorName="",
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        Rows=setting.scale.matrix,
        Columns=setting.scale.matrix,
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        PixelRepresentation=0,
        LossyImageCompression="00",
        NumberOfFrames=len(numbers),
        SegmentationType="BINARY",
        SegmentSequence=[_segment()],
        DimensionOrganizationSequence=[item(DimensionOrganizationUID=organization)],
        DimensionIndexSequence=_dimensions(organization),
        ReferencedSeriesSequence=[_referenced_series(setting)],
        SharedFunctionalGroupsSequence=[_shared_groups(setting)],
        PerFrameFunctionalGroupsSequence=[_frame_groups(setting, n, i) for i, n in enumerate(numbers, 1)],
    )
    frames = np.stack([_mask(setting, number) for number in numbers])
    made.add_new("PixelData", "OB", pack_bits(frames))
    return made


def _segment() -> Dataset:
    return item(
        SegmentNumber=1,
        SegmentLabel="Tumour",
        SegmentAlgorithmType="MANUAL",
        SegmentedPropertyCategoryCodeSequence=[code("49755003", "SCT", "Morphologically Abnormal Structure")],
        SegmentedPropertyTypeCodeSequence=[code(*_TUMOUR)],
    )


def _dimensions(organization: str) -> list[Dataset]:
    pointers = ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113))
    return [
        item(DimensionOrganizationUID=organization, DimensionIndexPointer=index, FunctionalGroupPointer=group)
        for index, group in pointers
    ]


def _referenced_series(setting: Setting) -> Dataset:
    instances = [_reference(setting, number) for number in range(1, setting.scale.slices // 2 + 1)]
    return item(SeriesInstanceUID=series_uid(setting.examination, "ct"), ReferencedInstanceSequence=instances)


def _shared_groups(setting: Setting) -> Dataset:
    spacing = round(400 / setting.scale.matrix, 6)
    measures = item(PixelSpacing=[spacing, spacing], SliceThickness=5, SpacingBetweenSlices=5)
    return item(
        PixelMeasuresSequence=[measures],
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(AXIAL))],
        SegmentIdentificationSequence=[item(ReferencedSegmentNumber=1)],
    )


def _frame_groups(setting: Setting, number: int, index: int) -> Dataset:
    purpose = code("121322", "DCM", "Source image for image processing operation")
    source = _reference(setting, number, PurposeOfReferenceCodeSequence=[purpose], SpatialLocationsPreserved="YES")
    derivation = item(DerivationCodeSequence=[code("113076", "DCM", "Segmentation")], SourceImageSequence=[source])
    return item(
        DerivationImageSequence=[derivation],
        FrameContentSequence=[item(DimensionIndexValues=[1, index])],
        PlanePositionSequence=[item(ImagePositionPatient=[-200, -200, 5 * number])],
    )


def _report(setting: Setting) -> Dataset:
    """A Comprehensive SR with one measurement (PS3.3 A.35.3, C.17)."""
    exam = setting.examination
    made = setting.instance(_SR, 1)
    # SR Document Series has no body part (PS3.3 C.17.1).
    del made.BodyPartExamined
    evidence = item(StudyInstanceUID=study_uid(exam), ReferencedSeriesSequence=[_evidence(setting)])
    observer = "Demo^Observer"
    put(
        made,
        ReferencedPerformedProcedureStepSequence=[],
        ContentDate=exam.date,
        ContentTime=exam.time,
        CompletionFlag="COMPLETE",
        VerificationFlag="UNVERIFIED",
        PerformedProcedureCodeSequence=[],
        CurrentRequestedProcedureEvidenceSequence=[evidence],
        ValueType="CONTAINER",
        ConceptNameCodeSequence=[code("126000", "DCM", "Imaging Measurement Report")],
        ContinuityOfContent="SEPARATE",
        ContentSequence=[
            _content("HAS OBS CONTEXT", "PNAME", ("121008", "DCM", "Person Observer Name"), PersonName=observer),
            _content("CONTAINS", "TEXT", ("121071", "DCM", "Finding"), TextValue="Mass in the pelvis"),
            _measurement(setting),
        ],
    )
    return made


def _evidence(setting: Setting) -> Dataset:
    middle = _slices(setting)[len(_slices(setting)) // 2]
    return item(
        SeriesInstanceUID=series_uid(setting.examination, "ct"), ReferencedSOPSequence=[_reference(setting, middle)]
    )


def _content(relationship: str, value_type: str, name: tuple[str, str, str], **more: object) -> Dataset:
    return item(RelationshipType=relationship, ValueType=value_type, ConceptNameCodeSequence=[code(*name)], **more)


def _measurement(setting: Setting) -> Dataset:
    middle = _slices(setting)[len(_slices(setting)) // 2]
    length = np.ptp(np.nonzero(_mask(setting, middle))[1]) * 400 / setting.scale.matrix
    value = item(MeasurementUnitsCodeSequence=[code("mm", "UCUM", "mm")], NumericValue=f"{length:.1f}")
    image = item(
        RelationshipType="INFERRED FROM", ValueType="IMAGE", ReferencedSOPSequence=[_reference(setting, middle)]
    )
    name = ("103339001", "SCT", "Long axis")
    return _content("CONTAINS", "NUM", name, MeasuredValueSequence=[value], ContentSequence=[image])
