"""The extensions of the German MII imaging profile (Kerndatensatz, Modul Bildgebung), filled from DICOM attributes."""

from __future__ import annotations

from gateway.simulators._directory import Instance, Json, Series, first_text, texts
from gateway.simulators._facts import Facts

MII = "https://www.medizininformatik-initiative.de/fhir/ext/modul-bildgebung/StructureDefinition/mii-"
MII_IMAGE_TYPE = MII.replace("StructureDefinition", "CodeSystem") + "cs-bildgebung-instance-image-type"
X_RAY = {
    "KVP": ("00180060", "kilovolt"),
    "exposure": ("00181152", "milliampere second"),
    "exposureTime": ("00181150", "milliseconds"),
    "xRayTubeCurrent": ("00181151", "milliampere"),
}
MII_SERIES: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "CT": ("ct", X_RAY | {"CTDIvol": ("00189345", "milligray")}),
    "MR": (
        "mr",
        {
            "magneticFieldStrength": ("00180087", "tesla"),
            "echoTime": ("00180081", "milliseconds"),
            "repetitionTime": ("00180080", "milliseconds"),
            "inversionTime": ("00180082", "milliseconds"),
            "flipAngle": ("00181314", "plane angle degree"),
        },
    ),
    **dict.fromkeys(("MG", "CR", "DX"), ("mg-cr-dx", X_RAY)),
}


def reason_extension(facts: Facts) -> list[Json] | None:
    study = facts.study
    reason = study.text("00401002") or study.text("00081080")
    return [{"url": MII + "ex-bildgebung-bildgebungsgrund", "valueString": reason}] if reason else None


def series_extension(series: Series) -> list[Json]:
    name, quantities = MII_SERIES.get(series.text("00080060"), ("", {}))
    found = _quantities(series.attributes, quantities)
    contrast = {"url": "contrastBolus", "valueBoolean": bool(series.text("00180010"))}
    technique = [{"extension": found, "url": f"{MII}ex-bildgebung-modalitaet-{name}"}] if found else []
    return [*technique, {"extension": [contrast], "url": MII + "ex-bildgebung-kontrastmittel"}]


def instance_extension(instance: Instance) -> list[Json] | None:
    spacing, attributes = texts(instance.attributes, "00280030"), instance.attributes
    found = [
        _quantity(f"pixelSpacing{axis}", value, "millimeter") for axis, value in zip("XY", spacing[::-1], strict=False)
    ]
    found += _quantities(attributes, {"sliceThickness": ("00180050", "millimeter")})
    kinds = [{"code": kind, "system": MII_IMAGE_TYPE} for kind in texts(attributes, "00080008")]
    if kinds:
        found.append({"url": "imageType", "valueCodeableConcept": {"coding": kinds}})
    return [{"extension": found, "url": MII + "ex-bildgebung-instanz-details"}] if found else None


def _quantities(attributes: Json, wanted: dict[str, tuple[str, str]]) -> list[Json]:
    held = ((url, first_text(attributes, tag), unit) for url, (tag, unit) in wanted.items())
    return [_quantity(url, value, unit) for url, value, unit in held if value]


def _quantity(url: str, value: str, unit: str) -> Json:
    return {"valueQuantity": {"unit": unit, "value": float(value)}, "url": url}
