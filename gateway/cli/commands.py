"""The words of the command line and their help; what each command does is in its own module, imported when it is asked for."""

from __future__ import annotations

import enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer

_THREE_STEPS = """\
One FHIR ImagingStudy and DICOMweb interface over many hospitals.

To look around first: [bold]imaging-gateway demo[/bold]

[bold]Three steps to add a hospital[/bold]

1. Write one block into [bold]nodes.toml[/bold]:

   \\[\\[node]]
   id = "pl-krakow"
   name = "Szpital w Krakowie"
   country = "PL"
   adapter = "dimse"                 # or dicomweb, fhir, files
   mapping = "dicom-latin2-pl"       # its format; left out: plain DICOM
   patient_id_issuer = "SU-KRAKOW"   # who gives out its patient numbers
   time_zone = "Europe/Warsaw"
   connection = { host = "10.0.0.7", port = 104, called_ae_title = "PACS" }

2. [bold]imaging-gateway check nodes.toml[/bold], then [bold]imaging-gateway ping pl-krakow[/bold]:
   it says what the PACS administrator enters, and what to add here.

3. [bold]imaging-gateway serve[/bold], then [bold]imaging-gateway query --node pl-krakow[/bold]
"""

app = typer.Typer(
    name="imaging-gateway",
    help=_THREE_STEPS,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    # A traceback with local variables could show patient data.
    pretty_exceptions_enable=False,
)


cache_app = typer.Typer(help="Look after the look-up cache in Redis.", no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(cache_app, name="cache")


class Protocol(enum.StrEnum):
    """What a simulated peer speaks."""

    DIMSE = "dimse"
    DICOMWEB = "dicomweb"
    FHIR = "fhir"


class FhirVersion(enum.StrEnum):
    STU3 = "STU3"
    R4 = "R4"
    R4B = "R4B"
    R5 = "R5"


class Scale(enum.StrEnum):
    DEMO = "demo"
    SMALL = "small"


NodeFileOption = Annotated[
    Path | None, typer.Option("--nodes", help="The node file.", envvar="GATEWAY_NODES", show_default="nodes.toml")
]
MappingsOption = Annotated[
    Path | None, typer.Option("--mappings", help="A directory of further mapping files.", envvar="GATEWAY_MAPPINGS")
]


def main() -> None:
    """Runs the command line."""
    app()


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        print(f"imaging-gateway {version('imaging-gateway')}")
    except PackageNotFoundError:
        print("imaging-gateway (not installed)")
    raise typer.Exit


@app.callback()
def _top(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    nodes: NodeFileOption = None,
    mappings: MappingsOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", envvar="GATEWAY_HOST")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on.", envvar="GATEWAY_PORT", min=0, max=65535)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that serve.", envvar="GATEWAY_WORKERS", min=1, max=64, show_default="1"),
    ] = None,
) -> None:
    """Serve the hospitals of a node file.

    Everything else is set by GATEWAY_* environment variables (README.md lists them). SIGTERM lets requests end first, a
    second one cuts them; SIGHUP reads the node file again.

    Example: [bold]imaging-gateway serve --nodes /etc/imaging-gateway/nodes.toml --port 8081[/bold]
    """
    from gateway.cli import serve as command

    given = {"nodes": nodes, "mappings": mappings, "host": host, "port": port, "workers": workers}
    command.run({name: value for name, value in given.items() if value is not None})


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes a free one.", min=0, max=65535)] = 8080,
    directory: Annotated[
        Path | None, typer.Option(help="Where studies, node file and logs are kept.", show_default="in ~/.cache")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", "--check", help="Ask one federated question, print it, and end.")
    ] = False,
    scale: Annotated[Scale, typer.Option(hidden=True)] = Scale.DEMO,
) -> None:
    """Start seven invented hospitals and the gateway over them.

    Germany speaks FHIR, France, Poland and Greece DIMSE, Spain DICOMweb, Estonia is a directory, Italy is down. It prints
    where things are and five commands to try; Ctrl-C stops all of it.

    Example: [bold]imaging-gateway demo --port 8081[/bold]
    """
    from gateway.cli import demo as command

    kind: Literal["demo", "small"] = "small" if scale is Scale.SMALL else "demo"
    command.run((directory or command.cache_directory()).resolve(), port, kind, once=once)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Node files and mapping files.")],
    mappings: MappingsOption = None,
) -> None:
    """Say everything that is wrong with a node file or a mapping.

    Each problem comes with its file and key; a mapping is also tried on its own examples, a node file on the mappings and
    variables that it names. Exit code 1 when there is a problem.

    Example: [bold]imaging-gateway check my-format.toml nodes.toml[/bold]
    """
    from gateway.cli import check as command

    command.run(files, mappings)


