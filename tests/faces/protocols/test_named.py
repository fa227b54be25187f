"""Protocols by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import pattern_faces
from keyhole.errors import SettingError, UnknownNameError
from keyhole.faces.protocols import folder
from keyhole.faces.protocols.named import PROTOCOLS, read_protocol


def test_a_name_reads_as_its_reader(tmp_path: Path) -> None:
    pattern_faces.write_manifest(tmp_path, enrolled=2)
    assert read_protocol("folder", tmp_path, folds=None, views="mean") == folder.read(tmp_path, views="mean")


def test_settings_of_others_and_other_names_are_refused(tmp_path: Path) -> None:
    for name in PROTOCOLS:
        with pytest.raises(SettingError, match=f"Protocol {name} has no --nonsense; it takes --"):
            read_protocol(name, tmp_path, nonsense=1)
    with pytest.raises(UnknownNameError, match="Unknown protocol 'sface'; nearest known: scface"):
        read_protocol("sface", tmp_path)
