"""What of an instance's metadata its pixels need: one frame's own image attributes, in the DICOM JSON model (PS3.3 C.7.6)."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.model.dataset import Dataset, items, text, values, whole_number
from gateway.model.vocabulary import tag

ROWS, COLUMNS, SAMPLES = tag("Rows"), tag("Columns"), tag("SamplesPerPixel")
BITS_ALLOCATED, NUMBER_OF_FRAMES = tag("BitsAllocated"), tag("NumberOfFrames")
PIXEL_TAGS = (tag("PixelData"), tag("FloatPixelData"), tag("DoubleFloatPixelData"))
_PHOTOMETRIC = tag("PhotometricInterpretation")
_MOST_SAMPLES, _MOST_BITS = 4, 64
_WANTED = tuple(
    map(
        tag,
        (
            "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated",
            "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
            "RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
            "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape", "ICCProfile",
            "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
            "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
            "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
            "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
            "SegmentedBluePaletteColorLookupTableData",
        ),
    )
)  # fmt: skip
_GROUPS = (tag("SharedFunctionalGroupsSequence"), tag("PerFrameFunctionalGroupsSequence"))
_PER_FRAME = _GROUPS[1]
_MACROS = (tag("FrameVOILUTSequence"), tag("PixelValueTransformationSequence"))
_OPTICAL_PATHS, _ICC = tag("OpticalPathSequence"), tag("ICCProfile")
_REPRESENTATIVE = tag("RepresentativeFrameNumber")
_BURNED_IN, _SPEED = tag("BurnedInAnnotation"), tag("FrameTime")
_RATES = (tag("RecommendedDisplayFrameRate"), tag("CineRate"))


def is_image(dataset: Dataset) -> bool:
    """Whether an instance has pixels to show. A node may leave the pixel data out of its metadata: its size then tells."""
    return any(one in dataset for one in PIXEL_TAGS) or (ROWS in dataset and COLUMNS in dataset)


def is_colour(dataset: Dataset) -> bool:
    return (whole_number(dataset, SAMPLES) or 1) > 1 or text(dataset, _PHOTOMETRIC) == "PALETTE COLOR"


def frame_count(dataset: Dataset) -> int:
    return max(whole_number(dataset, NUMBER_OF_FRAMES) or 1, 1)


def representative_frame(dataset: Dataset) -> int:
    """Representative Frame Number (0028,6010), else the middle one (1-based)."""
    count = frame_count(dataset)
    named = whole_number(dataset, _REPRESENTATIVE) or 0
    return named if 1 <= named <= count else (count + 1) // 2


def pixels_of_frame(dataset: Dataset) -> int:
    """Rows times Columns; 0 where they are missing."""
    return max((whole_number(dataset, ROWS) or 0) * (whole_number(dataset, COLUMNS) or 0), 0)


def bytes_of_frame(dataset: Dataset) -> int:
    """What a frame takes when it is decoded; for one bit to a pixel as much as for eight. No more samples and bits count than
    there can be: what an instance says of itself does not decide how much is read for it."""
    samples, bits = whole_number(dataset, SAMPLES) or 1, whole_number(dataset, BITS_ALLOCATED) or 16
    return pixels_of_frame(dataset) * min(max(samples, 1), _MOST_SAMPLES) * min(max(bits, 8), _MOST_BITS) // 8


def most_bytes_of_frame(dataset: Dataset) -> int:
    """More than a frame of this size can honestly take, compressed or not."""
    return bytes_of_frame(dataset) * 2 + (1 << 20)


def most_bytes_of_frames(dataset: Dataset, count: int) -> int:
    """As for one; what stands around the samples of one frame may be large, of all together it is not."""
    return most_bytes_of_frame(dataset) + (count - 1) * (bytes_of_frame(dataset) * 2 + (16 << 10))


def may_show_identity(dataset: Dataset) -> bool:
    """Whether the pixels themselves may name the patient (PS3.3 C.7.6.1): said so, or a picture of a document or screen
    that does not say no."""
    burned_in = text(dataset, _BURNED_IN)
    if burned_in in ("YES", "NO"):
        return burned_in == "YES"
    modality = text(dataset, tag("Modality"))
    return modality in ("US", "SC", "OT", "DOC", "XC") or text(dataset, tag("ConversionType")) in ("SD", "DF", "SYN")


def milliseconds_per_frame(dataset: Dataset) -> int:
    """How long a frame of a cine is shown; 100 where the instance does not say."""
    milliseconds = _number(dataset, _SPEED)
    if milliseconds <= 0:
        rate = next((rate for rate in (_number(dataset, one) for one in _RATES) if rate > 0), 10.0)
        milliseconds = 1000 / rate
    return int(min(max(milliseconds, 20), 10_000))


def _number(dataset: Dataset, tag_: str) -> float:
    try:
        return float(text(dataset, tag_) or 0)
    except ValueError:
        return 0.0


def frame_attributes(dataset: Dataset, number: int = 1) -> Dataset:
    """The image attributes of one frame (1-based), those of its functional groups among them; values may be BulkDataURI."""
    found = {one: dataset[one] for one in _WANTED if one in dataset}
    for holder in _groups(dataset, number):
        found |= {one: attribute for one, attribute in holder.items() if one in _WANTED}
    paths = items(dataset, _OPTICAL_PATHS)
    if _ICC not in found and paths and _ICC in paths[0]:
        found[_ICC] = paths[0][_ICC]
    found |= {one: {"vr": dataset[one].get("vr", "OW")} for one in PIXEL_TAGS if one in dataset}
    return found


def _groups(dataset: Dataset, number: int) -> Iterator[Dataset]:
    for sequence in _GROUPS:
        groups = values(dataset, sequence)
        at = number - 1 if sequence == _PER_FRAME else 0
        group = groups[at] if at < len(groups) else None
        for macro in _MACROS:
            yield from items(group, macro)[:1] if isinstance(group, dict) else ()


def elsewhere(attributes: Dataset) -> Iterator[tuple[Dataset, str, str]]:
    """(the data set that holds it, its tag, its address) of every value that stands elsewhere, as long tables do."""
    for tag_, attribute in attributes.items():
        if "BulkDataURI" in attribute:
            yield attributes, tag_, str(attribute["BulkDataURI"])
        for item in items(attributes, tag_):
            yield from elsewhere(item)
