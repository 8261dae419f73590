"""What can go wrong while training, beyond a wrong configuration (``SpecError``)."""

from __future__ import annotations

from lyrics.core.errors import LyricsError


class TrainingError(LyricsError):
    """Training cannot go on: losses that are not finite, saves that fail, a process that is gone. The message says how to resume."""


class CheckpointError(LyricsError):
    """A checkpoint cannot be used: torn, altered, or of another run. The message names the file."""
