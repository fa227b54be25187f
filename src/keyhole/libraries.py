"""Code that is imported when a person needs or names it: libraries that not all have, and functions of their own."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
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
        raise unknown_name(f"function in {path}", name, callables)
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

    So it stays when something else in that file changes, and is another one when the function does, or a constant or
    helper of its file that it uses. What it imports from other files does not count.

    Raises:
        UnknownNameError: The module cannot be imported, or has no such function.

    Example:
        >>> len(code_sha256("json:dumps"))
        64
    """
    function = named(text)
    module = inspect.getmodule(function)
    try:
        source = inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):  # it has no file: a notebook, or code that was compiled
        source = ""
    name = getattr(function, "__qualname__", text.partition(":")[2]).partition(".")[0]
    return hashlib.sha256(_used_by(name, source).encode()).hexdigest()


def _used_by(name: str, source: str) -> str:
    """Return the text of the statements of a file that define a name, and what these use, in the order of the file."""
    lines, statements = source.splitlines(), ast.parse(source).body
    defining: dict[str, list[int]] = {}
    for k, statement in enumerate(statements):
        for each in _bound(statement):
            defining.setdefault(each, []).append(k)
    if name not in defining:
        return source
    wanted, left = set[int](), list(defining[name])
    while left:
        if (k := left.pop()) not in wanted:
            wanted.add(k)
            used = (each.id for each in ast.walk(statements[k]) if isinstance(each, ast.Name))
            left += [other for each in used for other in defining.get(each, ())]
    return "\n".join(
        "\n".join(lines[_first_line(statements[k]) - 1 : statements[k].end_lineno]) for k in sorted(wanted)
    )


def _bound(statement: ast.stmt) -> set[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(each.asname or each.name).partition(".")[0] for each in statement.names}
    return {each.id for each in ast.walk(statement) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}


def _first_line(statement: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(each.lineno for each in decorators)])
