"""Waiting for the end of a process that works in its threads."""

from __future__ import annotations

import signal
import threading


def wait_for_signal() -> None:
    """Return at SIGINT or SIGTERM. From the main thread alone."""
    ended = threading.Event()
    before = {one: signal.signal(one, lambda *_: ended.set()) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not ended.wait(0.5):  # on Windows nothing interrupts a longer wait
            pass
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