@app.command()
def ping(
    node: Annotated[str, typer.Argument(metavar="[NODE]", help="One node's id; all of them when left out.")] = "",
    nodes: NodeFileOption = None,
    mappings: MappingsOption = None,
) -> None:
    """Ask each node what it is, what it can do and how fast.

    Prints what to put into the node file and what the PACS administrator has to enter. Exit code 1 when a node fails.

    Example: [bold]imaging-gateway ping pl-krakow --nodes nodes.toml[/bold]
    """
    from gateway.cli import ping as command

    command.run(nodes or Path("nodes.toml"), node, mappings)


@app.command()
def conformance(nodes: NodeFileOption = None) -> None:
    """Print the DICOM conformance statement (PS3.2) as Markdown; with --nodes also how each node is spoken to.

    Example: [bold]imaging-gateway conformance --nodes nodes.toml > conformance.md[/bold]
    """
    from gateway.cli import conformance as command

    command.run(nodes)


@app.command()
def query(
    patient_id: Annotated[str, typer.Option(help="PatientID; with --issuer when two hospitals use it.")] = "",
    issuer: Annotated[str, typer.Option(help="IssuerOfPatientID.")] = "",
    name: Annotated[str, typer.Option(help="PatientName; * is any text, case and accents do not count.")] = "",
    modality: Annotated[str, typer.Option(help="ModalitiesInStudy, such as MG.")] = "",
    date: Annotated[str, typer.Option(help="StudyDate: 20250115, or 20250101-20250131.")] = "",
    node: Annotated[list[str] | None, typer.Option(help="Only this node; may be given again.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many studies.", min=1)] = None,
    url: Annotated[str, typer.Option(help="The gateway.", envvar="GATEWAY_URL")] = "http://127.0.0.1:8080",
    token: Annotated[
        str, typer.Option(help="Bearer token; better given as GATEWAY_TOKEN.", envvar="GATEWAY_TOKEN", show_envvar=True)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the DICOM JSON instead of a table.")] = False,
) -> None:
    """Show the studies that a running gateway finds, as a table.

    Hospitals that did not answer are named below it.

    Example: [bold]imaging-gateway query --name 'zolkiewska*' --modality MG[/bold]
    """
    from gateway.cli import query as command

    keys = {
        "PatientID": patient_id,
        "IssuerOfPatientID": issuer,
        "PatientName": name,
        "ModalitiesInStudy": modality,
        "StudyDate": date,
        "limit": str(limit or ""),
    }
    filters = [(keyword, value) for keyword, value in keys.items() if value]
    command.run(url.rstrip("/"), token, filters, node or [], as_json=as_json)


@app.command()
def simulate(
    protocol: Annotated[Protocol, typer.Argument(help="What the peer speaks.")],
    directory: Annotated[Path | None, typer.Option(help="The DICOM files that it holds.")] = None,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    ae_title: Annotated[str, typer.Option(help="AE title (dimse).")] = "SIMULATOR",
    fhir_version: Annotated[FhirVersion, typer.Option(help="FHIR version (fhir).")] = FhirVersion.R4,
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME[=VALUE]", help="A shortcoming or a fault; may be given again."),
    ] = None,
    options: Annotated[bool, typer.Option("--options", help="List what --with can say, and end.")] = False,
    until_eof: Annotated[bool, typer.Option("--until-eof", help="End when standard input ends.")] = False,
) -> None:
    """Run a small real peer over a directory of DICOM files, to test against.

    It prints where it listens. All peers: [bold]--with delay=3[/bold], [bold]--with foreign_study[/bold]; dimse: no_get,
    no_move, max_results=5, abort_after=1, black_hole=tcp; dicomweb and fhir: status_500, garbage_json, black_hole,
    bearer=TOKEN; dicomweb: truncate_after=1000, ignores_keys=PatientID.

    Example: [bold]imaging-gateway simulate dimse --directory scans --ae-title PACS --with no_get[/bold]
    """
    from gateway.cli import simulate as command

    if options:
        command.explain(protocol)
        return
    if directory is None:
        raise typer.BadParameter("name the directory of DICOM files", param_hint="--directory")
    switches = with_ or []
    command.run(protocol, directory, host, port, ae_title, fhir_version.value, switches, until_eof=until_eof)


@cache_app.command()
def purge(
    study: Annotated[str, typer.Option(help="StudyInstanceUID.", metavar="UID")] = "",
    patient: Annotated[str, typer.Option(help="A patient, who is issuer and id.", metavar="ISSUER|ID")] = "",
    node: Annotated[str, typer.Option(help="All that came from one node.", metavar="ID")] = "",
    all_: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
) -> None:
    """Drop kept answers, on every gateway that shares the Redis at GATEWAY_REDIS_URL.

    All that mentions the study or the patient goes, also what says that there is nothing of it; the next one who asks has the
    nodes asked. Exit code 1 when Redis did not answer.

    Example: [bold]imaging-gateway cache purge --patient 'SU-KRAKOW|12345'[/bold]
    """
    from gateway.cli import cache as command

    given = {"study": study, "patient": patient, "node": node, "all": "all" if all_ else ""}
    command.purge({name: value for name, value in given.items() if value})
