from __future__ import annotations

import pytest

from keyhole.progress import bar, silent


@pytest.mark.parametrize("progress", [silent, bar])
@pytest.mark.parametrize(("done", "total"), [(0, 3), (2, 5), (0, 0)])
def test_every_item_passes_through(progress, done: int, total: int) -> None:  # type: ignore[no-untyped-def]
    assert list(progress(iter("abc"), label="work", total=total, done=done)) == ["a", "b", "c"]


def test_silence_is_silent_and_a_bar_writes_to_standard_error_alone(capsys: pytest.CaptureFixture[str]) -> None:
    list(silent("abc", label="work", total=3))
    assert capsys.readouterr() == ("", "")
    list(bar("abc", label="work", total=3))
    out, _ = capsys.readouterr()
    assert out == ""


@pytest.mark.parametrize("progress", [silent, bar])
def test_an_exception_passes_through(progress) -> None:  # type: ignore[no-untyped-def]
    def failing():  # type: ignore[no-untyped-def]
        yield 1
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        list(progress(failing(), label="work", total=2))
    assert list(progress([1], label="again", total=1)) == [1]
