"""`ping`: asks each node what it is and what it can do, and says what to put into the node file and what to tell the PACS."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from gateway.assembly import Builder, build_node, destination_of, receiver_of
from gateway.cache.answers import Ttl
from gateway.cli import console
from gateway.errors import GatewayError, NodeError, NodeTimeout, SettingsError
from gateway.federation import nodes
from gateway.federation.nodes import Connection, NodeConfig, NodeFile
from gateway.mapping.load import load_all
from gateway.mapping.schema import Mapping as FormatMapping
from gateway.model.seam import Adapter, Probe

# A probe asks some fifteen questions, each of which may take as long as a search.
_QUESTIONS = 3


@dataclass(frozen=True, slots=True)
class Target:
    """One service to ask: a node, or the place of its pixels when that is another."""

    label: str
    adapter: str
    address: str
    deadline: float
    connected: Adapter


def run(node_file: Path, only: str, mappings: Path | None) -> None:
    """Prints what each node says in the order of the file; exits with 1 when one fails."""
    with console.refusals():
        file = nodes.read(node_file)
        targets = list(_targets(_chosen(file, only, node_file), file, load_all([mappings] if mappings else [])))
        is_well = asyncio.run(_ask_all(targets))
    if not is_well:
        raise typer.Exit(console.FOUND_WRONG)


def _chosen(file: NodeFile, only: str, path: Path) -> Sequence[NodeConfig]:
    chosen = [config for config in file.node if config.id == only] if only else file.enabled
    if not chosen:
        known = ", ".join(config.id for config in file.node) or "none"
        raise SettingsError(f"{path}: there is no node '{only}'; there are {known}" if only else f"{path}: has no node")
    return chosen


def _targets(chosen: Sequence[NodeConfig], file: NodeFile, formats: Mapping[str, FormatMapping]) -> Iterator[Target]:
    """Built as the gateway builds them, from the same file. Raises SettingsError."""
    builder = Builder(destination_of(file, receiver_of(file)))
    for config in chosen:
        node = build_node(config, builder, formats, Ttl())
        deadline = config.connect_deadline + _QUESTIONS * config.search_deadline
        yield Target(config.id, config.adapter, _address(config.connection), deadline, node.finder)
        if config.retrieve and node.retriever:
            place = _address(config.retrieve.connection)
            yield Target(f"{config.id} (pixels)", config.retrieve.adapter, place, deadline, node.retriever)


def _address(connection: Connection) -> str:
    if isinstance(connection, nodes.FilesConnection):
        return str(connection.directory)
    if isinstance(connection, nodes.DimseConnection):
        return f"{connection.called_ae_title} at {connection.host}:{connection.port}"
    return connection.url


async def _ask_all(targets: Sequence[Target]) -> bool:
    """All at once; printed in the order of the file. Whether every one answered."""
    asked = [asyncio.create_task(_ask(target)) for target in targets]
    is_well = True
    for target, task in zip(targets, asked, strict=True):
        answer = await task
        _show(target, answer)
        is_well = is_well and isinstance(answer, Probe)
    return is_well


async def _ask(target: Target) -> Probe | GatewayError:
    try:
        await target.connected.open()
        async with asyncio.timeout(target.deadline):
            return await target.connected.probe()
    except TimeoutError:
        return NodeTimeout(target.label, f"did not answer within {target.deadline:g} s")
    except GatewayError as error:
        return error
    finally:
        await target.connected.close()


def _show(target: Target, answer: Probe | GatewayError) -> None:
    screen = console.output()
    if isinstance(answer, GatewayError):
        reason = answer.reason if isinstance(answer, NodeError) else answer.detail
        screen.print(f"{target.label}  FAILED  {target.adapter}  {target.address}", markup=False, style="red")
        _line("why", f"{answer.code} {answer.title}: {reason}")
        return
    screen.print(f"{target.label}  OK  {target.adapter}  {target.address}", markup=False, style="green")
    _line("echo", f"{answer.latency * 1000:.0f} ms")
    _line("product", answer.product or "does not say")
    _line("can", " ".join(answer.capabilities) or "nothing that we use")
    _line("quirks", " ".join(answer.quirks) or "none found")
    for name, value in answer.details.items():
        _line(name.replace("_", " "), value)
    for advice in answer.advice:
        _line("do", advice)


def _line(name: str, value: str) -> None:
    if value:
        console.output().print(f"  {name:<11} {console.printable(value)}", markup=False)
