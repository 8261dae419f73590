"""One writer per folder, also after a writer was killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from lyrics.core import lease
from lyrics.core.errors import LyricsError
from lyrics.core.lease import LOCK_FILE, Lease
from tests.fresh import fresh

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def _holder(folder: Path) -> int:
    """A process that holds the lease of ``folder`` until it is killed."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with Lease(folder, "refining into"):
                os.write(writes, b"x")
                signal.pause()
        finally:
            os._exit(1)
    os.close(writes)
    assert os.read(reads, 1) == b"x"
    os.close(reads)
    return pid


def test_a_second_process_is_told_who_holds_the_folder_until_that_one_is_killed(tmp_path: Path) -> None:
    pid = _holder(tmp_path)
    try:
        with pytest.raises(LyricsError, match=rf"another process \({pid} on \S+\) is refining into it"):
            Lease(tmp_path, "refining into").__enter__()
        # A refusal takes nothing away from the holder.
        with pytest.raises(LyricsError, match=str(pid)):
            Lease(tmp_path, "refining into").__enter__()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert (tmp_path / LOCK_FILE).read_text().startswith(str(pid)), "what it left behind is no lock"
    with Lease(tmp_path, "refining into"):
        pass
    assert (tmp_path / LOCK_FILE).read_bytes() == b""


def test_threads_of_one_process_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with Lease(tmp_path, "refining into"), pytest.raises(LyricsError, match="another thread of this process"):
        Lease(tmp_path / "link", "refining into").__enter__()
    with Lease(tmp_path, "refining into"):
        pass


@pytest.mark.parametrize("error", [ImportError("No module named 'fcntl'"), OSError(37, "No locks available")])
def test_where_there_are_no_locks_a_warning_says_so(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_lock(file: object) -> None:
        raise error

    monkeypatch.setattr(lease, "lock", no_lock)
    message = "cannot be locked here.*no other process is refining into it"
    with pytest.warns(UserWarning, match=message), Lease(tmp_path, "refining into"):
        pass


def test_a_system_without_fcntl_is_warned_of_too(tmp_path: Path) -> None:
    code = "sys.modules['fcntl'] = None\nfrom pathlib import Path\nfrom lyrics.core.lease import Lease\n"
    done = fresh(code + "with Lease(Path(sys.argv[1]), 'refining into'): print('held')\n", str(tmp_path))
    assert done.stdout.strip() == "held", done.stderr
    assert "files cannot be locked here" in done.stderr
