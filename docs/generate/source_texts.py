"""Texts in the source without running it: what an expression says, with ``…`` in place of its values."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

VALUE = "…"
"""Shown in place of a value that is known only when the program runs."""
_DEPTH = 8
"""Names that are followed at most, so that ``rule = f"{rule}, ..."`` ends."""


@dataclass(frozen=True)
class Module:
    """A module of the package with the parents of its nodes.

    Attributes:
        name: Its dotted name, such as ``toolkit.data.cells``.
        tree: Its syntax tree.
    """

    name: str
    tree: ast.Module

    @cached_property
    def parents(self) -> Mapping[ast.AST, ast.AST]:
        """Return node -> the node that contains it."""
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    @cached_property
    def imports(self) -> Mapping[str, str]:
        """Return name -> the module of the package that it is imported from."""
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, ast.ImportFrom))
        return {alias.asname or alias.name: node.module or "" for node in nodes for alias in node.names}

    def function(self, node: ast.AST) -> ast.AST:
        """Return the innermost function around a node, otherwise the module."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                return node
        return self.tree


class Source:
    """All modules of a package, by name."""

    def __init__(self, package: Path) -> None:
        self.modules: dict[str, Module] = {}
        for file in sorted(package.rglob("*.py")):
            parts = file.relative_to(package.parent).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            self.modules[name] = Module(name, ast.parse(file.read_text(encoding="utf-8")))

    def text(self, node: ast.AST | None, module: Module, depth: int = _DEPTH) -> str:
        """Return the text of an expression. Alternatives are separated by `` / ``. Empty if it has no words."""
        found = self._text(node, module, depth)
        return found if any(character.isalpha() for character in found) else ""

    def _text(self, node: ast.AST | None, module: Module, depth: int) -> str:
        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.Constant(value=bool()) | None:
                return VALUE
            case ast.Constant(value=int(number)):
                return f"{number:,}"
            case ast.JoinedStr(values=values):
                return "".join(self._text(one, module, depth) for one in values)
            case ast.FormattedValue(value=value):
                return self._constant(value, module)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._text(left, module, depth) + self._text(right, module, depth)
            case ast.IfExp(body=body, orelse=other):
                return _alternatives([self._text(one, module, depth) for one in (body, other)])
            case ast.Lambda(body=body):
                return self._text(body, module, depth)
            case ast.Name() | ast.Call(func=ast.Name()) if depth:
                return self._followed(node, module, depth - 1)
        return VALUE

    def _followed(self, node: ast.Name | ast.Call, module: Module, depth: int) -> str:
        """Return the texts that a name has, or that a function of the package returns."""
        values: list[tuple[Module, ast.AST | None]] = []
        if isinstance(node, ast.Name):
            values += self.assigned(node, module)
        elif isinstance(node.func, ast.Name) and (found := self.defined(node.func.id, module)):
            at, function = found
            values += [(at, one.value) for one in ast.walk(function) if isinstance(one, ast.Return)]
        return _alternatives([self._text(value, at, depth) for at, value in values])

    def _constant(self, node: ast.AST, module: Module) -> str:
        """Return the text of a name of a constant inside an f-string."""
        if isinstance(node, ast.Name) and node.id.lstrip("_").isupper():
            found = [self._text(one, at, 1) for at, one in self.assigned(node, module)]
            return found[0] if len(found) == 1 else VALUE
        return VALUE

    def defined(self, name: str, module: Module) -> tuple[Module, ast.FunctionDef] | None:
        """Return a function of the package by its name in a module, with the module that defines it."""
        for one in module.tree.body:
            if isinstance(one, ast.FunctionDef) and one.name == name:
                return module, one
        origin = self.modules.get(module.imports.get(name, ""))
        return None if origin is None or origin is module else self.defined(name, origin)

    def assigned(self, name: ast.Name, module: Module) -> list[tuple[Module, ast.AST]]:
        """Return the values that a name has in its function, in its module, or in the module it is imported from."""
        scope = module.function(name)
        if scope is not module.tree and (values := _reaching(scope, name, module)):
            return [(module, value) for value in values]
        if values := [value for one in module.tree.body for value in _values(one, name.id)]:
            return [(module, value) for value in values]
        origin = self.modules.get(module.imports.get(name.id, ""))
        return [] if origin is None or origin is module else self.assigned(ast.Name(name.id), origin)


def _alternatives(texts: list[str]) -> str:
    known = [text for text in dict.fromkeys(texts) if any(character.isalpha() for character in text)]
    return " / ".join(known) or VALUE


def _reaching(scope: ast.AST, name: ast.Name, module: Module) -> list[ast.AST]:
    """Return the values that a name can have at its use: those after the last assignment that always runs."""
    blocks = set(_blocks(name, module))
    found = list[tuple[bool, ast.AST]]()
    for node in ast.walk(scope):
        if getattr(node, "lineno", name.lineno) < name.lineno:
            always = next(_blocks(node, module), None) in blocks
            if always or not _leaves(node, module):
                found += [(always, value) for value in _values(node, name.id)]
    found.sort(key=lambda pair: pair[1].lineno)  # type: ignore[attr-defined]
    start = max((number for number, (always, _) in enumerate(found) if always), default=0)
    return [value for _, value in found[start:]]


def _leaves(node: ast.AST, module: Module) -> bool:
    """Return whether the block around a statement ends by leaving the function or the round of its loop."""
    parent = module.parents.get(node)
    around = [value for _, value in ast.iter_fields(parent) if _contains(value, node)] if parent else []
    last = around[0][-1] if around and isinstance(around[0], list) else None
    return isinstance(last, ast.Return | ast.Raise | ast.Continue | ast.Break)


def _blocks(node: ast.AST, module: Module) -> Iterator[tuple[int, str]]:
    """Yield the blocks of statements around a node, the innermost first, as the statement that has it and its field."""
    while (parent := module.parents.get(node)) is not None:
        if isinstance(node, ast.stmt):
            yield id(parent), next(field for field, value in ast.iter_fields(parent) if _contains(value, node))
        node = parent


def _contains(value: object, node: ast.AST) -> bool:
    return value is node or (isinstance(value, list) and any(one is node for one in value))


def _values(node: ast.AST, name: str) -> Iterator[ast.AST]:
    """Yield the values that a statement assigns to a name."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _unpacked(target, node.value, name)
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        yield from _unpacked(node.target, node.value, name)


def _unpacked(target: ast.AST, value: ast.AST, name: str) -> Iterator[ast.AST]:
    if isinstance(target, ast.Name) and target.id == name:
        yield value
    elif isinstance(target, ast.Tuple):
        for value_ in [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]:
            if isinstance(value_, ast.Tuple):
                for one, part in zip(target.elts, value_.elts, strict=False):
                    yield from _unpacked(one, part, name)
