"""What ``import keyhole`` offers."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest

import keyhole


def test_all_names_are_sorted_and_stand_once() -> None:
    assert keyhole.__all__ == sorted(set(keyhole.__all__))
    assert dir(keyhole) == keyhole.__all__


@pytest.mark.parametrize("name", keyhole.__all__)
def test_a_name_can_be_imported_and_is_documented(name: str) -> None:
    value = getattr(keyhole, name)
    assert value.__module__.startswith("keyhole.")
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert own
    assert not own.startswith(f"{name}(")  # what a dataclass writes by itself
    assert value.__name__ == name


@pytest.mark.parametrize("name", keyhole.__all__)
def test_every_argument_is_annotated_and_told(name: str) -> None:
    value = getattr(keyhole, name)
    if inspect.isclass(value):
        return
    signature = inspect.signature(value)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name
        if len(signature.parameters) > 1 and "Args:" in value.__doc__:
            assert f"{parameter.name}: " in value.__doc__.partition("Args:")[2], parameter.name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'keyhole' has no attribute 'nonsense'"):
        _ = keyhole.nonsense


def test_the_import_is_light_and_types_are_given_away() -> None:
    code = (
        "import sys, keyhole; heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'typer'} & set(sys.modules); "
        "assert not heavy, heavy; assert keyhole.KeyholeError; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    package = keyhole.__path__[0]
    assert (__import__("pathlib").Path(package) / "py.typed").is_file()


def test_the_type_checker_sees_the_names_that_are_there() -> None:
    tree = ast.parse(inspect.getsource(keyhole))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    named = {alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert named == set(keyhole.__all__)
