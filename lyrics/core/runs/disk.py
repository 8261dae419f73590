"""The few calls through which a checkpoint reaches the disk, so that tests can stop or fail each one of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

#: Bytes that go to the file and into its hash at a time.
CHUNK = 16 * 2**20


class Disk:
    """The file system. Every method raises ``OSError``."""

    def make_folder(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> BinaryIO:
        """Return a new file; one that is there already is an error."""
        return path.open("xb", buffering=0)

    def write(self, file: BinaryIO, data: memoryview) -> int:
        """Write, and return the number of bytes written, which may be fewer than were given."""
        return file.write(data)

    def flush(self, file: BinaryIO) -> None:
        """What was written outlives a power failure."""
        os.fsync(file.fileno())

    def flush_folder(self, path: Path) -> None:
        """The folder's entries outlive a power failure."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: Path, dest: Path) -> None:
        os.rename(source, dest)

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder)
