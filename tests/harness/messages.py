"""The messages that the code can show an operator, read from its syntax trees.

A message is the first argument of an error, or of one of preflight's problems. ``…`` stands for
what is filled in: names, numbers, another program's words.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from docs.generate import ROOT

PACKAGE = ROOT / "llm_trace_pipeline"
FILLED_IN = "…"
# Beside PipelineError and what is derived from it: preflight's problems, how a standby lags, times
# without a zone, what Dagster shows of a failed step, a wrong value, before which the variable's
# name is put, what is logged as a warning, and the line by which a command ends.
_OTHERS = frozenset(
    {"Problem", "Lag", "UnfitColumn", "Failure", "ValueError", "warning", "_ended_by"}
)
_WRONG_VALUE = re.compile(r"must |[A-Z_]+: ")  # any other ValueError is the programmer's own
_VARIABLE = re.compile(r"[A-Z_]+: ")
PRINTS = frozenset({"say", "echo"})  # the functions by which a command prints


@dataclass(frozen=True)
class Message:
    """A message, and the line that makes it."""

    text: str
    place: str


@cache
def messages() -> tuple[Message, ...]:
    """Return what asks something of an operator; what only passes on another message is not."""
    known = _errors(_trees()) | _OTHERS
    return _read(known)


@cache
def printed() -> tuple[Message, ...]:
    """Return the lines that commands print."""
    return _read(PRINTS)


@cache
def _trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def _read(functions: frozenset[str]) -> tuple[Message, ...]:
    """Return the first arguments of the calls of some functions."""
    of_modules = {path: _texts(tree) for path, tree in _trees().items()}
    texts = {name: text for of_module in of_modules.values() for name, text in of_module.items()}
    found = {
        Message(message, f"{path}:{line}"): None
        for path, tree in _trees().items()
        for line, message in _Reader(functions, texts | of_modules[path]).read(tree)
        if re.search(r"\w", message)
    }
    return tuple(found)


def is_headed_by(message: str, heading: str) -> bool:
    """Whether a heading is a message, or the beginning of one up to a mark of punctuation."""
    if not message.startswith(heading):
        return False
    rest = message[len(heading) :]
    return not rest or rest[0] in f";:,.?\n{FILLED_IN}" or rest.startswith(" (")


def _errors(trees: dict[str, ast.Module]) -> frozenset[str]:
    """Return the names of PipelineError and of the classes that are derived from it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    known = {"PipelineError"}
    while more := {name for name, of in bases.items() if of & known} - known:
        known |= more
    return frozenset(known)


def _texts(tree: ast.Module) -> dict[str, str]:
    """Return the texts that a module gives names."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


class _Reader:
    """Reads the messages of one module."""

    def __init__(self, functions: frozenset[str], texts: dict[str, str]) -> None:
        self._functions = functions
        self._texts = texts
        self._assigned: dict[str, list[ast.expr]] = {}  # in the function that is read

    def read(self, node: ast.AST) -> Iterator[tuple[int, str]]:
        """Return the line and the text of each message below a node."""
        outside = self._assigned
        if isinstance(node, ast.FunctionDef):
            self._assigned = outside | _assigned_in(node)
        if isinstance(node, ast.Call) and node.args and self._is_called(node.func):
            is_wrong_value = _name_of(node.func) == "ValueError"
            for text in self._alternatives(node.args[0]):
                if is_wrong_value and not _WRONG_VALUE.match(text):
                    continue
                prefix = f"{FILLED_IN}: " if is_wrong_value and not _VARIABLE.match(text) else ""
                filled = re.sub(r"%(s|d|\.\d+f)", FILLED_IN, prefix + text)  # of what is logged
                yield node.lineno, re.sub(f"{FILLED_IN}+", FILLED_IN, filled.strip())
        for child in ast.iter_child_nodes(node):
            yield from self.read(child)
        self._assigned = outside

    def _is_called(self, called: ast.expr) -> bool:
        """Whether one of the functions is called, or a name that was given one of them."""
        name = _name_of(called)
        given = self._assigned.get(name, []) if isinstance(called, ast.Name) else []
        classes = {_name_of(each) for value in given for each in ast.walk(value)}
        return not self._functions.isdisjoint({name, *classes})

    def _alternatives(self, node: ast.expr) -> list[str]:
        """Return what an expression can say."""
        match node:
            case ast.Constant(value=str() as text):
                said = [text]
            case ast.JoinedStr(values=pieces):
                said = self._joined(pieces)
            case ast.BinOp(left=left, right=right):
                said = self._joined([left, right])
            case ast.FormattedValue(value=value, format_spec=None):
                said = self._alternatives(value)
            case ast.IfExp(body=one, orelse=other):
                said = self._alternatives(one) + self._alternatives(other)
            case ast.Name(id=name) if name in self._assigned:
                said = [
                    text for value in self._assigned[name] for text in self._alternatives(value)
                ]
            case ast.Name(id=name) if name in self._texts:
                said = [self._texts[name]]
            case _:
                said = [FILLED_IN]
        return said

    def _joined(self, pieces: list[ast.expr]) -> list[str]:
        said = [""]
        for piece in pieces:
            said = [before + text for before in said for text in self._alternatives(piece)]
        return said


def _name_of(called: ast.AST) -> str:
    """Return the name of what is called; '' if it has none."""
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else ""


def _assigned_in(function: ast.FunctionDef) -> dict[str, list[ast.expr]]:
    """Return what a function gives its names; what is made of itself is left out."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name not in {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}:
                found.setdefault(name, []).append(node.value)
    return found
