"""Which real DICOM files of the pydicom wheel lie at which node; they are copied byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import data


@dataclass(frozen=True, slots=True)
class Packaged:
    """Files below the wheel's `data` folder, by name or by pattern, all at one node; `is_large` ones not if small."""

    node: str
    pattern: str
    is_large: bool = False

    def paths(self) -> list[Path]:
        return sorted(path for path in _FOLDER.glob(self.pattern) if path.is_file())


_FOLDER = Path(data.__file__).parent
_TEST = "test_files"
_DIRECTORIES = "test_files/dicomdirtests"

# Every study is at one node only: what two nodes share is planted, not accidental.
PACKAGED = (
    Packaged("de-berlin", f"{_TEST}/CT_small.dcm"),
    Packaged("de-berlin", f"{_TEST}/SC_rgb_jpeg_gdcm.dcm"),
    Packaged("de-berlin", f"{_TEST}/SC_rgb_jpeg_dcmtk.dcm"),
    Packaged("de-berlin", f"{_TEST}/SC_rgb_small_odd.dcm"),
    Packaged("de-berlin", "charset_files/chrGerm.dcm"),
    Packaged("de-berlin", f"{_TEST}/waveform_ecg.dcm", is_large=True),
    Packaged("de-berlin", f"{_TEST}/examples_palette.dcm", is_large=True),
    Packaged("fr-lyon", f"{_TEST}/MR_small_jpeg_ls_lossless.dcm"),
    Packaged("fr-lyon", f"{_TEST}/693_J2KI.dcm"),
    Packaged("fr-lyon", f"{_TEST}/JPEG2000.dcm"),
    Packaged("fr-lyon", f"{_TEST}/JPGExtended.dcm"),
    Packaged("fr-lyon", "charset_files/chrFren.dcm"),
    Packaged("fr-lyon", f"{_DIRECTORIES}/77654033/C*/*"),
    Packaged("fr-lyon", f"{_TEST}/examples_ybr_color.dcm", is_large=True),
    Packaged("fr-lyon", f"{_TEST}/examples_rgb_color.dcm", is_large=True),
    Packaged("fr-lyon", f"{_TEST}/examples_jpeg2k.dcm", is_large=True),
    Packaged("pl-krakow", f"{_TEST}/rtplan.dcm"),
    Packaged("pl-krakow", f"{_TEST}/rtdose_rle.dcm"),
    Packaged("pl-krakow", f"{_DIRECTORIES}/98892001/CT*/*"),
    Packaged("pl-krakow", f"{_DIRECTORIES}/TINY_ALPHA/**/IM00000[0-9]"),
    Packaged("gr-athens", f"{_TEST}/liver_expb_1frame.dcm"),
    Packaged("gr-athens", f"{_TEST}/test-SR.dcm"),
    Packaged("gr-athens", f"{_TEST}/SC_rgb_jpeg_dcmd.dcm", is_large=True),
    Packaged("gr-athens", "charset_files/chrGreek.dcm"),
    Packaged("es-madrid", f"{_DIRECTORIES}/98892003/MR*/*"),
    Packaged("es-madrid", f"{_TEST}/reportsi.dcm"),
    Packaged("es-madrid", "charset_files/chrX1.dcm"),
    Packaged("es-madrid", f"{_TEST}/J2K_pixelrep_mismatch.dcm", is_large=True),
    Packaged("es-madrid", f"{_TEST}/examples_overlay.dcm", is_large=True),
    Packaged("ee-tartu", f"{_TEST}/image_dfl.dcm"),
    Packaged("ee-tartu", f"{_TEST}/ExplVR_BigEnd.dcm"),
    Packaged("ee-tartu", f"{_TEST}/SC_jpeg_no_color_transform.dcm"),
    Packaged("ee-tartu", f"{_TEST}/GDCMJ2K_TextGBR.dcm"),
    Packaged("ee-tartu", "charset_files/chrRuss.dcm"),
    Packaged("ee-tartu", "charset_files/chrH31.dcm"),
    Packaged("ee-tartu", "charset_files/chrI2.dcm"),
)


def copies(*, small: bool) -> Iterator[tuple[str, str, Path]]:
    """(node, file name to give, source). Raises FileNotFoundError when this pydicom lacks a file of the list."""
    for packaged in PACKAGED:
        paths = packaged.paths()
        if not paths:
            raise FileNotFoundError(f"pydicom's wheel has no {packaged.pattern}")
        if small and packaged.is_large:
            continue
        for path in paths:
            yield packaged.node, _name(path), path


def _name(source: Path) -> str:
    steps = source.relative_to(_FOLDER).with_suffix("").parts[1:]
    return "pydicom-" + "-".join(step for step in steps if step != "dicomdirtests") + ".dcm"
