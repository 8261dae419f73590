"""Images from elsewhere, for those who allow it: of named hosts, by https, and only from public addresses.

A name is looked up once, every address that it has is checked, and the connection is made to one that was: a name that
changes between the check and the connection changes nothing. Each redirect is checked as the first address was.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urljoin, urlsplit

from lyrics.core.errors import ImageError

REDIRECTS = 3
_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))+")

#: A host's name -> its addresses, as text.
Resolve = Callable[[str], Sequence[str]]
#: A checked address and a time limit in seconds -> a connection to its port 443, before TLS.
Dial = Callable[[str, float], socket.socket]


def resolve(host: str) -> list[str]:
    """Look a name up in the DNS; raises ``OSError``."""
    found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def dial(address: str, seconds: float) -> socket.socket:
    """Connect; raises ``OSError``."""
    return socket.create_connection((address, 443), timeout=seconds)


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet: not loopback, private, link-local, multicast or reserved,
    and not an IPv6 address that stands for one of IPv4.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    special = any(found in network for network in _SPECIAL if network.version == found.version)
    if isinstance(found, ipaddress.IPv6Address) and (found.scope_id or found not in _UNICAST):
        return False
    return found.is_global and not (special or found.is_multicast or found.is_reserved)


_UNICAST = ipaddress.IPv6Network("2000::/3")
#: What versions of ``ipaddress`` call global: IETF protocols (and a cloud's metadata), 6to4, Teredo and its kin, the
#: documentation's second range; and the public address at which Azure's host answers each of its machines.
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",
            "192.88.99.0/24",
            "100.64.0.0/10",
            "168.63.129.16/32",
            "2001::/23",
            "2002::/16",
            "3fff::/20",
        ),
    )
)


class Fetcher:
    """Fetches images of allowed hosts.

    Args:
        hosts: their names, each exactly as it stands in a URL; none: nothing is fetched.
        max_bytes: of one image.
        seconds: for one image, redirects included.
        resolve, dial, tls: the network, for tests.
    """

    def __init__(
        self,
        hosts: Iterable[str] = (),
        *,
        max_bytes: int = 32 * 2**20,
        seconds: float = 10.0,
        resolve: Resolve = resolve,
        dial: Dial = dial,
        tls: Callable[[socket.socket, str], socket.socket] | None = None,
    ) -> None:
        self.hosts = frozenset(host.lower() for host in hosts)
        self.max_bytes, self.seconds = max_bytes, seconds
        self._resolve, self._dial = resolve, dial
        self._tls = tls or _tls

    def __call__(self, url: str, name: str) -> bytes:
        """Return what is at a URL. Raises ``ImageError``; ``name`` is what messages call it."""
        end = time.monotonic() + self.seconds
        for _ in range(REDIRECTS + 1):
            host, target = self._checked(url, name)
            address = self._address(host, name)
            try:
                status, location, body = self._get(address, host, target, end, name)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, ImageError):
                    raise
                raise ImageError(f"{name}: cannot be fetched from {host}: {type(error).__name__}.", "missing") from None
            if status == 200:
                return body
            if status not in (301, 302, 303, 307, 308) or not location:
                raise ImageError(f"{name}: {host} answered with status {status}.", "missing")
            url = urljoin(f"https://{host}{target}", location)
        raise ImageError(f"{name}: is redirected more than {REDIRECTS} times.", "missing")

    def _checked(self, url: str, name: str) -> tuple[str, str]:
        """The host of a URL that may be fetched, and its path with its query."""
        if not self.hosts:
            raise ImageError(
                f"{name}: this server fetches nothing; send the image itself, as a data URL "
                "(data:image/png;base64,...).",
                "missing",
            )
        if len(url) > 2000 or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise ImageError(
                f"{name}: is no URL that is fetched: up to 2,000 printable characters of ASCII.", "missing"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ImageError(f"{name}: is no URL.", "missing") from None
        if parts.scheme.lower() != "https" or port not in (None, 443):
            raise ImageError(f"{name}: only https:// is fetched, from its usual port.", "missing")
        if "@" in parts.netloc:
            raise ImageError(f"{name}: has a user name; leave that out.", "missing")
        host = (parts.hostname or "").lower()
        if host not in self.hosts or not _NAME.fullmatch(host) or parts.netloc.lower() not in (host, f"{host}:443"):
            raise ImageError(f"{name}: its host is none of those that this server fetches from.", "missing")
        return host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _address(self, host: str, name: str) -> str:
        """One address of a host, all of whose addresses are public."""
        try:
            found = list(self._resolve(host))
        except OSError:
            raise ImageError(f"{name}: {host} is not known to the DNS.", "missing") from None
        if not found or not all(map(is_public, found)):
            raise ImageError(f"{name}: {host} has an address that is not public.", "missing")
        return found[0]

    def _get(self, address: str, host: str, target: str, end: float, name: str) -> tuple[int, str, bytes]:
        """Status, where it is redirected to, and body."""
        plain = self._dial(address, _left(end))
        try:
            plain.settimeout(_left(end))
            secure = self._tls(plain, host)
        except BaseException:
            plain.close()
            raise
        # A time limit of a socket is for each of its reads, and somebody may send a byte at a time.
        limit = threading.Timer(_left(end), _hang_up, [secure])
        limit.daemon = True
        limit.start()
        try:
            connection = http.client.HTTPSConnection(host)
            connection.sock = secure
            connection.request(
                "GET", target, headers={"Host": host, "Accept": "image/*", "Accept-Encoding": "identity"}
            )
            response = connection.getresponse()
            if response.status != 200:
                return response.status, response.getheader("Location") or "", b""
            if (response.length or 0) > self.max_bytes:
                raise self._too_large(name)
            body = response.read(self.max_bytes + 1)
            if len(body) > self.max_bytes:
                raise self._too_large(name)
            if response.length:
                raise http.client.IncompleteRead(body, response.length)
            _left(end)
            return 200, "", body
        finally:
            limit.cancel()
            secure.close()

    def _too_large(self, name: str) -> ImageError:
        return ImageError(f"{name}: has more than {self.max_bytes:,} bytes.", "large")


def _tls(plain: socket.socket, host: str) -> socket.socket:
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _left(end: float) -> float:
    """Seconds until ``end``. Raises ``TimeoutError`` when there are none."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
