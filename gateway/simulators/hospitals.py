"""Who is in the corpus: the hospitals, their invented patients and the examinations planned, planted cases included.

Every identifier has its nation's shape and cannot be anyone's: month 13, day 99, or a number space reserved for tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless


@dataclass(frozen=True, slots=True)
class Hospital:
    """One node, with what its configuration needs; `patient_id_issuer` is meant where a file names no issuer."""

    id: str
    country: str
    organisation: str
    adapter: str
    character_set: str
    patient_id_issuer: str
    time_zone: str
    ae_title: str
    manufacturer: str = "Imaging Gateway Demo"
    department: str = "Radiology"


@dataclass(frozen=True, slots=True)
class Person:
    """One invented patient. An empty `issuer` leaves (0010,0021) out; `universal_id` fills (0010,0024) as well."""

    name: str
    id: str
    birth_date: str
    sex: str = "F"
    issuer: str = ""
    universal_id: str = ""


@dataclass(frozen=True, slots=True)
class Examination:
    """One study to make at one node.

    Series and instance UIDs derive from `key`, the study UID from `study_key` or else `key`.
    `also_at` gets the same bytes; `case` is the planted case that the study belongs to.
    """

    node: str
    key: str
    kind: str
    person: Person
    date: str
    time: str
    description: str
    referring: str = ""
    accession: str = ""
    timezone_offset: str = ""
    character_set: str = ""
    transfer_syntax: str = ExplicitVRLittleEndian
    study_key: str = ""
    also_at: tuple[str, ...] = ()
    case: str = ""


HOSPITALS = {
    hospital.id: hospital
    for hospital in (
        Hospital(
            "de-berlin", "DE", "Universitätsklinikum Berlin (Demo)", "fhir", "ISO_IR 100",
            "UK-BERLIN", "Europe/Berlin", "DEBERLIN",
        ),
        Hospital(
            "fr-lyon", "FR", "Hôpital de Lyon (démo)", "dimse", "ISO_IR 100",
            "CHU-LYON-IPP", "Europe/Paris", "FRLYON",
        ),
        Hospital(
            "pl-krakow", "PL", "Szpital w Krakowie (demo)", "dimse", "ISO_IR 101",
            "SU-KRAKOW", "Europe/Warsaw", "PLKRAKOW",
        ),
        Hospital(
            "gr-athens", "GR", "Νοσοκομείο Αθηνών (επίδειξη)", "dimse", "ISO_IR 126",
            "GNA-ATHENS", "Europe/Athens", "GRATHENS",
        ),
        Hospital(
            "es-madrid", "ES", "Hospital de Madrid (demostración)", "dicomweb", "ISO_IR 192",
            "HU-MADRID", "Europe/Madrid", "ESMADRID",
        ),
        Hospital(
            "ee-tartu", "EE", "Tartu haigla (demo)", "files", "ISO_IR 192",
            "TARTU-KLIINIK", "Europe/Tallinn", "EETARTU",
        ),
        Hospital(
            "it-roma", "IT", "Policlinico di Roma (dimostrazione)", "dicomweb", "ISO_IR 100",
            "POLICLINICO-ROMA", "Europe/Rome", "ITROMA",
        ),
    )
}  # fmt: skip

KVNR = "1.2.276.0.76.4.8"
INS_NIR_TEST = "1.2.250.1.213.1.4.10"
PESEL = "2.16.840.1.113883.3.4424.1.1.616"
CIP_SNS = "2.16.724.4.40"
TRIAL = "EU-SCREEN-TRIAL"

_KAETHE = Person("Müßig^Käthe", "X000000017", "19620314", issuer="KVNR", universal_id=KVNR)
_HELENE = Person("Lefèvre^Hélène", "299139900000117", "19600229", issuer="INS-NIR", universal_id=INS_NIR_TEST)
_BEGONA = Person("Muñoz^Begoña", "DEMO000000000017", "19661111", issuer="CIP-SNS", universal_id=CIP_SNS)
_KRAKOW_SPLIT = Person("Świętochowska^Małgorzata", "99990000028", "19580707", issuer="PESEL", universal_id=PESEL)

EXAMINATIONS = (
    Examination(
        "de-berlin", "berlin-mammography", "mammography", _KAETHE, "20250115", "083000",
        "Mammographie-Screening beidseits", "Gräßner^Jörg^^Dr. med.", "BE25-000017", "+0100",
    ),
    Examination(
        "de-berlin", "berlin-tomosynthesis", "tomosynthesis", _KAETHE, "20250129", "101500",
        "Tomosynthese zur Abklärung links", "Gräßner^Jörg^^Dr. med.", "BE25-000203",
    ),
    Examination(
        "de-berlin", "berlin-colonography", "colonography", Person("Jäger^Günther", "UKB-900001", "19550505", "M"),
        "20250702", "134500", "CT-Kolonographie (Darmkrebsfrüherkennung)", "Weiß^Ömer", "BE25-004711",
    ),
    Examination(
        "de-berlin", "berlin-cervix", "cervix", Person("Größler^Änne", "UKB-900002", "19790909"),
        "20241105", "091200", "MRT Becken: Zervix", "Weiß^Ömer", "BE24-009001", "+0100",
    ),
    Examination(
        "de-berlin", "unlinked", "planning", Person("Noël^Anaïs", "UKB-900003", "19681224"),
        "20250310", "154000", "CT bassin (Fremdaufnahme)", "", "BE25-001999", case="unlinked",
    ),
    Examination(
        "fr-lyon", "unlinked", "planning", Person("Noël^Anaïs", "8000000033", "19681224", issuer="CHU-LYON-IPP"),
        "20250310", "154000", "CT bassin", "Forêt^Benoît", "LY25-33001", case="unlinked",
    ),
    Examination(
        "fr-lyon", "lyon-mammography", "mammography", _HELENE, "20250612", "100500",
        "Mammographie de dépistage bilatérale", "Forêt^Benoît", "LY25-30117", "+0200",
    ),
    Examination(
        "fr-lyon", "shared", "colonography",
        Person("Garçon^François", "8000000017", "19570817", "M", issuer="CHU-LYON-IPP"),
        "20250318", "143000", "Coloscanner (dépistage colorectal)", "Hervé^Chloé", "LY25-31017", "+0100",
        also_at=("es-madrid",), case="shared-study",
    ),
    Examination(
        "fr-lyon", "lyon-cervix", "cervix", Person("Benoît^Zoé", "8000000025", "19840301"),
        "20250805", "074500", "IRM pelvienne : col utérin", "Hervé^Chloé", "LY25-35025",
    ),
    Examination(
        "fr-lyon", "lyon-unknown", "planning", Person("Inconnu^Urgence", "", ""),
        "20250714", "023100", "TDM en urgence", "", "LY25-39999", case="no-patient-id",
    ),
    Examination(
        "pl-krakow", "krakow-mammography", "mammography",
        Person("Żółkiewska^Łucja", "99990000011", "19610430", issuer="PESEL", universal_id=PESEL),
        "20250220", "112000", "Mammografia przesiewowa obustronna", "Brzęczyszczykiewicz^Grzegorz", "KR/25/0117",
        "+0100",
    ),
    Examination(
        "pl-krakow", "krakow-colonography", "colonography",
        Person("Wiśniewski^Józef", "99990000035", "19540101", "M", issuer="PESEL"),
        "20250521", "090000", "Kolonografia TK", "Nałęcz^Agnieszka", "KR/25/0235", transfer_syntax=RLELossless,
    ),
    Examination(
        "pl-krakow", "krakow-cervix", "cervix", Person("Gżegżółka^Stanisława", "K-000042", "19720217"),
        "20241218", "153000", "Rezonans miednicy: szyjka macicy", "Nałęcz^Agnieszka", "KR/24/0442",
    ),
    Examination(
        "pl-krakow", "split", "planning", _KRAKOW_SPLIT, "20250403", "120000",
        "TK miednicy do planowania", "Źdźbło^Paweł", "KR/25/0328", "+0200", case="split-study",
    ),
    Examination(
        "ee-tartu", "split", "contours", _KRAKOW_SPLIT, "20250403", "120000",
        "TK miednicy do planowania", "Źdźbło^Paweł", "KR/25/0328", "+0200", case="split-study",
    ),
    Examination(
        "pl-krakow", "krakow-12345", "planning",
        Person("Dąbrowski^Michał", "12345", "19490822", "M", issuer="SU-KRAKOW"),
        "20250128", "133000", "TK brzucha", "Źdźbło^Paweł", "KR/25/0091", case="shared-patient-id",
    ),
    Examination(
        "es-madrid", "madrid-12345", "planning", Person("Peña^Íñigo", "12345", "19880128", "M"),
        "20250130", "120000", "TC de abdomen", "Núñez^Inés", "MA-25-00912", case="shared-patient-id",
    ),
    Examination(
        "gr-athens", "athens-mammography", "mammography",
        Person("Παπαδοπούλου^Ελένη", "99136600017", "19660914", issuer="AMKA"),
        "20250909", "101000", "Προληπτική μαστογραφία", "Αλεξίου^Γεώργιος", "ATH-2025-117", "+0300",
    ),
    Examination(
        "gr-athens", "athens-colonography", "colonography",
        Person("Γεωργίου^Νικόλαος", "99135900025", "19590723", "M", issuer="AMKA"),
        "20250116", "084000", "Αξονική κολονογραφία", "Αλεξίου^Γεώργιος", "ATH-2025-125",
        transfer_syntax=ImplicitVRLittleEndian,
    ),
    Examination(
        "gr-athens", "athens-undated", "cervix", Person("Οικονόμου^Μαρία", "GNA-000301", "19810601"),
        "", "", "Μαγνητική τραχήλου", "", "ATH-0000-301", case="no-date",
    ),
    Examination(
        "gr-athens", "clash-athens", "planning", Person("Δημητρίου^Άννα", "T-0007", "19700101", issuer=TRIAL),
        "20250601", "090000", "Κλινική μελέτη: αξονική", "", "ATH-2025-907", study_key="clash", case="uid-clash",
    ),
    Examination(
        "es-madrid", "clash-madrid", "planning", Person("Ibáñez^Núria", "T-0008", "19720202", issuer=TRIAL),
        "20250602", "110000", "Ensayo clínico: TC", "", "MA-25-00908", study_key="clash", case="uid-clash",
    ),
    Examination(
        "es-madrid", "madrid-mammography", "mammography", _BEGONA, "20250226", "094500",
        "Mamografía de cribado bilateral", "Núñez^Inés", "MA-25-00117", "+0100",
    ),
    Examination(
        "es-madrid", "madrid-tomosynthesis", "tomosynthesis", _BEGONA, "20250305", "173000",
        "Tomosíntesis mamaria", "Núñez^Inés", "MA-25-00217",
    ),
    Examination(
        "es-madrid", "madrid-colonography", "colonography", Person("Güell^Martí", "HUM-000077", "19560606", "M"),
        "20250417", "123000", "Colonografía por TC", "Íñiguez^Álvaro", "MA-25-00377", character_set="ISO_IR 100",
    ),
    Examination(
        "ee-tartu", "tartu-mammography", "mammography",
        Person("Õunapuu^Külli", "49913990014", "19670623", issuer="EE-ISIKUKOOD"),
        "20250507", "110000", "Sõeluuringu mammograafia", "Kääär^Ülo", "TA25-0117", "+0300",
    ),
    Examination(
        "ee-tartu", "tartu-tomosynthesis", "tomosynthesis", Person("Žižka^Šárka", "TK-000555", "19710815"),
        "20250508", "120000", "Rinna tomosüntees", "Kääär^Ülo", "TA25-0217",
    ),
    Examination(
        "ee-tartu", "tartu-cervix", "cervix",
        Person("Иванова^Екатерина", "48013990025", "19800313", issuer="EE-ISIKUKOOD"),
        "20250211", "143000", "МРТ таза: шейка матки", "Смирнов^Олег", "TA25-0025", "+0200", character_set="ISO_IR 144",
    ),
    Examination(
        "ee-tartu", "tartu-unknown", "planning", Person("Tundmatu", "", ""),
        "20250720", "031500", "KT erakorraline", "", "TA25-9999", case="no-patient-id",
    ),
)  # fmt: skip
