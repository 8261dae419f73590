"""Other processes for tests: forked, so that torch is not imported again, and ended whatever happens."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # 800 modules that the first optimizer of a process imports: once here, not in every child
from accelerate.state import AcceleratorState

FORK = multiprocessing.get_context("fork")
#: A process gets so many times as long as it needs on an idle machine: being slow is no failure.
PATIENCE = 6


def _child(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    output: Path,
    errors: Path | None,
) -> None:
    """Runs ``function``; its output goes to a file. Ends without pytest's and the parent's exit handlers."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with output.open("w", buffering=1) as file, (errors or Path(os.devnull)).open("w", buffering=1) as apart:
        sys.stdout, sys.stderr = file, file if errors is None else apart
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stderr.fileno(), 2)
        os.environ.update(environment)
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)
        code = 0
        try:
            function(*arguments)
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        file.flush()
        apart.flush()
    os._exit(code)


class Child:
    """A process that runs a function.

    ``output`` holds what it printed; its errors are there, too, or apart in ``errors``.
    """

    def __init__(
        self,
        output: Path,
        function: Callable[..., Any],
        *arguments: Any,
        errors: Path | None = None,
        **environment: str,
    ) -> None:
        self.output = output
        self.process = FORK.Process(target=_child, args=(function, arguments, environment, output, errors))
        self.process.start()

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)

    def signal_group(self, number: int) -> None:
        """To the process and its loader workers, as a terminal and a scheduler do."""
        assert self.process.pid is not None
        os.killpg(self.process.pid, number)

    def group_alive(self) -> bool:
        """Whether the process or one of its workers is still there."""
        try:
            self.signal_group(0)
        except ProcessLookupError:
            return False
        return True

    def end(self, timeout_s: float) -> int:
        """Exit code; fails the test where the process does not end in time.

        ``timeout_s`` is that of an idle machine; a busy one gets ``PATIENCE`` times as long.
        """
        timeout_s *= PATIENCE
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"still running after {timeout_s} s:\n{self.output.read_text()}"
        return self.process.exitcode

    @property
    def text(self) -> str:
        return self.output.read_text()


@contextmanager
def ranks(count: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> Iterator[list[Child]]:
    """``function(*arguments)`` in ``count`` processes that find each other as torchrun's would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(count):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        children.append(Child(folder / f"rank{rank}.txt", function, *arguments, **environment))
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.process.join(10)


def all_end(children: list[Child], timeout_s: float) -> None:
    """Every process ends with 0."""
    for child in children:
        assert child.end(timeout_s) == 0, child.text
