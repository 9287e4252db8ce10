"""The part of FHIRPath that mappings live on, as plain functions: navigation, where, exists, empty, first, resolve, |, =.

fhirpathpy interprets the same at fifty times the cost, and is asked for everything else. Unions keep their order here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fhirpathpy.parser import parse

Resolve = Callable[[list[Any]], list[Any]]
Function = Callable[[list[Any], Resolve], list[Any]]
_Node = dict[str, Any]


class _NotHere(Exception):  # not an error: the interpreter's turn
    """The expression uses more of FHIRPath than this module has."""


def compile_subset(path: str) -> Function | None:
    """The expression as a function of a collection and of what `resolve()` does; None where it needs the interpreter.

    The syntax is to have been checked before.
    """
    try:
        return _expression(parse(path)["children"][0])  # type: ignore[no-untyped-call]
    except _NotHere:
        return None


def _expression(node: _Node) -> Function:
    compilers: dict[str, Callable[[_Node], Function]] = {
        "TermExpression": lambda node: _expression(node["children"][0]),
        "InvocationTerm": lambda node: _expression(node["children"][0]),
        "ParenthesizedTerm": lambda node: _expression(node["children"][0]),
        "InvocationExpression": _invocation,
        "MemberInvocation": _member,
        "FunctionInvocation": _function,
        "UnionExpression": _union,
        "EqualityExpression": _equality,
        "LiteralTerm": _literal,
    }
    compiler = compilers.get(node.get("type", ""))
    if compiler is None:
        raise _NotHere
    return compiler(node)


def _invocation(node: _Node) -> Function:
    on, then = map(_expression, node["children"])
    return lambda items, resolve: then(on(items, resolve), resolve)


def _member(node: _Node) -> Function:
    name = node["children"][0]["text"]
    if not (name.isidentifier() and name[0].islower()):  # a type's name, or a quoted one
        raise _NotHere

    def member(items: list[Any], resolve: Resolve) -> list[Any]:
        found = []
        for item in items:
            below = item.get(name) if isinstance(item, dict) else None
            if isinstance(below, list):
                found += below
            elif below is not None:
                found.append(below)
        return found

    return member


def _function(node: _Node) -> Function:
    name, *parameters = node["children"][0]["children"]
    parameters = parameters[0]["children"] if parameters else []
    if name["text"] == "where" and len(parameters) == 1:
        return _where(_expression(parameters[0]))
    simple: dict[str, Function] = {
        "exists": lambda items, resolve: [bool(items)],
        "empty": lambda items, resolve: [not items],
        "first": lambda items, resolve: items[:1],
        "resolve": lambda items, resolve: resolve(items),
    }
    if name["text"] not in simple or parameters:
        raise _NotHere
    return simple[name["text"]]


def _where(criterion: Function) -> Function:
    return lambda items, resolve: [item for item in items if criterion([item], resolve) == [True]]


def _union(node: _Node) -> Function:
    left, right = map(_expression, node["children"])

    def union(items: list[Any], resolve: Resolve) -> list[Any]:
        found: list[Any] = []
        for item in (*left(items, resolve), *right(items, resolve)):
            if item not in found:
                found.append(item)
        return found

    return union


def _equality(node: _Node) -> Function:
    """Two empty collections are neither equal nor not."""
    if node["terminalNodeText"] != ["="]:
        raise _NotHere
    left, right = map(_expression, node["children"])

    def equality(items: list[Any], resolve: Resolve) -> list[Any]:
        one, other = left(items, resolve), right(items, resolve)
        return [one == other] if one and other else []

    return equality


def _literal(node: _Node) -> Function:
    """Text without escapes; other literals are the interpreter's."""
    text = node["text"]
    if node["children"][0]["type"] != "StringLiteral" or "\\" in text:
        raise _NotHere
    found = [text[1:-1]]
    return lambda items, resolve: found
