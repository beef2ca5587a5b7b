"""Which functions a command can run: a static approximation from the source, as in rapid type analysis.

A function reaches what its body names: functions, classes and module variables through the imports of its module, and
methods by their bare name on every class that is reached. It errs on the side of too much.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import llmkit

ROOT = Path(llmkit.__file__).parent
Node = tuple[str, str]
"""A module and a name in it: ``("llmkit.api", "generate")``, ``("llmkit.tasks.base", "Task.work")``."""


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of every module of the package, by its name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        if "recipes" not in path.relative_to(ROOT).parts[:1]:
            name = ".".join(("llmkit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def _imports(module: str) -> dict[str, Node]:
    """What each imported name stands for: a name in a module, or the module itself (an empty name)."""
    found: dict[str, Node] = {}
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmkit"):
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                place = (inner, "") if inner in trees() else (str(node.module), each.name)
                found[each.asname or each.name] = place
    return found


@cache
def definitions(module: str) -> dict[str, ast.AST]:
    """Functions, classes, methods (``Class.method``) and assigned variables of a module."""
    found: dict[str, ast.AST] = {}
    for node in trees()[module].body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign):
                found[target.id] = node
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}": each for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def _resolve(module: str, name: str) -> Node | None:
    """The definition that a name in a module refers to, through re-exports."""
    for _ in range(5):
        if name in definitions(module):
            return module, name
        if name not in _imports(module):
            return None
        module, name = _imports(module)[name]
        if not name or module not in trees():
            return None
    return None


@cache
def _mentions(node: Node) -> tuple[frozenset[Node], frozenset[str]]:
    """The definitions that a function, class or variable names, and the attributes it uses.

    The methods of a class are not part of it; they are reached by name.
    """
    module, name = node
    definition = definitions(module)[name]
    parts: list[ast.AST] = [definition]
    if isinstance(definition, ast.ClassDef):
        inner = [each for each in definition.body if not isinstance(each, ast.FunctionDef)]
        parts = [*definition.bases, *definition.decorator_list, *inner]
    targets: set[Node | None] = set()
    attributes = set()
    for each in (inner for part in parts for inner in ast.walk(part)):
        if isinstance(each, ast.Name):
            targets.add(_resolve(module, each.id))
        elif isinstance(each, ast.Attribute):
            owner = _imports(module).get(each.value.id) if isinstance(each.value, ast.Name) else None
            if owner is not None and not owner[1]:  # a function of an imported module
                targets.add(_resolve(owner[0], each.attr))
            else:
                attributes.add(each.attr)
    return frozenset(target for target in targets if target), frozenset(attributes)


_ALWAYS = ("__init__", "__post_init__", "__call__", "__enter__", "__exit__", "__iter__", "__new__")


def reached(start: set[Node], without: frozenset[str] = frozenset()) -> set[Node]:
    """All that can run from some functions, except in the modules ``without``."""
    done: set[Node] = set()
    used = set(_ALWAYS)
    methods: dict[str, set[Node]] = defaultdict(set)
    waiting = set(start)
    while waiting:
        module, name = node = waiting.pop()
        if node in done or module in without:
            continue
        done.add(node)
        definition = definitions(module)[name]
        for each in definition.body if isinstance(definition, ast.ClassDef) else ():
            if isinstance(each, ast.FunctionDef):
                methods[each.name].add((module, f"{name}.{each.name}"))
                waiting |= {(module, f"{name}.{each.name}")} if each.name in used else set()
        targets, attributes = _mentions(node)
        waiting |= targets
        for attribute in attributes - used:
            waiting |= methods[attribute]
        used |= attributes
    return done
