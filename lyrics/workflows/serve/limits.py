"""What a server takes on at most, and how much of it is in use."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from lyrics.core.errors import LyricsError


@dataclass(frozen=True)
class Limits:
    """Bounds of a request and of a server.

    Args:
        body_bytes: a request's body.
        images: images of one request.
        image_pixels: pixels of one image, as its header says.
        text_chars: characters of all texts of one request.
        messages: messages of one conversation.
        phrases: phrases of one request to refine.
        tokens: ``max_tokens`` of one answer.
        seconds: from the arrival of a request to the end of its answer, waiting included.
        body_seconds: for a client to send its request.
        waiting: requests that wait for their turn.
        batch: answers that are written together.
        looks: images that are looked at together.
        memory_bytes: bodies and decoded images of all requests that are being met.
        connections: at once.
        seen_bytes: what was seen in images that may be shown again.
    """

    body_bytes: int = 32 * 2**20
    images: int = 8
    image_pixels: int = 24_000_000
    text_chars: int = 100_000
    messages: int = 256
    phrases: int = 200
    tokens: int = 1024
    seconds: float = 120.0
    body_seconds: float = 20.0
    waiting: int = 64
    batch: int = 16
    looks: int = 8
    memory_bytes: int = 2**30
    connections: int = 256
    seen_bytes: int = 256 * 2**20


class QueueFullError(LyricsError):
    """There is no room for another request now; there will be, probably in so many seconds."""

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.seconds = seconds


class StoppingError(LyricsError):
    """The server is about to end, and takes no more requests."""


class LateError(LyricsError):
    """A request took longer than ``Limits.seconds``."""


class TooLargeError(LyricsError):
    """A request is larger than a limit says."""


class Budget:
    """Bytes that may be in use at once; safe across threads."""

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self._lock = threading.Lock()

    def take(self, amount: int) -> None:
        """Raise ``TooLargeError`` for more than there ever is, ``QueueFullError`` for more than there is now."""
        if amount > self.total:
            raise TooLargeError(
                f"the request needs {amount:,} bytes of memory; this server has {self.total:,} for all."
            )
        with self._lock:
            if self.used + amount > self.total:
                raise QueueFullError("other requests hold the memory that this one needs; try again shortly.")
            self.used += amount

    def give(self, amount: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self.used -= amount
