from __future__ import annotations

import pytest

from keyhole import errors
from keyhole.errors import KeyholeError, unknown_name


def test_nearest_names_come_best_first() -> None:
    known = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(9)]
    message = str(unknown_name("layer", "layer2.9", known, see="Try keyhole layers."))
    assert message.startswith("Unknown layer 'layer2.9'; nearest known: layer2.")
    assert message.count("layer2.") >= 3
    assert message.endswith(" Try keyhole layers.")


def test_the_first_names_are_listed_when_none_is_near() -> None:
    message = str(unknown_name("metric", "zzz", ["abc", "def"]))
    assert message == "Unknown metric 'zzz'; known: abc, def."


def test_nothing_is_known() -> None:
    assert str(unknown_name("arm", "a", [])) == "Unknown arm 'a'; known: none."


def test_names_may_come_from_an_iterator() -> None:
    assert "linear_cka" in str(unknown_name("metric", "linear_ckb", (name for name in ("linear_cka", "x"))))


def test_a_name_with_a_line_break_stays_on_one_line() -> None:
    assert len(str(unknown_name("model", "a\nb", ["ab"])).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [("ShapeError", ValueError), ("SettingError", ValueError), ("UnknownNameError", LookupError)],
)
def test_errors_are_also_the_builtin_kind_that_a_caller_expects(kind: str, builtin: type[Exception]) -> None:
    error = getattr(errors, kind)
    assert issubclass(error, builtin)
    assert issubclass(error, KeyholeError)


def test_every_error_is_drawn_in_the_docstring() -> None:
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, KeyholeError)
            assert name in (errors.__doc__ or "")
