"""Body parts and sides: DICOM terms beside their SNOMED CT concepts (PS3.16 Annex L), for what screening needs."""

from __future__ import annotations

# SNOMED CT concept -> Body Part Examined (0018,0015). The first concept of a term is the one that is given out.
BODY_PARTS = {
    "76752008": "BREAST",
    "71854001": "COLON",
    "34402009": "RECTUM",
    "71252005": "CERVIX",
    "35039007": "UTERUS",
    "12921003": "PELVIS",
    "816092008": "PELVIS",
    "51185008": "CHEST",
    "816094009": "CHEST",
    "43799004": "CHEST",  # thoracic cavity: not in Annex L, but in the German examples
    "818981001": "ABDOMEN",
    "113345001": "ABDOMEN",
    "818983003": "ABDOMENPELVIS",
    "416550000": "CHESTABDOMEN",
    "416775004": "CHESTABDPELVIS",
    "12738006": "BRAIN",
    "69536005": "HEAD",
    "45048000": "NECK",
    "774007": "HEADNECK",
    "72696002": "KNEE",
    "29836001": "HIP",
    "16982005": "SHOULDER",
    "70258002": "ANKLE",
    "56459004": "FOOT",
    "85562004": "HAND",
    "74670003": "WRIST",
    "122494005": "CSPINE",
    "122495006": "TSPINE",
    "122496007": "LSPINE",
    "421060004": "SPINE",
    "10200004": "LIVER",
    "41216001": "PROSTATE",
    "64033007": "KIDNEY",
    "80891009": "HEART",
    "39607008": "LUNG",
    "91470000": "AXILLA",
    "63337009": "LOWERTRUNK",
    "67734004": "UPPERTRUNK",
    "38266002": "WHOLEBODY",
}

# SNOMED CT concept -> Laterality (0020,0060).
LATERALITIES = {"7771000": "L", "24028007": "R", "51440002": "B", "66459002": "U"}


def concept_of(term: str, table: dict[str, str] = BODY_PARTS) -> str:
    """The SNOMED CT concept of a DICOM term; '' for one that is not listed."""
    return next((concept for concept, listed in table.items() if listed == term), "")
