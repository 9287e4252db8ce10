"""Reading a FHIR resource (JSON) as a record: FHIRPath expressions, compiled once, with references followed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

from antlr4 import CommonTokenStream, InputStream, Token  # type: ignore[import-untyped]
from antlr4.error.ErrorListener import ErrorListener  # type: ignore[import-untyped]
from fhirpathpy import compile as compile_fhirpath
from fhirpathpy.parser.generated.FHIRPathLexer import FHIRPathLexer
from fhirpathpy.parser.generated.FHIRPathParser import FHIRPathParser

from gateway.errors import InvalidMapping, Unmappable
from gateway.model.seam import Value
from gateway.wire.fhirpath import compile_subset

Resource = dict[str, Any]
Resolve = Callable[[str], Resource | None]

_root: ContextVar[FhirRecord] = ContextVar("root")  # fhirpathpy gives its own functions no context


class FhirRecord:
    """One FHIR resource or element. `resolve` gives the resource that a reference names, or None if it cannot.

    Contained resources are found here. Paths are FHIRPath without a model: choice types in full, as in 'valueString'.
    """

    __slots__ = ("_above", "_resolve", "resource")

    def __init__(self, resource: Any, resolve: Resolve | None = None, root: FhirRecord | None = None) -> None:
        self.resource = resource
        self._resolve = resolve
        self._above = root

    @property
    def root(self) -> FhirRecord:
        """The whole resource that it is part of."""
        return self._above or self

    def value(self, path: str) -> Value | None:
        """The primitive values at a FHIRPath: one, a list of several, or None. Complex ones are left to `children`."""
        found = [item for item in self._evaluate(path) if isinstance(item, (str, int, float))]
        return cast(Value, found[0] if len(found) == 1 else found) if found else None

    def children(self, path: str) -> Iterable[FhirRecord]:
        """One record per element at a FHIRPath; a primitive is a record whose '$this' is its value."""
        return [FhirRecord(item, self._resolve, self.root) for item in self._evaluate(path)]

    def follow(self, reference: str) -> Resource | None:
        """The resource that a reference names: contained in the root, or what `resolve` gives."""
        if reference.startswith("#"):
            contained = self.root.resource.get("contained", [])
            return next((one for one in contained if one.get("id") == reference[1:]), None)
        return self._resolve(reference) if self._resolve else None

    def _evaluate(self, path: str) -> list[Any]:
        token = _root.set(self)
        try:
            return [item for item in compiled(path)(self.resource) if item is not None]
        except (Unmappable, InvalidMapping):
            raise
        except Exception:  # noqa: BLE001  # fhirpathpy raises bare Exceptions on data it did not expect
            raise Unmappable(f"a FHIR resource has an unexpected shape at '{path}'") from None
        finally:
            _root.reset(token)


@lru_cache(maxsize=2048)
def compiled(path: str) -> Callable[[Any], Iterable[Any]]:
    """The expression as a function from resource to its values. Raises InvalidMapping for what is no FHIRPath."""
    if path == "$this":
        return lambda resource: [resource]
    _check_syntax(path)
    function = compile_subset(path)
    if function is not None:
        return lambda resource: function([resource], _resolved)
    expression = compile_fhirpath(path, options={"userInvocationTable": {"resolve": {"fn": _resolved}}})
    return lambda resource: expression(resource, None)


class _Strict(ErrorListener):  # type: ignore[misc]  # antlr4 has no types
    def syntaxError(self, recognizer: Any, symbol: Any, line: int, column: int, text: str, error: Any) -> None:  # noqa: N802
        raise ValueError(column)


def _check_syntax(path: str) -> None:
    """fhirpathpy repairs what it cannot parse and goes on with another expression than the one written."""
    lexer = FHIRPathLexer(InputStream(path))
    parser = FHIRPathParser(CommonTokenStream(lexer))
    for recogniser in (lexer, parser):
        recogniser.removeErrorListeners()
        recogniser.addErrorListener(_Strict())
    try:
        parser.expression()
        is_whole = parser.getCurrentToken().type == Token.EOF
    except ValueError:
        is_whole = False
    if not is_whole:
        raise InvalidMapping(f"'{path}' is not a FHIRPath expression")


def _resolved(references: list[Any]) -> list[Resource]:
    """FHIRPath `resolve()`: over References or their texts; what cannot be resolved is left out."""
    record = _root.get()
    texts = [item.get("reference") if isinstance(item, dict) else item for item in references]
    found = [record.follow(text) for text in texts if isinstance(text, str)]
    return [resource for resource in found if resource is not None]
