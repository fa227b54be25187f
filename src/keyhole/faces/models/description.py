"""Describe a face model of one's own in a few lines of TOML, read strictly.

    file = "mine.onnx"            # or module = "package.module:function"
    size_px = 112
    color = "rgb"
    mean = 127.5                  # one number, or one for each channel in the order of color
    std = 127.5
    template = "arcface"          # or five points [[x, y], ...]; or margin = 0.3 for a box without alignment
    embedding_size = 512          # optional, checked

    [licenses]                    # optional, free text
    weights = "CC BY-NC 4.0"

A file that holds weights alone names our definition: ``network = "vggface2-se-resnet50"``. What it takes is then known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhole.errors import KeyholeError, SettingError, unknown_name
from keyhole.faces.models.compact import COMPACT
from keyhole.faces.models.preparation import Licenses, Preparation, Template, arcface_template
from keyhole.faces.models.registry import KNOWN_MODELS
from keyhole.files import read_toml

KEYS = (
    *("name", "file", "module", "network", "size_px", "color", "mean", "std", "template", "margin"),
    *("embedding_size", "output", "sha256", "licenses"),
)
LICENSES = ("code", "weights", "data")


@dataclass(frozen=True)
class Description:
    """A user's description of a face model, checked.

    ``file`` or ``module`` says where it is, never both; ``embedding_size`` is ``None`` when it is not promised.
    """

    name: str
    file: Path | None
    module: str | None
    network: str | None
    preparation: Preparation
    licenses: Licenses
    embedding_size: int | None = None
    output: str | None = None
    sha256: str | None = None


def read_description(path: Path) -> Description:
    """Return the description in a TOML file; paths in it are relative to its folder.

    Raises:
        DataError: The file is missing or is not TOML.
        SettingError: A value is of the wrong kind or out of its range, or something is missing.
        UnknownNameError: A key does not exist; the nearest are listed.
    """
    return parse_description(read_toml(path), where=path.name, folder=path.parent, name=path.stem)


def parse_description(table: Mapping[str, Any], *, where: str, folder: Path, name: str) -> Description:
    """Return a description given as a table, as TOML holds it.

    Args:
        table: The keys and values.
        where: What errors call it.
        folder: What its file is relative to.
        name: The model's name, unless the table has one.

    Raises:
        SettingError: A value is of the wrong kind or out of its range, or something is missing.
        UnknownNameError: A key does not exist; the nearest are listed.

    Example:
        >>> table = {"file": "mine.onnx", "size_px": 112, "mean": 127.5, "std": 127.5, "template": "arcface"}
        >>> parse_description(table, where="mine.toml", folder=Path("models"), name="mine").file.as_posix()
        'models/mine.onnx'
    """
    _check_keys(table, KEYS, where)
    file, module, network = (_text(table, key, where) for key in ("file", "module", "network"))
    if (file is None) == (module is None):
        raise SettingError(f"{where} needs either file or module; it has {'both' if file else 'neither'}.")
    if network is not None and network not in (known := _networks()):
        raise unknown_name("network", network, known)
    terms = table.get("licenses", {})
    if not isinstance(terms, Mapping):
        raise SettingError(f"{where}: licenses is {terms!r}; expected a table with {', '.join(LICENSES)}.")
    _check_keys(terms, LICENSES, f"{where}: licenses")
    digest = _text(table, "sha256", where)
    if digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise SettingError(f"{where}: sha256 is {digest!r}; expected 64 hexadecimal digits.")
    size = _integer(table, "embedding_size", where)
    if size is not None and size < 2:
        raise SettingError(f"{where}: embedding_size is {size}; expected at least 2.")
    return Description(
        name=_text(table, "name", where) or name,
        file=None if file is None else folder / file,
        module=module,
        network=network,
        preparation=_preparation(table, where, network),
        licenses=Licenses(**{key: _text(terms, key, where) or "not stated" for key in LICENSES}),
        embedding_size=size,
        output=_text(table, "output", where),
        sha256=digest.lower() if digest else None,
    )


def _networks() -> list[str]:
    return [*(name for name, model in KNOWN_MODELS.items() if model.network == name), *COMPACT]


def _check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise unknown_name(f"key of {where}", key, known)


def _preparation(table: Mapping[str, Any], where: str, network: str | None) -> Preparation:
    base = None
    if network is not None:
        base = COMPACT[network].preparation if network in COMPACT else KNOWN_MODELS[network].preparation
    size_px = _integer(table, "size_px", where) or (base.size_px if base else None)
    if size_px is None:
        raise SettingError(f"{where} lacks size_px, the side of the model's input in pixels.")
    extent = {"template": _template(table, where, size_px), "margin": _number(table, "margin", where)}
    if base and all(value is None for value in extent.values()):
        extent = {"template": base.template, "margin": base.margin}
    try:
        return Preparation(
            size_px=size_px,
            color=_text(table, "color", where) or (base.color if base else "rgb"),
            mean=_channels(table, "mean", where) or (base.mean if base else (0.0, 0.0, 0.0)),
            std=_channels(table, "std", where) or (base.std if base else (1.0, 1.0, 1.0)),
            **extent,  # type: ignore[arg-type]  # one is points, the other a number
        )
    except KeyholeError as error:
        raise SettingError(f"{where}: {error}") from error


def _template(table: Mapping[str, Any], where: str, size_px: int) -> Template | None:
    value = table.get("template")
    if value is None:
        return None
    if value == "arcface":
        return arcface_template(size_px)
    try:
        points = tuple((_real(x), _real(y)) for x, y in value)
    except (TypeError, ValueError) as error:
        raise SettingError(f'{where}: template is {value!r}; expected "arcface" or five points [x, y].') from error
    return points


def _channels(table: Mapping[str, Any], key: str, where: str) -> tuple[float, float, float] | None:
    value = table.get(key)
    if value is None:
        return None
    try:
        numbers = [_real(one) for one in value] if isinstance(value, (list, tuple)) else [_real(value)] * 3
        first, second, third = numbers
    except (TypeError, ValueError) as error:
        raise SettingError(f"{where}: {key} is {value!r}; expected one number or three.") from error
    return first, second, third


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(value)
    return float(value)


def _number(table: Mapping[str, Any], key: str, where: str) -> float | None:
    try:
        return None if key not in table else _real(table[key])
    except TypeError as error:
        raise SettingError(f"{where}: {key} is {table[key]!r}; expected a number.") from error


def _integer(table: Mapping[str, Any], key: str, where: str) -> int | None:
    value = table.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise SettingError(f"{where}: {key} is {value!r}; expected a whole number.")
    return value


def _text(table: Mapping[str, Any], key: str, where: str) -> str | None:
    value = table.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise SettingError(f"{where}: {key} is {value!r}; expected text.")
    return value
