"""One writer per folder. The system drops the lock when its process ends, however it ends: no stale one remains."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from lyrics.core.errors import LyricsError
from lyrics.core.files import name_for_messages

LOCK_FILE = ".lock"
_HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
# A lock of the system belongs to the process, not to the thread.
_held_here: set[str] = set()
_guard = threading.Lock()


class Lease:
    """The right to write into ``folder``, as a context manager.

    Args:
        folder: exists.
        doing: what the holder does there, for the message, such as ``refining into``.

    Entering raises ``LyricsError`` naming the process that holds it. Where the system or the file system has no locks,
    entering warns.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        self.folder, self.doing = folder, doing
        self._key = os.path.realpath(folder)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        with _guard:
            if self._key in _held_here:
                raise self._refusal(f"another thread of this process ({os.getpid()})")
            # Not emptied here: it says who holds the lock.
            file = (self.folder / LOCK_FILE).open("a+b")
            try:
                self._lock(file)
            except LyricsError:
                file.close()
                raise
            file.truncate(0)
            file.write(f"{os.getpid()} {socket.gethostname()}".encode())
            file.flush()
            self._file = file
            _held_here.add(self._key)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        with _guard:
            with contextlib.suppress(OSError):  # a full disk is reported by whoever wrote results
                self._file.truncate(0)
            self._file.close()
            _held_here.discard(self._key)

    def _lock(self, file: IO[bytes]) -> None:
        try:
            lock(file)
        except (OSError, ImportError) as error:
            if isinstance(error, OSError) and error.errno in _HELD_ELSEWHERE:
                file.seek(0)
                pid, _, host = file.read(300).decode(errors="replace").partition(" ")
                raise self._refusal(f"another process ({pid} on {host})" if host else "another process") from None
            reason = getattr(error, "strerror", None) or str(error)
            warnings.warn(
                f"{name_for_messages(self.folder)}: files cannot be locked here ({reason}); make sure that no other "
                f"process is {self.doing} it.",
                stacklevel=4,
            )

    def _refusal(self, who: str) -> LyricsError:
        return LyricsError(
            f"{name_for_messages(self.folder)}: {who} is {self.doing} it; wait for it, or give another folder."
        )


def lock(file: IO[bytes]) -> None:
    """Lock a file for this process alone, without waiting.

    Raises ``OSError``, or ``ImportError`` on a system without locks.
    """
    if sys.platform == "win32":
        import msvcrt

        # Nobody else may read a byte that is locked there, so one is taken that is never written.
        file.seek(2**30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
