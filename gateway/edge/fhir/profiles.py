"""The profiles that an ImagingStudy can be given in: base, HL7 Europe imaging, German MII; meta.profile says which it meets.

A profile changes the finished base resource. One that a study cannot meet (an order without an issuer, a body part without a
concept) is not claimed, and nothing is left out for its sake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gateway.edge.fhir.identifiers import DICOM_UID
from gateway.edge.fhir.imagingstudy import DCM, SCT, Resource
from gateway.edge.fhir.searchgrammar import NotSupported

_STUDY_UID_TYPE = {"system": DCM, "code": "110180", "display": "Study Instance UID"}
_ACCESSION_TYPE = {"system": DCM, "code": "121022", "display": "Accession Number"}
_REGION = "http://hl7.eu/fhir/StructureDefinition/anatomical-region"
# The regions of IHE MADO (CID IHE-MADO1) by Body Part Examined; what is a region itself comes first.
_REGIONS = {
    "63337009": ("Lower trunk", ("LOWERTRUNK", "ABDOMEN", "ABDOMENPELVIS", "CERVIX", "COLON", "HIP", "KIDNEY", "LIVER", "PELVIS",
                                 "PROSTATE", "RECTUM", "UTERUS")),
    "67734004": ("Upper trunk", ("UPPERTRUNK", "AXILLA", "CHEST", "LUNG", "SHOULDER")),
    "774007": ("Head and neck", ("HEADNECK", "BRAIN", "HEAD", "NECK")),
    "76752008": ("Breast", ("BREAST",)),
    "80891009": ("Heart", ("HEART",)),
    "1141981001": ("Vertebral column", ("SPINE", "CSPINE", "TSPINE", "LSPINE")),
    "53120007": ("Upper limb", ("UPPERLIMB", "HAND", "WRIST")),
    "61685007": ("Lower limb", ("LOWERLIMB", "ANKLE", "FOOT", "KNEE")),
    "38266002": ("Entire body", ("WHOLEBODY",)),
}  # fmt: skip
_REGION_OF = {term: (code, display) for code, (display, terms) in _REGIONS.items() for term in terms}


@dataclass(frozen=True, slots=True)
class Profile:
    """One profile. `change` turns a base resource into its form, in place, and says whether the resource meets it now."""

    name: str
    url: str
    versions: tuple[str, ...]
    change: Callable[[Resource, bool], bool]

    def of(self, resource: Resource, *, is_r5: bool) -> Resource:
        """The resource in this profile's form; the argument is not used again."""
        if self.change(resource, is_r5) and self.name != "base":
            meta = {"profile": [self.url], **resource.pop("meta", {})}
            head = {name: resource.pop(name) for name in ("resourceType", "id")}
            return {**head, "meta": meta, **resource}
        return resource

    def is_met_by(self, resource: Resource) -> bool:
        """Whether the resource claims it; every resource meets the base."""
        return self.name == "base" or self.url in resource.get("meta", {}).get("profile", ())


def _base(resource: Resource, is_r5: bool) -> bool:
    return True


def _european(resource: Resource, is_r5: bool) -> bool:
    """hl7.fhir.eu.imaging, ImagingStudyEuImaging: the study UID typed, the accession as the order's identifier with its issuer's
    system, the anatomical region at study level."""
    typed = {"type": {"coding": [_STUDY_UID_TYPE]}}
    resource["identifier"] = [
        {**typed, **one} if one.get("system") == DICOM_UID else one for one in resource["identifier"]
    ]
    meets = "reference" in resource["subject"]
    for order in resource.get("basedOn", ()):
        identifier = order["identifier"]
        order["identifier"] = {**identifier, "type": {"coding": [*identifier["type"]["coding"], _ACCESSION_TYPE]}}
        meets = meets and "system" in identifier
    regions = dict(filter(None, map(_REGION_OF.get, _body_parts(resource))))
    if regions:
        extensions = [
            {"url": _REGION, "valueCodeableConcept": {"coding": [{"system": SCT, "code": code, "display": display}]}}
            for code, display in regions.items()
        ]
        resource["extension"] = [*resource.get("extension", ()), *extensions]
    return meets


def _german(resource: Resource, is_r5: bool) -> bool:
    """MII KDS Bildgebung, Bildgebungsstudie: modality, body site and laterality from its value sets (required bindings)."""
    coded = (one.get(name) for one in resource.get("series", ()) for name in ("modality", "bodySite", "laterality"))
    return all("code" in each for each in coded if each is not None)


def _body_parts(resource: Resource) -> Iterator[str]:
    """The DICOM terms of the series, as the renderer kept them beside the concepts."""
    for one in resource.get("series", ()):
        site = one.get("bodySite")
        if site:
            yield site["concept"]["text"] if "concept" in site else site["display"]


BASE = Profile("base", "http://hl7.org/fhir/StructureDefinition/ImagingStudy", ("4.0", "5.0"), _base)
PROFILES = (
    BASE,
    Profile("eu", "http://hl7.eu/fhir/imaging/StructureDefinition/ImagingStudyEuImaging", ("4.0", "5.0"), _european),
    Profile(
        "mii",
        "https://www.medizininformatik-initiative.de/fhir/ext/modul-bildgebung/StructureDefinition/mii-pr-bildgebung-bildgebungsstudie",
        ("4.0",),
        _german,
    ),
)


def named(text: str, version: str) -> Profile:
    """By its name or canonical URL (a version after '|' is taken as well). Raises NotSupported for another, or where the FHIR
    version has it not."""
    wanted = text.partition("|")[0]
    for profile in PROFILES:
        if wanted in (profile.name, profile.url) and version in profile.versions:
            return profile
    offered = ", ".join(f"{one.name} ({one.url})" for one in PROFILES if version in one.versions)
    raise NotSupported(f"the profiles that ImagingStudy can be given in are {offered}", parameter="_profile")


def configured(name: str, version: str) -> Profile:
    """The gateway's own choice; the base where the FHIR version has it not."""
    return next((one for one in PROFILES if one.name == name and version in one.versions), BASE)
