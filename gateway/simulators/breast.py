"""The corpus's examinations of the breast, instance by instance: screening mammography and tomosynthesis."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.uid import (
    BreastTomosynthesisImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
)

from gateway.simulators import phantoms
from gateway.simulators.examinations import SAGITTAL, Setting
from gateway.simulators.iod import (
    SeriesPlan,
    code,
    frame_of_reference,
    general_image,
    instance_uid,
    item,
    pixels,
    put,
    uid,
)

_VIEWS = {"CC": code("399162004", "SCT", "cranio-caudal"), "MLO": code("399368009", "SCT", "medio-lateral oblique")}
_SIDES = {"R": code("24028007", "SCT", "Right"), "L": code("7771000", "SCT", "Left")}
_ROWS = {("R", "CC"): "P\\L", ("L", "CC"): "A\\R", ("R", "MLO"): "P\\FL", ("L", "MLO"): "A\\FR"}


def _breast() -> Dataset:
    return code("76752008", "SCT", "Breast")


def mammography(setting: Setting) -> Iterator[tuple[str, Dataset]]:
    """The four screening views, For Presentation and For Processing (PS3.3 A.26)."""
    presentation = SeriesPlan(
        "presentation", 1, "MG", DigitalMammographyXRayImageStorageForPresentation, "For Presentation", "BREAST"
    )
    processing = SeriesPlan(
        "processing", 2, "MG", DigitalMammographyXRayImageStorageForProcessing, "For Processing", "BREAST"
    )
    views = [(side, view) for view in ("CC", "MLO") for side in "RL"]
    for number, (side, view) in enumerate(views, 1):
        picture = phantoms.mammogram(view, side, setting.scale.mammogram, setting.seed + number)
        shown = _mammogram(setting, presentation, number, side, view)
        pixels(shown, picture, window=(1800, 3000), transfer_syntax=setting.transfer_syntax)
        source = instance_uid(setting.examination, "processing", number)
        put(shown, SourceImageSequence=[_source(processing, source)])
        yield "presentation", shown
        raw = _mammogram(setting, processing, number, side, view)
        pixels(raw, phantoms.for_processing(picture), window=None, transfer_syntax=setting.transfer_syntax)
        yield "processing", raw


def _source(series: SeriesPlan, sop_instance_uid: str) -> Dataset:
    purpose = code("121322", "DCM", "Source image for image processing operation")
    return item(
        ReferencedSOPClassUID=series.sop_class,
        ReferencedSOPInstanceUID=sop_instance_uid,
        SpatialLocationsPreserved="YES",
        PurposeOfReferenceCodeSequence=[purpose],
    )


def _mammogram(setting: Setting, series: SeriesPlan, number: int, side: str, view: str) -> Dataset:
    """DX Image, DX Detector and Mammography Image without the picture (PS3.3 C.8.11)."""
    made = setting.instance(series, number)
    is_raw = series.name == "processing"
    general_image(
        made, setting.examination, "ORIGINAL" if is_raw else "DERIVED", "PRIMARY", orientation=_ROWS[side, view]
    )
    put(
        made,
        PresentationIntentType="FOR PROCESSING" if is_raw else "FOR PRESENTATION",
        ImageLaterality=side,
        ViewPosition=view,
        OrganExposed="BREAST",
        AnatomicRegionSequence=[_breast()],
        ViewCodeSequence=[code(*_triple(_VIEWS[view]), ViewModifierCodeSequence=[])],
        PositionerType="MAMMOGRAPHIC",
        PixelIntensityRelationship="LIN" if is_raw else "LOG",
        PixelIntensityRelationshipSign=1 if is_raw else -1,
        RescaleIntercept=0,
        RescaleSlope=1,
        RescaleType="US",
        ImagerPixelSpacing=[0.1, 0.1],
        DetectorType="DIRECT",
        KVP=29,
        BodyPartThickness=55,
        BreastImplantPresent="NO",
        PartialView="NO",
        AcquisitionContextSequence=[],
        QualityControlImage="NO",
        PresentationLUTShape="IDENTITY",
    )
    if not is_raw:
        made.DerivationDescription = "Display processing"
    return made


def _triple(of: Dataset) -> tuple[str, str, str]:
    return of.CodeValue, of.CodingSchemeDesignator, of.CodeMeaning


def tomosynthesis(setting: Setting) -> Iterator[tuple[str, Dataset]]:
    """One multi-frame instance per side, medio-lateral oblique (PS3.3 A.74)."""
    for number, side in enumerate("RL", 1):
        series = SeriesPlan(
            f"tomo-{side}", number, "MG", BreastTomosynthesisImageStorage, f"{side}MLO tomosynthesis", "BREAST"
        )
        made = setting.instance(series, 1)
        picture = phantoms.tomosynthesis("MLO", side, setting.scale.tomosynthesis, setting.seed + number)
        _tomosynthesis_image(made, setting, side)
        # The window and the rescale stand in the shared functional groups, not at the top (PS3.3 C.7.6.16).
        pixels(made, picture, window=None, transfer_syntax=setting.transfer_syntax)
        put(
            made,
            SharedFunctionalGroupsSequence=[_shared_groups(side)],
            PerFrameFunctionalGroupsSequence=[_frame_groups(frame) for frame in range(picture.shape[0])],
        )
        yield series.name, made


def _tomosynthesis_image(made: Dataset, setting: Setting, side: str) -> None:
    frame_of_reference(made, setting.examination)
    organization = uid("dimension", setting.examination.key, side)
    put(
        made,
        ImageType=["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "NONE"],
        ContentDate=setting.examination.date,
        ContentTime=setting.examination.time,
        BurnedInAnnotation="NO",
        LossyImageCompression="00",
        ViewCodeSequence=[code(*_triple(_VIEWS["MLO"]), ViewModifierCodeSequence=[])],
        BreastImplantPresent="NO",
        PartialView="NO",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="TOMOSYNTHESIS",
        PixelPresentation="MONOCHROME",
        ContentQualification="PRODUCT",
        PresentationLUTShape="IDENTITY",
        AcquisitionContextSequence=[],
        DimensionOrganizationSequence=[item(DimensionOrganizationUID=organization)],
        DimensionIndexSequence=[_dimension(organization)],
        XRay3DAcquisitionSequence=[_acquisition()],
        XRay3DReconstructionSequence=[_reconstruction()],
        QualityControlImage="NO",
    )


def _dimension(organization: str) -> Dataset:
    return item(
        DimensionOrganizationUID=organization,
        DimensionIndexPointer=0x00209057,
        FunctionalGroupPointer=0x00209111,
        DimensionDescriptionLabel="In-Stack Position",
    )


def _acquisition() -> Dataset:
    return item(
        FieldOfViewShape="RECTANGLE",
        FieldOfViewDimensionsInFloat=[240.0, 195.0],
        FieldOfViewOrigin=[0.0, 0.0],
        FieldOfViewRotation=0.0,
        FieldOfViewHorizontalFlip="NO",
        Grid="NONE",
        KVP=31,
        ExposureTimeInms=1500.0,
        XRayTubeCurrentInmA=100.0,
        ExposureInmAs=60.0,
        AnodeTargetMaterial="TUNGSTEN",
        FilterType="FLAT",
        FilterMaterial="ALUMINUM",
        FilterThicknessMinimum=0.7,
        FilterThicknessMaximum=0.7,
        PrimaryPositionerScanArc=25.0,
        PrimaryPositionerScanStartAngle=-12.5,
        PrimaryPositionerIncrement=1.0,
        DistanceSourceToDetector=650.0,
        DistanceSourceToPatient=620.0,
        BodyPartThickness=55,
        CompressionForce=90,
        OrganDose=0.015,
        HalfValueLayer=0.5,
        EntranceDoseInmGy=4.2,
        DetectorTemperature=25,
        FocalSpots=0.3,
        EstimatedRadiographicMagnificationFactor=1.05,
        ExposureControlMode="AUTOMATIC",
        ExposureControlModeDescription="Automatic exposure",
        PaddleDescription="Flat 24x30",
        XRayReceptorType="DIGITAL_DETECTOR",
        PerProjectionAcquisitionSequence=[_projection(angle) for angle in (-12.5, 0.0, 12.5)],
    )


def _projection(angle: float) -> Dataset:
    return item(
        PositionerPrimaryAngle=angle,
        PositionerSecondaryAngle=0.0,
        ExposureTimeInms=60.0,
        XRayTubeCurrentInmA=100.0,
        RelativeXRayExposure=100,
        ExposureInmAs=6.0,
        KVP=31,
    )


def _reconstruction() -> Dataset:
    return item(
        ReconstructionDescription="Filtered backprojection",
        ApplicationName="Demo",
        ApplicationVersion="1.0",
        ApplicationManufacturer="Imaging Gateway Demo",
        AlgorithmType="FILTER_BACK_PROJ",
        AcquisitionIndex=1,
    )


def _shared_groups(side: str) -> Dataset:
    """The functional groups that all frames share (PS3.3 C.7.6.16.2)."""
    anatomy = item(FrameLaterality=side, AnatomicRegionSequence=[_breast()])
    return item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.2, 0.2], SliceThickness=1)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(SAGITTAL))],
        FrameAnatomySequence=[anatomy],
        PixelValueTransformationSequence=[item(RescaleIntercept=0, RescaleSlope=1, RescaleType="US")],
        FrameVOILUTSequence=[item(WindowCenter=1700, WindowWidth=3000)],
    )


def _frame_groups(frame: int) -> Dataset:
    content = item(
        StackID="1", InStackPositionNumber=frame + 1, DimensionIndexValues=[frame + 1], FrameAcquisitionNumber=1
    )
    frame_type = item(
        FrameType=["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "NONE"],
        PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="TOMOSYNTHESIS",
        ReconstructionIndex=1,
    )
    return item(
        XRay3DFrameTypeSequence=[frame_type],
        FrameContentSequence=[content],
        PlanePositionSequence=[item(ImagePositionPatient=[frame, -20.0, 25.0])],
    )
