"""Which columns a template reads, and what of them: found in its tree, before there is a row."""

from __future__ import annotations

from collections.abc import Iterable

from jinja2 import nodes
from jinja2.visitor import NodeVisitor

from udfs.text.environment import METHOD, NAMES_OF_JINJA, column_of
from udfs.text.paths import EACH, Path

_OF_FIELDS = frozenset({"join", "map", "sum"})  # filters that make nothing of an element but one of its fields
_BY_FIELDS = frozenset({"selectattr", "rejectattr", "groupby", "sort", "unique", "min", "max"})  # and that look at one
_FIRST_NAMES_IT = frozenset({"selectattr", "rejectattr", "groupby"})
_OF_LISTS = frozenset({"list", "reverse", "sort", "unique", "select", "reject", "selectattr", "rejectattr"})
_OF_ELEMENTS = frozenset({"first", "last", "random", "min", "max"})
_OF_ITEMS = frozenset({"items", "dictsort"})


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
            case nodes.Getitem(arg=nodes.Const(value=str(key))):
                before = self.path_of(node.node)
                return None if before is None else (*before, key)
            case nodes.Getitem() if not isinstance(node.arg, nodes.Slice):
                return self._element_of(node.node)
            case nodes.Call(node=nodes.Getattr(attr=attr) as of, args=[nodes.Const(value=str(key))]):
                before = self.path_of(of) if attr == f"{METHOD}get" else None
                return None if before is None else (*before, key)
            case nodes.Filter(name="default" | "d", node=nodes.Expr() as of):
                return self.path_of(of)
            case nodes.Filter(name="attr", node=nodes.Expr() as of, args=[nodes.Const(value=str(key))]):
                before = self.path_of(of)
                return None if before is None else (*before, key)
            case nodes.Filter(node=nodes.Expr() as of) if node.name in _OF_ELEMENTS:
                return self._element_of(of)
            case nodes.Or(left=of) | nodes.CondExpr(expr1=of):  # what stands instead has to have the same fields
                return self.path_of(of)
        return None

    def _element_of(self, node: nodes.Node) -> Path | None:
        """The path of what an expression's elements are."""
        match node:
            case nodes.Filter(name="map", node=nodes.Expr()) if (field := self._field_of(node)) is not None:
                return field
            case nodes.Filter(node=nodes.Expr() as of) if node.name in _OF_LISTS:
                return self._element_of(of)
            case nodes.Getitem(arg=nodes.Slice(), node=of):
                return self._element_of(of)
            case nodes.Call(node=nodes.Getattr(attr=attr) as of) if attr == f"{METHOD}values":
                node = of
        path = self.path_of(node)
        return None if path is None else (*path, EACH)

    def _map_of(self, node: nodes.Node) -> Path | None:
        """The path of a map whose keys and values a loop goes over."""
        match node:
            case nodes.Call(node=nodes.Getattr(attr=attr) as of) if attr == f"{METHOD}items":
                return self.path_of(of)
            case nodes.Filter(node=nodes.Expr() as of) if node.name in _OF_ITEMS:
                return self.path_of(of)
        return None

    def _read(self, node: nodes.Node) -> None:
        path = self.path_of(node)
        if path is not None:
            self.paths.add(path)
            self._read_keys(node)
        elif not isinstance(node, nodes.Name):
            self.generic_visit(node)

    def _read_keys(self, node: nodes.Node) -> None:
        """What within a path is read besides: keys that are paths themselves, as in `p[a][b]`, and what may stand
        instead of it."""
        match node:
            case nodes.Getitem():
                self.visit(node.arg)
                self._read_keys(node.node)
            case nodes.Getattr() | nodes.Call():
                self._read_keys(node.node)
            case nodes.Filter(node=nodes.Expr() as of):
                self._read_field(node)
                self._read_keys(of) if self.path_of(of) is not None else self.visit(of)
                self._visit_arguments(node)
            case nodes.Or():
                self._read_keys(node.left)
                self.visit(node.right)
            case nodes.CondExpr():
                self.visit(node.test)
                self._read_keys(node.expr1)
                if node.expr2 is not None:
                    self.visit(node.expr2)

    visit_Name = visit_Getattr = visit_Getitem = _read

    def visit_Call(self, node: nodes.Call) -> None:
        if (path := self.path_of(node)) is not None:
            self.paths.add(path)
        self.generic_visit(node)

    def visit_Filter(self, node: nodes.Filter) -> None:
        """`authors | map(attribute='name')` reads the names alone."""
        self._read_field(node)
        path = self.path_of(node)
        if path is not None:
            self.paths.add(path)
        if node.node is not None and not (node.name in _OF_FIELDS and self._field_of(node)):
            self.visit(node.node)
        self._visit_arguments(node)

    def _visit_arguments(self, node: nodes.Filter) -> None:
        for part in (*node.args, *node.kwargs):
            self.visit(part)

    def _read_field(self, node: nodes.Filter) -> None:
        if path := self._field_of(node):
            self.paths.add(path)

    def _field_of(self, node: nodes.Filter) -> Path | None:
        """The path of the field that a filter takes of each element, or looks at."""
        element = self._element_of(node.node) if node.node is not None else None
        attribute = _attribute_of(node)
        return None if element is None or attribute is None else (*element, *attribute)

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
        path, element = self.path_of(node.iter), self._element_of(node.iter)
        if path is None or not isinstance(node.target, nodes.Name):
            self.visit(node.iter)
        else:
            self._read_keys(node.iter)
        before, self.paths = self.paths, set()
        values = self._map_of(node.iter)
        self._scopes.append({"loop": None})
        self._bind(node.target, element)
        match node.target:
            case nodes.Tuple(items=[nodes.Name(), nodes.Name(name=name)]) if values is not None:
                self._scopes[-1][name] = (*values, EACH)
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
    told = [pair.value for pair in node.kwargs if pair.key == "attribute"]
    told += node.args[:1] if node.name in _FIRST_NAMES_IT else []
    match told:
        case [nodes.Const(value=str(name))] if node.name in _OF_FIELDS | _BY_FIELDS:
            return tuple(EACH if part.isdigit() else part for part in name.split("."))
    return None
