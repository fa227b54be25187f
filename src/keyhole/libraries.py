"""Libraries that only some users need: imported when they are, with a line on how to get one that is not there."""

from __future__ import annotations

import importlib
from typing import Any

from keyhole.errors import SettingError


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
