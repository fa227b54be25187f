"""Code that is imported when a person needs or names it: libraries that not all have, and functions of their own."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any

from keyhole.errors import SettingError, UnknownNameError, reason_of, unknown_name


def optional(module: str, *, user: str, packages: str | None = None) -> Any:
    """Return a module of a library that is not always installed.

    Args:
        module: Its dotted name, such as ``onnxruntime``.
        user: What needs it, to begin the message with.
        packages: What to install, by spaces; the library alone where nothing is given.

    Raises:
        SettingError: It is not installed, or cannot be imported.

    Example:
        >>> optional("json", user="This line").dumps(1)
        '1'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise SettingError(f"{user} needs {library}. Install it: pip install {packages or library}.") from error


def named(text: str) -> Any:
    """Return the function or class that ``package.module:function`` names.

    This runs the module that it names, as ``import`` does; nothing is imported unless a person wrote its name.

    Raises:
        UnknownNameError: The module cannot be imported, or has no such function; the nearest are listed.

    Example:
        >>> named("json:dumps")([1, 2])
        '[1, 2]'
    """
    path, _, name = text.partition(":")
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # the user's own file may raise anything
        raise UnknownNameError(f"Cannot import {path!r} of {text!r}: {reason_of(error)}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        found = getattr(module, "__file__", None)  # a module of Python may have the name of the user's
        raise unknown_name(f"function in {path}", name, callables, see=f"The module is {found}." if found else "")
    return function


def call_named(text: str, **arguments: Any) -> Any:
    """Return what the function that ``package.module:function`` names gives for these arguments.

    Raises:
        UnknownNameError: The module cannot be imported, or has no such function; the nearest are listed.
        SettingError: The function fails.

    Example:
        >>> call_named("json:dumps", obj=[1, 2])
        '[1, 2]'
    """
    function = named(text)
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise SettingError(f"{text} failed when called{given and f' with {given}'}: {reason_of(error)}.") from error


def code_sha256(text: str) -> str:
    """Return the SHA-256 of the code that ``package.module:function`` names, with all that it uses of the same file.

    So it stays when something else in that file changes, or a comment, a docstring or the layout; and is another one
    when the function does, or a constant or a helper of its file. Of what is no function or class of the first level of
    a file (a ``partial``, an object that can be called), the whole file counts. What is imported from other files does
    not.

    Raises:
        UnknownNameError: The module cannot be imported, or has no such function.

    Example:
        >>> len(code_sha256("json:dumps"))
        64
    """
    function = named(text)
    home = sys.modules.get(getattr(function, "__module__", None) or "")
    name = getattr(function, "__qualname__", "")
    if isinstance(function, FunctionType | type) and getattr(home, name, None) is function:
        code = _used_by(name, _source_of(home))
    else:
        code = [each.text for each in _statements(_source_of(sys.modules[text.partition(":")[0]]))]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


def _source_of(module: Any) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):  # it has no file: a notebook, or code that was compiled
        return ""


@dataclass(frozen=True)
class _Statement:
    """A statement of a module: the names that it defines or changes, those that it uses, and its text."""

    bound: frozenset[str]
    used: frozenset[str]
    text: str


def _used_by(name: str, source: str) -> list[str]:
    """Return the text of all statements of a file that define or change a name, or what these use, in their order."""
    statements = _statements(source)
    wanted: set[int] = set()
    left = {name, "*"}
    seen = set(left)
    while left:
        each = left.pop()
        for k, statement in enumerate(statements):
            if each in statement.bound and k not in wanted:
                wanted.add(k)
                left |= statement.used - seen
                seen |= statement.used
    return [statements[k].text for k in sorted(wanted)]


@lru_cache(maxsize=32)
def _statements(source: str) -> tuple[_Statement, ...]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # it was changed since it was imported
        return (_Statement(frozenset("*"), frozenset(), source),)
    for node in ast.walk(tree):  # docstrings change nothing
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body[:1] = [] if len(node.body) > 1 or isinstance(node, ast.Module) else [ast.Pass()]
    return tuple(
        _Statement(
            frozenset(_bound(statement)),
            frozenset(node.id for node in ast.walk(statement) if isinstance(node, ast.Name)),
            ast.unparse(statement),
        )
        for statement in tree.body
    )


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement of a module defines or changes; ``*`` where it imports all there is."""
    left: list[ast.AST] = [statement]
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            for inner in ast.walk(node):
                yield from inner.names if isinstance(inner, ast.Global) else ()
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((each.asname or each.name).partition(".")[0] for each in node.names)
        elif isinstance(node, ast.Expr):  # a call that may change whatever it names
            yield from (inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))
        elif isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            base: ast.expr = node
            while isinstance(base, ast.Attribute | ast.Subscript):
                base = base.value
            if isinstance(base, ast.Name):
                yield base.id
        left += ast.iter_child_nodes(node)
