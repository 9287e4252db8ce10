"""The corpus's CT and MR examinations, instance by instance, and what every examination is made with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    MRImageStorage,
)

from gateway.simulators import phantoms
from gateway.simulators.hospitals import Examination, Hospital
from gateway.simulators.iod import (
    SeriesPlan,
    frame_of_reference,
    general_image,
    instance,
    pixels,
    plane,
    put,
    uid,
)

AXIAL = (1, 0, 0, 0, 1, 0)
PRONE = (-1, 0, 0, 0, -1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the pictures are and how many slices a stack has."""

    mammogram: tuple[int, int]
    tomosynthesis: tuple[int, int, int]
    slices: int
    matrix: int
    b_values: tuple[int, ...]


SCALES = {
    "demo": Scale((512, 416), (30, 256, 208), 30, 128, (0, 500, 1000)),
    "small": Scale((64, 52), (6, 48, 40), 4, 32, (0, 800)),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One examination being made; `seed` keeps every patient's picture different and every build the same."""

    examination: Examination
    hospital: Hospital
    scale: Scale

    @property
    def seed(self) -> int:
        return int(uid("seed", self.examination.study_key, self.examination.key).rsplit(".", 1)[1]) % 2**31

    @property
    def transfer_syntax(self) -> str:
        return self.examination.transfer_syntax

    def instance(self, series: SeriesPlan, number: int) -> Dataset:
        return instance(self.examination, self.hospital, series, number)


def colonography(setting: Setting) -> Iterator[tuple[str, Dataset]]:
    """CT colonography: the same abdomen supine and prone."""
    for number, position in enumerate(("supine", "prone"), 1):
        series = SeriesPlan(position, number, "CT", CTImageStorage, f"CTC {position}", "ABDOMEN", "", "CT colonography")
        for slice_ in range(1, setting.scale.slices + 1):
            yield position, _ct_slice(setting, series, slice_, prone=position == "prone")


def planning(setting: Setting) -> Iterator[tuple[str, Dataset]]:
    """A single CT of the pelvis."""
    series = SeriesPlan("ct", 1, "CT", CTImageStorage, "CT pelvis 5 mm", "PELVIS", "", "Pelvis")
    for slice_ in range(1, setting.scale.slices // 2 + 1):
        yield "ct", _ct_slice(setting, series, slice_)


def _ct_slice(setting: Setting, series: SeriesPlan, number: int, *, prone: bool = False) -> Dataset:
    """CT Image (PS3.3 C.8.2.1); the stored value is HU + 1024."""
    made = setting.instance(series, number)
    matrix, slices = setting.scale.matrix, setting.scale.slices
    spacing = 400 / matrix
    general_image(made, setting.examination, "ORIGINAL", "PRIMARY", "AXIAL")
    frame_of_reference(made, setting.examination)
    corner = 200.0 if prone else -200.0
    plane(made, (corner, corner, 5.0 * number), PRONE if prone else AXIAL, round(spacing, 6), 5)
    put(
        made,
        PatientPosition="HFP" if prone else "HFS",
        KVP=120,
        XRayTubeCurrent=60,
        ExposureTime=500,
        ConvolutionKernel="B30",
        GantryDetectorTilt=0,
        ReconstructionDiameter=400,
        SpacingBetweenSlices=5,
    )
    picture = phantoms.abdomen(number / slices, (matrix, matrix), setting.seed + number, prone=prone)
    rescale = {"RescaleIntercept": -1024, "RescaleSlope": 1, "RescaleType": "HU"}
    pixels(made, picture, window=(40, 400), transfer_syntax=setting.transfer_syntax, **rescale)
    return made


def cervix(setting: Setting) -> Iterator[tuple[str, Dataset]]:
    """MR of the cervix: T2 sagittal, T2 axial, diffusion at several b-values."""
    sagittal = SeriesPlan("t2-sag", 1, "MR", MRImageStorage, "T2 TSE sag", "PELVIS", "", "t2_tse_sag")
    axial = SeriesPlan("t2-ax", 2, "MR", MRImageStorage, "T2 TSE ax", "PELVIS", "", "t2_tse_tra")
    diffusion = SeriesPlan("dwi", 3, "MR", MRImageStorage, "DWI ax", "PELVIS", "", "ep2d_diff")
    slices = max(4, setting.scale.slices * 2 // 3)
    for number in range(1, slices + 1):
        yield "t2-sag", _mr_slice(setting, sagittal, number, number / slices)
    for number in range(1, slices + 1):
        yield "t2-ax", _mr_slice(setting, axial, number, number / slices)
    places = max(2, slices // 2)
    for turn, b_value in enumerate(setting.scale.b_values):
        for place in range(1, places + 1):
            yield "dwi", _mr_slice(setting, diffusion, turn * places + place, place / places, b_value=b_value)


def _mr_slice(setting: Setting, series: SeriesPlan, number: int, z: float, *, b_value: int | None = None) -> Dataset:
    """MR Image (PS3.3 C.8.3.1)."""
    made = setting.instance(series, number)
    matrix = setting.scale.matrix
    plane_name = "SAG" if series.name == "t2-sag" else "AX"
    kind = ("DIFFUSION", "TRACEW") if b_value is not None else ("M",)
    general_image(made, setting.examination, "DERIVED" if b_value else "ORIGINAL", "PRIMARY", *kind)
    frame_of_reference(made, setting.examination)
    offset = 90 * (z - 0.5)
    position = (offset, -120.0, 120.0) if plane_name == "SAG" else (-120.0, -120.0, offset)
    plane(made, position, SAGITTAL if plane_name == "SAG" else AXIAL, round(240 / matrix, 6), 4)
    _mr_acquisition(made, b_value)
    picture = phantoms.pelvis(plane_name, z, (matrix, matrix), setting.seed + number, b_value=b_value)
    pixels(made, picture, window=(700, 1600), transfer_syntax=setting.transfer_syntax)
    return made


def _mr_acquisition(made: Dataset, b_value: int | None) -> None:
    is_diffusion = b_value is not None
    put(
        made,
        PatientPosition="HFS",
        ScanningSequence="EP" if is_diffusion else "SE",
        SequenceVariant="SK",
        ScanOptions="FS" if is_diffusion else "",
        MRAcquisitionType="2D",
        SequenceName=f"ep_b{b_value}t" if is_diffusion else "tse2d1_19",
        RepetitionTime=5200 if is_diffusion else 4100,
        EchoTime=72 if is_diffusion else 101,
        EchoTrainLength=1 if is_diffusion else 19,
        MagneticFieldStrength=1.5,
        FlipAngle=90 if is_diffusion else 150,
        NumberOfAverages=2,
    )
    if is_diffusion:
        made.DiffusionBValue = float(b_value or 0)
