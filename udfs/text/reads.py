"""Which columns a template reads, and what of them: found in its tree, before there is a row."""

from __future__ import annotations

from collections.abc import Iterable

from jinja2 import nodes
from jinja2.visitor import NodeVisitor

from udfs.text.environment import METHOD, NAMES_OF_JINJA, column_of
from udfs.text.paths import EACH, Path

_OF_FIELDS = frozenset({"join", "map", "sum"})  # filters that make nothing of an element but one of its fields


def find_reads(tree: nodes.Template) -> frozenset[Path]:
    """The paths that a template reads: a column's name, and then fields, keys and elements as far as they are told.

    What the template sets itself is no column, once it is set in any branch before; what it calls is no field.
    """
    found = _Reads()
    found.visit(tree)
    return frozenset(found.paths)


class _Reads(NodeVisitor):
    """Walks a tree in the order of its text, with a scope for each block that has one."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()
        self._scopes: list[dict[str, Path | None]] = [{}]  # a name -> the path that it stands for

    def path_of(self, node: nodes.Node) -> Path | None:
        """The path that an expression is, if it is one and of a column."""
        match node:
            case nodes.Name():
                for scope in reversed(self._scopes):
                    if node.name in scope:
                        return scope[node.name]
                return None if node.name.startswith(NAMES_OF_JINJA) else (column_of(node.name),)
            case nodes.Getattr() if (before := self.path_of(node.node)) is not None:
                return before if node.attr.startswith(METHOD) else (*before, node.attr)
            case nodes.Getitem() if (before := self.path_of(node.node)) is not None:
                key = node.arg.value if isinstance(node.arg, nodes.Const) else EACH
                return (*before, key if isinstance(key, str) else EACH)
        return None

    def _read(self, node: nodes.Node) -> None:
        path = self.path_of(node)
        if path is not None:
            self.paths.add(path)
            self._read_keys(node)
        elif not isinstance(node, nodes.Name):
            self.generic_visit(node)

    def _read_keys(self, node: nodes.Node) -> None:
        """The keys within a path may be paths themselves, as in `p[a][b]`."""
        if isinstance(node, nodes.Getitem):
            self.visit(node.arg)
        if isinstance(node, nodes.Getitem | nodes.Getattr):
            self._read_keys(node.node)

    visit_Name = visit_Getattr = visit_Getitem = _read

    def visit_Filter(self, node: nodes.Filter) -> None:
        """`authors | map(attribute='name')` reads the names alone."""
        path = self.path_of(node.node) if node.node is not None else None
        attribute = _attribute_of(node)
        if path is None or attribute is None:
            self.generic_visit(node)
            return
        self.paths.add((*path, EACH, *attribute))
        for part in (*node.args, *node.kwargs):
            self.visit(part)

    def _bind(self, target: nodes.Node, path: Path | None = None) -> None:
        for name in [target] if isinstance(target, nodes.Name) else target.find_all(nodes.Name):
            is_new = name.name not in self._scopes[-1]
            self._scopes[-1][name.name] = path if is_new and name is target else None

    def _visit_within(self, body: Iterable[nodes.Node], *names: str) -> None:
        self._scopes.append(dict.fromkeys(names))
        for node in body:
            self.visit(node)
        self._scopes.pop()

    def visit_Assign(self, node: nodes.Assign) -> None:
        self.visit(node.node)
        self._bind(node.target, self.path_of(node.node))

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> None:
        self._visit_within([*([node.filter] if node.filter else []), *node.body])
        self._bind(node.target)

    def visit_For(self, node: nodes.For) -> None:
        path = self.path_of(node.iter)
        element = None if path is None else (*path, EACH)
        if path is None or not isinstance(node.target, nodes.Name):
            self.visit(node.iter)
        before, self.paths = self.paths, set()
        self._scopes.append({"loop": None})
        self._bind(node.target, element)
        for part in (*([node.test] if node.test else []), *node.body):
            self.visit(part)
        self._scopes.pop()
        if element is not None and not any(found[: len(element)] == element for found in self.paths):
            self.visit(node.iter)
        self.paths |= before
        self._visit_within(node.else_)

    def visit_With(self, node: nodes.With) -> None:
        for value in node.values:
            self.visit(value)
        paths = [self.path_of(value) for value in node.values]
        self._scopes.append({})
        for target, path in zip(node.targets, paths, strict=True):
            self._bind(target, path)
        self._visit_within(node.body)
        self._scopes.pop()

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> None:
        for default in node.defaults:
            self.visit(default)
        if isinstance(node, nodes.Macro):
            self._scopes[-1][node.name] = None
        else:
            self.visit(node.call)
        self._visit_within(node.body, "caller", "varargs", "kwargs", *(argument.name for argument in node.args))

    visit_CallBlock = visit_Macro

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> None:
        self.visit(node.filter)
        self._visit_within(node.body)

    def visit_Block(self, node: nodes.Block | nodes.Scope) -> None:
        self._visit_within(node.body)

    visit_Scope = visit_Block

    def visit_Import(self, node: nodes.Import) -> None:
        self._scopes[-1][node.target] = None

    def visit_FromImport(self, node: nodes.FromImport) -> None:
        for name in node.names:
            self._scopes[-1][name if isinstance(name, str) else name[1]] = None


def _attribute_of(node: nodes.Filter) -> Path | None:
    """The field of each element that a filter is about."""
    match [pair.value for pair in node.kwargs if pair.key == "attribute"]:
        case [nodes.Const(value=str(told))] if node.name in _OF_FIELDS:
            return tuple(EACH if part.isdigit() else part for part in told.split("."))
    return None
