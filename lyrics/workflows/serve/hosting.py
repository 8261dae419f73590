"""What is checked, and had, before a model is loaded for a server. Needs none of its packages."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import warnings
from collections.abc import Iterable

from lyrics.core.errors import LyricsError, MissingRequirementError, SpecError
from lyrics.workflows.serve.guard import LOOPBACK

_HOST = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")


def check_installed(packages: Iterable[str] = ("fastapi", "uvicorn"), extra: str = "serve") -> None:
    """Raise ``MissingRequirementError`` that names what is not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingRequirementError(
            f"lyrics {extra} needs {' and '.join(missing)} (not installed). Run: pip install 'lyrics-vl[{extra}]'"
        )


def check_hosts(hosts: Iterable[str]) -> None:
    """Raise ``SpecError`` for what is no host's name."""
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise SpecError(f"--allow-image-url {host}: is no host's name; write images.example.org, without https://.")


def hosts_for(host: str, api_key: str | None) -> frozenset[str] | None:
    """The names by which a server that listens on ``host`` is asked; None for any.

    Warns where everybody who reaches it may ask.
    """
    name = f"[{host}]" if ":" in host else host.lower()
    if name in LOOPBACK:
        return LOOPBACK
    if api_key is None:
        warnings.warn(
            f"--host {host}: everybody who reaches this machine may ask; give --api-key, or listen on 127.0.0.1.",
            stacklevel=2,
        )
    return None


def bound(host: str, port: int) -> socket.socket:
    """Return a socket with that address, on which nobody listens yet; port 0 is any that is free.

    Raises ``LyricsError`` where the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise LyricsError(f"--host {host}: is no address of this machine ({error.strerror or error}).") from None
    try:
        if os.name == "posix":  # elsewhere this would share the address with whoever has it
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise LyricsError(
            f"--host {host} --port {port}: cannot be had ({error.strerror or error}); give another port, or 0 for any."
        ) from None
    return found


def url_of(listening: socket.socket) -> str:
    """The address of a socket for a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
