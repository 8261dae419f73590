"""Try plugins in a process of their own, before this one loads them.

What ends, crashes or hangs there harms nothing here.

A manifest is third-party code. What it raises can be caught; what ends the process (``os._exit``, a fault in native
code) or never returns cannot. So the third parties are first loaded by a child, one after another; the child says what
it begins and what it has finished, and the one that it began and never finished is the culprit. The rest go on in
another child.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from lyrics.core.errors import LyricsError
from lyrics.core.json_reading import parse_json

#: How long one plugin may take. A manifest only yields records; this leaves room for one that wrongly imports torch
#: from a slow disk.
SECONDS = 30.0
#: Set in the child, so that a manifest which itself looks for plugins does not start children without end.
INSIDE = "LYRICS_PLUGIN_PROCESS"
_STDERR_BYTES = 4000


@dataclass(frozen=True)
class Trial:
    """What came of loading one plugin in the child.

    ``cause`` is empty where it can be loaded here too; otherwise ``output`` is its traceback or the end of what it
    printed. ``fatal`` says that it took the process with it.
    """

    cause: str = ""
    output: str = ""
    seconds: float = 0.0
    fatal: bool = False


def python(code: str) -> list[str]:
    """Return the command that runs ``code`` with the modules that this process sees, wherever it was started from."""
    # -P: a folder of the working directory that happens to be named like a package must not take its place.
    return [sys.executable, "-P", "-c", f"import sys\nsys.path[:] = {sys.path!r}\n{code}"]


def try_plugins(names: Sequence[str], code: str) -> dict[str, Trial]:
    """Load plugins in child processes and return what came of each.

    Args:
        names: one for each plugin, all different; the child gets them as its only argument, a JSON list.
        code: what the child runs. It loads the plugins in this order, and calls ``begin(name)`` before and
            ``finish(name, trial)`` after each of them, on a ``Messages``.

    Returns an empty dictionary where no process can be started: the plugins are then loaded untried.
    """
    found: dict[str, Trial] = {}
    waiting = list(names) if sys.executable else []  # Python within another program may not know where it is
    while waiting:
        try:
            tried = _one_child(waiting, code)
        except OSError:
            return found
        if not tried:  # the child could not even begin
            return found
        found |= tried
        waiting = [name for name in waiting if name not in found]
    return found


def _one_child(names: Sequence[str], code: str) -> dict[str, Trial]:
    """Everything up to the first plugin that ends the child."""
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [*python(code), json.dumps(list(names))],
            stdin=subprocess.DEVNULL,  # a manifest that asks something gets no answer
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, INSIDE: "1", "PYTHONFAULTHANDLER": "1"},
        )
        try:
            found, culprit, timed_out = _follow(child)
        finally:
            child.kill()
            child.wait()
        if culprit:
            cause = f"its import did not end within {SECONDS:g} seconds." if timed_out else _end_of(child.returncode)
            found[culprit] = Trial(cause, _tail(errors), SECONDS if timed_out else 0.0, fatal=True)
    return found


def _follow(child: subprocess.Popen[bytes]) -> tuple[dict[str, Trial], str, bool]:
    """Return the finished plugins, the one begun last and not finished, and whether its time was up."""
    assert child.stdout is not None
    lines: queue.Queue[bytes | None] = queue.Queue()
    # Not joined: a process that a plugin has started may hold the pipe open for as long as it likes.
    threading.Thread(target=_pass_on, args=(child.stdout, lines), daemon=True).start()
    found: dict[str, Trial] = {}
    begun = ""
    while True:
        try:
            line = lines.get(timeout=SECONDS)
        except queue.Empty:
            return found, begun, child.poll() is None
        if line is None:
            try:
                child.wait(SECONDS)
            except subprocess.TimeoutExpired:
                return found, begun, True
            return found, begun, False
        try:
            message = parse_json(line)
            if "begin" in message:
                begun = message["begin"]
            elif "done" in message:
                return found, "", False
            else:
                found[message["finish"]] = Trial(message["cause"], message["output"], message["seconds"])
                begun = ""
        except (LyricsError, KeyError, TypeError):
            continue  # not ours


def _pass_on(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _end_of(code: int) -> str:
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"it crashes the process that imports it ({name})."
    return f"it ends the process that imports it, as os._exit({code}) does."


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _STDERR_BYTES))
    return file.read().decode("utf-8", "replace")


class Messages:
    """The child's side: what it says to the process that started it.

    Whatever plugins print goes to standard error instead.
    """

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
        os.dup2(2, 1)

    def begin(self, name: str) -> None:
        self._say({"begin": name})

    def finish(self, name: str, trial: Trial) -> None:
        self._say({"finish": name, "cause": trial.cause, "output": trial.output, "seconds": trial.seconds})

    def end(self) -> None:
        """Say that all is done, and end the process without what plugins have left to be done at its end."""
        self._say({"done": True})
        os._exit(0)

    def _say(self, message: dict[str, object]) -> None:
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()
