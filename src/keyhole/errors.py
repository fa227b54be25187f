"""The errors that Keyhole raises on purpose.

    KeyholeError                 everything below; the command line prints it as one line, exit code 1
    ├── ShapeError               tensors that do not fit together (also a ValueError)
    ├── UnknownNameError         a model, layer, metric, term ... that does not exist (also a LookupError)
    ├── SettingError             a setting outside its range, or settings that exclude each other (also a ValueError)
    ├── DataError                data that is missing, corrupt, or not in the expected form
    ├── WeightsError             a weight file that cannot be read, or does not fit the model
    ├── DivergenceError          NaN or infinity in features or in a loss
    └── RunError                 a run folder that cannot be written, or that holds another run

A message says what was seen, what was expected, and what to do, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KeyholeError(Exception):
    """An error that a person can act on; its message is one line."""


class ShapeError(KeyholeError, ValueError):
    """Tensors whose shapes do not fit together."""


class UnknownNameError(KeyholeError, LookupError):
    """A name that does not exist; the message lists the nearest ones."""


class SettingError(KeyholeError, ValueError):
    """A setting outside its range, or settings that exclude each other."""


class DataError(KeyholeError):
    """Data that is missing, corrupt, or not in the expected form."""


class WeightsError(KeyholeError):
    """A weight file that cannot be read, or does not fit the model."""


class DivergenceError(KeyholeError):
    """NaN or infinity in features or in a loss; the last good checkpoint is kept."""


class RunError(KeyholeError):
    """A run folder that cannot be written, or that holds another run."""


def reason_of(error: BaseException) -> str:
    """Return what another library says of an error, as a part of one line.

    Example:
        >>> reason_of(ValueError("no  such field.")), reason_of(KeyError())
        ('no such field', 'KeyError')
    """
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def unknown_name(kind: str, name: str, known: Iterable[str], *, see: str = "") -> UnknownNameError:
    """Return the error for a name that does not exist, listing the nearest known names.

    Args:
        kind: What was being named, such as ``"layer"``.
        name: The name that was asked for.
        known: Every name that exists.
        see: A sentence on where to find all of them; left out when empty.

    Example:
        >>> print(unknown_name("metric", "linear_cca", ["r2_cca", "linear_cka", "rbf_cka"]))
        Unknown metric 'linear_cca'; nearest known: linear_cka, r2_cca, rbf_cka.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    listed = ", ".join(near or names[:6]) or "none"
    listed += ", ..." if not near and len(names) > 6 else ""
    label = "nearest known" if near else "known"
    more = f" {see}" if see else ""
    return UnknownNameError(f"Unknown {kind} {name!r}; {label}: {listed}.{more}")
