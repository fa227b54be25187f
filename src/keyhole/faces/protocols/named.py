"""A protocol by its name, with the settings that it knows; one that it does not know is refused, not ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from keyhole.errors import SettingError, unknown_name
from keyhole.faces.protocols import folder, icbrw, lfw, scface
from keyhole.faces.protocols.samples import IdentificationSet, PairSet


def read_protocol(name: str, root: Path, **settings: Any) -> IdentificationSet | PairSet:
    """Return what a protocol compares.

    Args:
        name: ``lfw``, ``scface``, ``icbrw`` or ``folder``.
        root: Folder or zip of its pictures.
        settings: Of its reader; those that are None are left to it.

    Raises:
        UnknownNameError: There is no such protocol.
        SettingError: The protocol has no such setting.
        DataError: The pictures are not in its form.
    """
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    read, known = PROTOCOLS[name]
    given = {key: value for key, value in settings.items() if value is not None}
    if strange := sorted(given.keys() - known):
        takes = ", ".join(f"--{key.replace('_', '-')}" for key in known) or "none"
        raise SettingError(f"Protocol {name} has no --{strange[0].replace('_', '-')}; it takes {takes}. Leave it out.")
    return read(root, **given)


# name -> reader, and the settings that it takes
PROTOCOLS: Mapping[str, tuple[Callable[..., IdentificationSet | PairSet], tuple[str, ...]]] = {
    "lfw": (lfw.read, ("folds", "threshold_folds", "pairs")),
    "scface": (scface.read, ("subjects", "cameras")),
    "icbrw": (icbrw.read, ("views",)),
    "folder": (folder.read, ("views", "manifest")),
}
