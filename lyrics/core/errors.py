"""The errors a user can meet. Each message says what is wrong, where, and what to do.

All derive from ``ValueError`` through ``LyricsError``; the original exception, if there is one, is chained. Broken
invariants of our own are ``assert``s, not members of this tree.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LyricsError(ValueError):
    """Base of every error meant for a user."""


class SpecError(LyricsError):
    """A specification, an override or an option is not valid: unknown key, wrong type, value out of range."""


class UnknownNameError(SpecError):
    """No component, preset, kind or codec has that name. The message offers the nearest one."""


class AmbiguousNameError(SpecError):
    """Two distributions provide the name; the message gives both qualified spellings."""


class WiringError(SpecError):
    """Two parts do not fit. The message gives both numbers and the override that fixes it."""


class MissingRequirementError(LyricsError):
    """A component needs a package that is not installed. The message gives the command that installs it."""


class PluginError(LyricsError):
    """A plugin is installed but broken. The message names distribution, version, entry point and cause."""


class ContractError(LyricsError):
    """A component was built but does not keep its kind's contract (see ``lyrics.core.contracts``)."""


class WeightsError(LyricsError):
    """Weights cannot be found, read, or matched with the model."""


class TrainingError(LyricsError):
    """Training cannot go on: losses that are not finite, saves that fail, a process that is gone.

    The message says how to resume.
    """


class CheckpointError(LyricsError):
    """A checkpoint cannot be used: torn, altered, or of another run. The message names the file."""


class NotFiniteError(LyricsError):
    """A part of a model gave NaN or infinity while it answered. The message names the first one that did."""


class GeometryError(LyricsError):
    """A box or a frame is not valid: not finite, reversed, outside its image, or of no area."""


class ImageError(LyricsError):
    """An image cannot be used. ``kind`` says why in one word, for ledgers.

    Kinds: ``missing``, ``folder``, ``special`` (a FIFO, socket or device), ``unreadable`` (the system refuses),
    ``empty``, ``format`` (not one that is read), ``large`` (too many pixels, or too much memory), ``truncated``,
    ``corrupt``, ``expert`` (an expert of the refiner failed on it), ``drawing`` (its drawing failed). ``sha256`` is
    that of the file's bytes, where they were read whole.
    """

    def __init__(self, message: str, kind: str, *, sha256: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.sha256 = sha256


class PromptError(LyricsError):
    """A prompt cannot be met: empty, too long for the model, a missing image, a box outside of its image."""


class DatasetError(LyricsError):
    """A data set as a whole cannot be used: a file is missing or malformed, or an index does not match its tar.

    Not a bad sample.
    """


class SampleError(LyricsError):
    """One record of a data set cannot be used, the others can. ``kind`` says why in one word, for ledgers.

    Kinds: ``missing`` (what it names is not there), ``record`` (a key is missing or of another type), ``member`` (of a
    tar), ``checksum``, ``size`` (its boxes are of another image than the one that is read).
    ``sha256`` is that of the bytes, where they were read.
    """

    def __init__(self, message: str, kind: str, *, sha256: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.sha256 = sha256


class StorageError(LyricsError):
    """Storage failed while a data set was read, and went on failing: no statement about the data.

    The run stops and may be resumed.
    """


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice most like ``name``, or None when nothing is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` with a leading space, or an empty string."""
    match = nearest(name, choices)
    return f" Did you mean {match!r}?" if match else ""
