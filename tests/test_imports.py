"""What importing the package does to a machine: nothing; and that it can be imported where POSIX's modules are missing,
as on Windows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fresh import ROOT

PACKAGE = ROOT / "lyrics"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE.rglob("*.py")
)

#: Other people's packages first: what they do on Linux is theirs. Then this one's modules, watched, on a system without
#: POSIX.
CODE = r"""
import builtins, importlib, importlib.util, json, os, signal, sys

import torch, torch.utils.data, torch.distributed, transformers, peft, accelerate, huggingface_hub, safetensors.torch  # noqa
from transformers import AutoModelForCausalLM, BertModel, PreTrainedTokenizerFast  # noqa
for name in ("triton", "matplotlib", "pycocotools", "timm", "lmms_eval", "torch.utils.tensorboard",
             "transformers.models.lfm2", "transformers.models.grounding_dino", "transformers.models.sam_hq",
             "transformers.models.swin", "transformers.models.clip"):
    try:
        importlib.import_module(name)
    except Exception:
        pass

POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline", "crypt", "curses"}
real = builtins.__import__

def without_posix(name, globals=None, locals=None, fromlist=(), level=0):
    if name.partition(".")[0] in POSIX and str((globals or {}).get("__name__", "")).startswith("lyrics"):
        raise ImportError(f"{name} is not there on Windows")
    return real(name, globals, locals, fromlist, level)

events = []

def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname" or event in (
        "os.mkdir", "os.remove", "os.rename", "os.symlink", "os.link", "os.truncate", "os.chmod", "subprocess.Popen",
        "os.system", "os.fork", "os.posix_spawn", "os.exec", "urllib.Request", "tempfile.mkdtemp", "tempfile.mkstemp",
        "shutil.copyfile",
    ):
        events.append(f"{event} {arguments!r}"[:200])
    if event == "open":
        path, mode, flags = arguments
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
            events.append(f"open {arguments!r}"[:200])

missing = {}
for owner, names in (
    (os, ("fork", "mkfifo", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "geteuid", "getuid", "getgid", "setsid",
          "killpg", "statvfs",
          "sysconf", "sched_getaffinity", "uname", "getloadavg", "posix_spawn", "WNOHANG")),
    (signal, ("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGQUIT", "alarm",
              "setitimer", "pthread_kill")),
):
    for name in names:
        if hasattr(owner, name):
            missing[owner, name] = getattr(owner, name)
            delattr(owner, name)
builtins.__import__ = without_posix
sys.addaudithook(watch)
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        found[name] = ""
    except ModuleNotFoundError as error:
        outside = (error.name or "lyrics").partition(".")[0]
        found[name] = "" if outside not in ("lyrics", *POSIX) else repr(error)
    except BaseException as error:
        found[name] = repr(error)
builtins.__import__ = real
for (owner, name), value in missing.items():
    setattr(owner, name, value)
print(json.dumps({"found": found, "events": events, "loaded": sum(name in sys.modules for name in sys.argv[1:])}))
"""


def environment(home: Path) -> dict[str, str]:
    """One in which a cache or a configuration would show: everything that is usually under home is under an empty
    folder.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "XDG_", "TORCH", "TRITON", "LYRICS"))
    }
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(home)}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-c", CODE, *MODULES],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_every_module_imports_without_posix(watched: Mapping[str, Any]) -> None:
    assert {name: why for name, why in watched["found"].items() if why} == {}
    assert watched["loaded"] > 0.9 * len(MODULES) > 100


def test_import_writes_nothing_and_reaches_nothing(watched: Mapping[str, Any]) -> None:
    assert watched["events"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",),
        ("--help",),
        ("list",),
        ("list", "--json"),
        ("show", "lyrics-13b"),
        ("show", "ram-plus", "--json"),
    ],
    ids=" ".join,
)
def test_light_commands_leave_no_trace(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """No folder under home, no file where they are called, no connection."""
    watch = (
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event.startswith('socket.') or event in ('os.mkdir', 'subprocess.Popen'):\n"
        "        print('TRACE', event, arguments, file=sys.stderr)\n"
        "sys.addaudithook(watch)\n"
        "from lyrics.cli import main\n"
        "main()\n"
    )
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", watch, *arguments],
        cwd=here,
        env={**environment(home), "LYRICS_PLUGINS": "none"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "TRACE" not in done.stderr
    assert list(home.iterdir()) == list(here.iterdir()) == []


def test_the_watch_sees(tmp_path: Path) -> None:
    """A module that does all of it is caught, so that nothing found above means something."""
    package = tmp_path / "lyrics_naughty.py"
    package.write_text("import os, socket\nos.mkdir('made')\nopen('made/file', 'w').close()\nsocket.socket().close()\n")
    fcntl = tmp_path / "lyrics_posix.py"
    fcntl.write_text("import fcntl\n")
    kill = tmp_path / "lyrics_kill.py"
    kill.write_text("import signal\nsignal.SIGKILL\n")
    names = ["lyrics_naughty", "lyrics_posix", "lyrics_kill"]
    done = subprocess.run(
        [sys.executable, "-c", _light(CODE), *names],
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "fcntl is not there on Windows" in found["found"]["lyrics_posix"]
    assert "SIGKILL" in found["found"]["lyrics_kill"]
    assert any("os.mkdir" in event for event in found["events"])
    assert any(event.startswith("open") for event in found["events"])
    assert any(event.startswith("socket") for event in found["events"])


def _light(code: str) -> str:
    """The same without other people's packages."""
    head, _, rest = code.partition("import torch")
    return head + rest[rest.index("POSIX = ") :]
