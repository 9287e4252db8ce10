"""What is opened in the viewer, and what a reader has to see and must not see there."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlencode

from gateway.simulators.corpus import Corpus, HeldStudy


@dataclass(frozen=True)
class Visit:
    """One page. `study` is an accession number or a UID; `source` names the viewer's data source, '' the federation.

    `shows`: 'images' on a canvas, a 'list' of studies, or 'nothing' of a study. `refused` are the requests that the
    gateway must refuse on the way: (status, how the path begins); {study} is the study's UID.
    """

    name: str
    node: str = ""
    study: str = ""
    source: str = ""
    query: str = ""
    shows: str = "images"
    texts: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    refused: tuple[tuple[int, str], ...] = ()

    def held(self, archive: Corpus) -> HeldStudy | None:
        """The study as its node holds it."""
        if not self.study:
            return None
        studies = archive.nodes[self.node].studies
        return next(study for study in studies if self.study in (study.accession_number, study.study_uid))

    def path(self, archive: Corpus) -> str:
        held = self.held(archive)
        if held is None:
            return f"/?{quote(self.query, safe='=&')}"
        return f"/viewer/{self.source or 'gateway'}?{urlencode({'StudyInstanceUIDs': held.study_uid})}"


# OHIF looks for prior studies by the bare PatientID: with two issuers that is refused, and the study opens without priors.
_PRIORS = ((409, "/dicom-web/studies?00100020=12345&"),)
_OPENED = ((409, "/dicom-web/studies/{study}/"),)
_PEOPLE = (
    "Żółkiewska, Łucja",
    "Παπαδοπούλου, Ελένη",
    "Иванова, Екатерина",
    "Õunapuu, Külli",
    "Žižka, Šárka",
    "Peña, Íñigo",
)

VISITS = (
    Visit("study-list", shows="list", texts=(*_PEOPLE, "Προληπτική μαστογραφία", "МРТ таза: шейка матки")),
    Visit("search-by-name", query="patientName=Żółkiewska", shows="list", texts=_PEOPLE[:1], absent=_PEOPLE[1:]),
    Visit("ct-rle-by-dimse", "pl-krakow", "KR/25/0235", texts=("Kolonografia TK",)),
    Visit("ct-implicit-vr-by-dimse", "gr-athens", "ATH-2025-125", texts=("Αξονική κολονογραφία",)),
    Visit("mr-from-files", "ee-tartu", "TA25-0025", texts=("МРТ таза: шейка матки",)),
    Visit("tomosynthesis-by-dicomweb", "es-madrid", "MA-25-00217", texts=("Tomosíntesis mamaria",)),
    Visit("mammogram-by-fhir", "de-berlin", "BE25-000017", texts=("Mammographie-Screening beidseits",)),
    Visit("ct-held-by-two", "fr-lyon", "LY25-31017", texts=("Coloscanner",)),
    Visit("contours-and-images-from-two-nodes", "pl-krakow", "KR/25/0328", texts=("TK miednicy do planowania",)),
    Visit("mr-jpeg-ls", "fr-lyon", "1.3.6.1.4.1.5962.1.2.4.20040826185059.5457"),
    Visit("nm-jpeg-2000", "fr-lyon", "1.3.6.1.4.1.5962.1.2.8.20040826185059.5457"),
    Visit(
        "patient-12345-of-krakow", "pl-krakow", "KR/25/0091",
        texts=("TK brzucha",), absent=("TC de abdomen", "Peña"), refused=_PRIORS,
    ),
    Visit(
        "patient-12345-of-madrid", "es-madrid", "MA-25-00912",
        texts=("TC de abdomen",), absent=("TK brzucha", "Dąbrowski"), refused=_PRIORS,
    ),
    Visit(
        "clash-on-the-federation", "gr-athens", "ATH-2025-907",
        shows="nothing", absent=("Δημητρίου", "Ibáñez"), refused=_OPENED,
    ),
    Visit("clash-at-athens", "gr-athens", "ATH-2025-907", "gr-athens", texts=("Κλινική μελέτη: αξονική",)),
    Visit("clash-at-madrid", "es-madrid", "MA-25-00908", "es-madrid", texts=("Ensayo clínico: TC",)),
)  # fmt: skip
