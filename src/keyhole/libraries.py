"""Code that is imported when a person needs or names it: libraries that not all have, and functions of their own."""

from __future__ import annotations

import importlib
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


def call_named(text: str, **arguments: Any) -> Any:
    """Return what the function that ``package.module:function`` names gives for these arguments.

    This runs the code that it names, as ``import`` does; nothing is imported unless a person wrote its name.

    Raises:
        UnknownNameError: The module cannot be imported, or has no such function; the nearest are listed.
        SettingError: The function fails.

    Example:
        >>> call_named("json:dumps", obj=[1, 2])
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
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise SettingError(f"{text} failed when called{given and f' with {given}'}: {reason_of(error)}.") from error
