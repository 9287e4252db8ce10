"""Which presentation contexts to propose for receiving instances, so that a node can send each as it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pynetdicom import AllStoragePresentationContexts
from pynetdicom.presentation import PresentationContext, build_context

_UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
# By how often archives hold them: where there is no room for all, the rarest are left out.
COMPRESSED_SYNTAXES = (
    "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203",
    "1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.103", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.107",
    "1.2.840.10008.1.2.4.108",
)  # fmt: skip
IMAGE_SYNTAXES = (*_UNCOMPRESSED, *COMPRESSED_SYNTAXES, _DEFLATED, _BIG_ENDIAN)
DOCUMENT_SYNTAXES = (*_UNCOMPRESSED, _DEFLATED, _BIG_ENDIAN)
# Classes without pixels: SR, waveforms, presentation states, RT, encapsulated documents, raw data, registrations.
_DOCUMENT_ROOTS = (
    "1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.9.", "1.2.840.10008.5.1.4.1.1.11.",
    "1.2.840.10008.5.1.4.1.1.104.", "1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.67",
    "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.481.5", "1.2.840.10008.5.1.4.1.1.481.8",
)  # fmt: skip
_SEGMENTATION_ROOT = "1.2.840.10008.5.1.4.1.1.66.4"

# What to propose to a node that does not tell which classes it is about to send.
COMMON_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.13.1.3", "1.2.840.10008.5.1.4.1.1.6.1",
    "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.12.1",
    "1.2.840.10008.5.1.4.1.1.12.2", "1.2.840.10008.5.1.4.1.1.20", "1.2.840.10008.5.1.4.1.1.128",
    "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.1", "1.2.840.10008.5.1.4.1.1.481.2",
    "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.481.5", "1.2.840.10008.5.1.4.1.1.88.22",
    "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.59", "1.2.840.10008.5.1.4.1.1.88.67",
    "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.104.1", "1.2.840.10008.5.1.4.1.1.9.1.1",
)  # fmt: skip


def syntaxes_of(sop_class_uid: str) -> tuple[str, ...]:
    """The transfer syntaxes in which instances of this class are plausibly stored, the likeliest first."""
    has_no_pixels = sop_class_uid.startswith(_DOCUMENT_ROOTS) and not sop_class_uid.startswith(_SEGMENTATION_ROOT)
    return DOCUMENT_SYNTAXES if has_no_pixels else IMAGE_SYNTAXES


def contexts_for(classes: Mapping[str, Sequence[str]], room: int) -> list[PresentationContext]:
    """One context per class and transfer syntax, `room` at most: of several in one context the node would have to
    settle for one (PS3.8 9.3.3.2), and re-encode or fail what it stored in another.

    `classes` maps each SOP class to the syntaxes that the node announced (empty where it did not).
    """
    wanted = {uid: _proposed(uid, announced) for uid, announced in list(classes.items())[:room]}
    share = max(1, room // max(1, len(wanted)))
    return [build_context(uid, syntax) for uid, syntaxes in wanted.items() for syntax in syntaxes[:share]]


def need_of(classes: Mapping[str, Sequence[str]]) -> int:
    """How many contexts `contexts_for` would like to have."""
    return sum(len(_proposed(uid, announced)) for uid, announced in classes.items())


def _proposed(sop_class_uid: str, announced: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*announced, *_UNCOMPRESSED) if announced else syntaxes_of(sop_class_uid)))


def receivable_contexts() -> list[PresentationContext]:
    """Every storage class in every syntax, for the C-MOVE receiver: the sender chooses what to propose."""
    return [build_context(str(c.abstract_syntax), list(IMAGE_SYNTAXES)) for c in AllStoragePresentationContexts]


_STORAGE = "1.2.840.10008.5.1.4.1.1"
# For nodes that do not tell the SOP class of an instance (DCMTK's dcmqrscp): what a series of a modality consists of.
_OF_MODALITY = {
    "CT": ("2", "2.1", "7"), "MR": ("4", "4.1", "4.2", "7"), "CR": ("1", "1.1", "7"), "DX": ("1.1", "1", "7"),
    "MG": ("1.2", "13.1.3", "1.2.1", "7", "1.1"), "IO": ("1.3", "1"), "RG": ("1", "1.1"), "PX": ("1.1", "1"),
    "US": ("6.1", "3.1", "6.2", "7"), "IVUS": ("3.1", "6.1"), "NM": ("20", "7"), "PT": ("128", "130", "7"),
    "XA": ("12.1", "12.1.1", "7"), "RF": ("12.2", "12.2.1", "7"), "ES": ("77.1.1", "77.1.1.1", "7"),
    "GM": ("77.1.2", "7"), "SM": ("77.1.6", "77.1.2"), "XC": ("77.1.4", "77.1.4.1", "7"),
    "OP": ("77.1.5.1", "77.1.5.2", "7"), "OPT": ("77.1.5.4", "7"),
    "SC": ("7", "7.1", "7.2", "7.3", "7.4"), "OT": ("7", "7.1", "7.2", "7.3", "7.4"),
    "SR": ("88.11", "88.22", "88.33", "88.34", "88.50", "88.65", "88.67", "88.68"), "KO": ("88.59",),
    "DOC": ("104.1", "104.2"), "PR": ("11.1", "11.2", "11.3", "11.4", "11.8"),
    "SEG": ("66.4", "66.5"), "REG": ("66.1", "66.3"),
    "RTIMAGE": ("481.1",),    "RTDOSE": ("481.2",), "RTSTRUCT": ("481.3",), "RTPLAN": ("481.5", "481.8"),
    "RTRECORD": ("481.4", "481.6", "481.9", "481.7"),
    "ECG": ("9.1.1", "9.1.2", "9.1.3"), "HD": ("9.2.1",), "EPS": ("9.3.1",), "AU": ("9.4.1", "9.4.2"), "RWV": ("67",),
}  # fmt: skip


def classes_of(modality: str) -> tuple[str, ...]:
    """The SOP classes to expect from a series of this modality; the common ones where it says nothing."""
    parts = _OF_MODALITY.get(modality)
    return tuple(f"{_STORAGE}.{part}" for part in parts) if parts else COMMON_CLASSES
