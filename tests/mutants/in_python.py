"""Faults in Python: mutmut's operators on LibCST's tree, and some that it has not.

mutmut's own runner puts all faults of a file into one program and switches between them within a process;
ours are scripts and servers besides, so only its operators are taken.
"""

from __future__ import annotations

from collections.abc import Iterable

import libcst as cst
import libcst.matchers as m
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper
from mutmut.mutation import mutators

from tests.mutants.fault import Change, Fault, faults_of, other_numbers

Found = Iterable[tuple[cst.CSTNode, cst.CSTNode]]
#: Words of a text are no faults worth a run, and an argument left out is mostly an error at once.
_LEFT_OUT = (
    mutators.operator_string,
    mutators.operator_arg_removal,
    mutators.operator_assignment,
    mutators.operator_lambda,
    mutators.operator_number,
)
#: Where nothing is changed: types, words to a person, places in a tuple.
_PASSED_OVER = (
    cst.Annotation | cst.Import | cst.ImportFrom | cst.Decorator | cst.FormattedString | cst.Index
)
_LOG = m.Call(m.Attribute(m.Name("log"), m.DoNotCare()))
_PARENTHESES = cst.BooleanOperation | cst.Comparison | cst.BinaryOperation | cst.IfExp | cst.Await


def _theirs(node: cst.CSTNode) -> Found:
    """What mutmut would do with this node."""
    for kind, operator in mutators.mutation_operators:
        if operator not in _LEFT_OUT and isinstance(node, kind):
            for changed in operator(node):
                yield node, changed


def _ours(node: cst.CSTNode) -> Found:
    """A guard, a bound, an order, a branch, a statement left out; another number."""
    if isinstance(node, cst.BooleanOperation):
        yield node, node.left
        yield node, node.right
    elif isinstance(node, cst.Call):
        values = [each.value for each in node.args if each.keyword is None and not each.star]
        if m.matches(node.func, m.Name("max") | m.Name("min")) and len(values) == 2:
            yield from ((node, value) for value in values)
        elif m.matches(node.func, m.Name("reversed") | m.Name("sorted")):
            yield node, cst.Call(cst.Name("list"), [cst.Arg(values[0])])
    elif isinstance(node, cst.If | cst.While):
        yield node.test, cst.Name("False")
    elif isinstance(node, cst.Integer):
        yield from ((node, cst.Integer(str(n))) for n in other_numbers(node.evaluated_value))
    elif isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1:
        (statement,) = node.body
        effect = m.Expr(m.Call() | m.Await()) | m.AugAssign() | m.Raise() | m.Del()
        if m.matches(statement, effect):
            yield statement, cst.Pass()


class _Finder(cst.CSTVisitor):
    """What is changed, and to what; in bytes of the file."""

    METADATA_DEPENDENCIES = (ByteSpanPositionProvider,)

    def __init__(self, module: cst.Module) -> None:
        super().__init__()
        self._module = module
        self.changes: list[Change] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, _PASSED_OVER) or m.matches(node, _LOG | m.Expr(_LOG)):
            return False
        if isinstance(node, cst.ClassDef):
            node.body.visit(self)  # not what it is made with: its bases, how its struct is packed
            return False
        for target, changed in (*_theirs(node), *_ours(node)):
            span = self.get_metadata(ByteSpanPositionProvider, target)
            code = self._module.code_for_node(changed)
            if isinstance(changed, _PARENTHESES) and not isinstance(target, cst.BinaryOperation):
                code = f"({code})"
            self.changes.append((span.start, span.start + span.length, code))
        return True


def python_faults(path: str, text: str) -> list[Fault]:
    """All faults of a module, those of its top level too."""
    wrapper = MetadataWrapper(cst.parse_module(text))
    finder = _Finder(wrapper.module)
    wrapper.visit(finder)
    data = text.encode()
    return faults_of(
        path,
        text,
        [
            (len(data[:start].decode()), len(data[:end].decode()), code)
            for start, end, code in finder.changes
        ],
    )
