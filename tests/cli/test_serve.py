"""``lyrics serve`` before anything is served: what is missing, what is refused, what it warns of."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

import pytest

from lyrics.core.errors import LyricsError, MissingRequirementError, SpecError
from lyrics.workflows.serve.guard import LOOPBACK
from lyrics.workflows.serve.hosting import bound, check_hosts, check_installed, hosts_for, url_of
from tests.commands import Run
from tests.fresh import fresh


def test_packages_that_are_missing_are_named_with_the_command_that_installs_them(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in ("fastapi", "uvicorn") else find(name, *more)
    )
    done = run("serve")
    assert done.code == 1
    assert "lyrics serve needs fastapi and uvicorn (not installed). Run: pip install 'lyrics-vl[serve]'" in done.err
    with pytest.raises(MissingRequirementError, match="lyrics demo needs uvicorn "):
        check_installed(["json", "uvicorn"], "demo")
    check_installed(["json"])


@pytest.mark.parametrize("host", ["https://example.org", "example", "a.org/x", "a.org:80", "*.org", "", "a b.org"])
def test_hosts_that_are_no_names(host: str) -> None:
    with pytest.raises(SpecError, match="is no host's name"):
        check_hosts([host])


def test_hosts_that_are() -> None:
    check_hosts(["images.example.org", "IMAGES.example.org", "a-b.c"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "::1"])
def test_by_itself_it_answers_to_the_names_of_this_machine_alone(host: str, recwarn: Any) -> None:
    assert hosts_for(host, None) == LOOPBACK
    assert not len(recwarn)


def test_it_warns_where_everybody_may_ask(recwarn: Any) -> None:
    assert hosts_for("0.0.0.0", "key") is None
    assert not len(recwarn)
    with pytest.warns(UserWarning, match=r"everybody who reaches this machine may ask; give --api-key"):
        assert hosts_for("0.0.0.0", None) is None


def test_its_help_needs_no_package_of_its_own() -> None:
    code = "import sys; sys.argv = ['lyrics', 'serve', '--help']\nfrom lyrics.cli import main\nmain()"
    done = fresh(code, blocked=("torch", "transformers", "triton", "fastapi", "uvicorn", "starlette", "gradio"))
    assert done.returncode == 0, done.stderr
    assert "--allow-image-url" in done.stdout


def test_an_address_is_had_before_a_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LyricsError, match=f"--host 127.0.0.1 --port {port}: cannot be had"):
            bound("127.0.0.1", port)
    with bound("127.0.0.1", 0) as free:
        assert url_of(free) == f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(LyricsError, match="--host no such host: is no address of this machine"):
        bound("no such host", 0)
