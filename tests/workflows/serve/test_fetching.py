"""Images from elsewhere: nothing is reached unless its host was named, and never an address that is not public."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lyrics.core.errors import ImageError
from lyrics.workflows.serve.fetching import Fetcher, is_public

ALLOWED = "images.example.org"
PUBLIC = "93.184.215.14"

#: Addresses that no server may be made to call, in every spelling that something on the way might understand.
NOT_PUBLIC = (
    "127.0.0.1", "127.1.2.3", "127.0.0.53", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1",
    "172.31.255.254", "192.168.0.1", "192.168.255.255", "169.254.169.254", "169.254.170.2", "100.64.0.1",
    "100.100.100.200", "192.0.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1",
    "::ffff:169.254.169.254", "::ffff:8.8.8.8", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1",
    "ff02::1", "2001:db8::1", "100::1", "64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::a00:1", "2002:7f00:1::",
    "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "168.63.129.16", "3fff::1", "localhost", "",
    "2130706433", "0x7f.1", "8.8.8.8.8",
)  # fmt: skip

#: URLs that a client may send: loopback in a dozen spellings, metadata services, other schemes, ports, user names.
URLS = (
    "http://127.0.0.1/a.png", "https://127.0.0.1/a.png", "https://127.0.0.1:443/", "https://localhost/",
    "https://LOCALHOST/", "https://localhost.localdomain/", "https://127.1/", "https://127.0.1/",
    "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://0177.0.0.1/",
    "https://017700000001/", "https://0/", "https://0.0.0.0/", "https://[::1]/", "https://[::]/",
    "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[0:0:0:0:0:0:0:1]/",
    "https://[fe80::1%25lo]/", "https://[64:ff9b::7f00:1]/", "https://127.0.0.1.nip.io/", "https://localtest.me/",
    "http://169.254.169.254/latest/meta-data/", "https://169.254.169.254/latest/meta-data/",
    "https://[fd00:ec2::254]/", "http://metadata.google.internal/", "https://metadata/", "https://100.100.100.200/",
    "https://192.0.0.192/", "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/", "https://0xa9fea9fe/",
    "https://2852039166/", "https://user@127.0.0.1/", f"https://{ALLOWED}@127.0.0.1/",
    f"https://{ALLOWED}:443@127.0.0.1/", f"https://127.0.0.1#@{ALLOWED}/", f"https://127.0.0.1\\@{ALLOWED}/",
    f"https://{ALLOWED}\\@127.0.0.1/", f"https://{ALLOWED}%00.evil.org/", f"https://{ALLOWED}%2eevil.org/",
    f"https://{ALLOWED}.evil.org/", f"https://evil.org/?{ALLOWED}", f"https://evil.org#{ALLOWED}",
    f"https://evil.org/{ALLOWED}", f"https://user:pass@{ALLOWED}/a.png", f"https://{ALLOWED}:22/",
    f"https://{ALLOWED}:0/", f"https://{ALLOWED}:99999/", f"https://{ALLOWED}:x/", f"https://{ALLOWED}:/..",
    f"http://{ALLOWED}/a.png", f"ftp://{ALLOWED}/a.png", f"gopher://{ALLOWED}:443/_x", f"//{ALLOWED}/a.png",
    f"{ALLOWED}/a.png", f"https:{ALLOWED}/a.png", f"https:///{ALLOWED}/a.png", f"https://{ALLOWED}./a.png",
    "file:///etc/passwd", "file://localhost/etc/passwd", "FILE:///etc/passwd", "jar:https://x!/",
    "dict://127.0.0.1:11211/", "ldap://127.0.0.1/", "unix:///var/run/docker.sock", "php://filter",
    "javascript:alert(1)", "blob:https://x/1", "about:blank", "/etc/passwd", "../../etc/passwd",
    "C:\\Windows\\win.ini", "\\\\127.0.0.1\\share", "https://", "https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
    "https://\uff11\uff12\uff17.0.0.1/", f"https://{ALLOWED}\r\nHost: 127.0.0.1/",
    f"https://{ALLOWED}/ HTTP/1.1\r\nX: y", f"https://{ALLOWED}\t/", "https://" + "a" * 3000 + ".org/", "",
)  # fmt: skip


class Network:
    """What stands in for the network: names with addresses, and hosts that answer; it notes who is called."""

    def __init__(self, addresses: Sequence[str] = (PUBLIC,), *answers: bytes, slowly: float = 0.0) -> None:
        self.addresses, self.answers, self.slowly = addresses, list(answers), slowly
        self.looked_up: list[str] = []
        self.dialed: list[str] = []
        self.asked: list[bytes] = []

    def resolve(self, host: str) -> Sequence[str]:
        self.looked_up.append(host)
        if not self.addresses:
            raise OSError("no such name")
        return self.addresses

    def dial(self, address: str, seconds: float) -> socket.socket:
        assert seconds > 0
        self.dialed.append(address)
        here, there = socket.socketpair()
        answer = self.answers.pop(0)

        def reply() -> None:
            with there:
                self.asked.append(there.recv(65536))
                try:
                    for start in range(0, len(answer), 1 if self.slowly else 1 << 20):
                        there.sendall(answer[start : start + (1 if self.slowly else 1 << 20)])
                        time.sleep(self.slowly)
                except OSError:
                    pass

        threading.Thread(target=reply, daemon=True).start()
        return here

    def fetcher(self, *hosts: str, **more: float) -> Fetcher:
        network: dict[str, Any] = {"resolve": self.resolve, "dial": self.dial, "tls": lambda plain, _: plain}
        return Fetcher(hosts or (ALLOWED,), **network, **more)


def ok(body: bytes = b"pixels", *headers: str) -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers])
    return head.encode() + b"\r\n\r\n" + body


def moved(to: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.fixture
def sockets() -> Callable[[], list[str]]:
    """What was asked of the system's network since."""
    found: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event.startswith("socket."):
            found.append(f"{event} {arguments}")

    sys.addaudithook(watch)

    def end() -> list[str]:
        nonlocal watching
        watching = False
        return found

    return end


def test_there_are_enough_ways() -> None:
    assert len(set(URLS)) == len(URLS) >= 80


def test_nothing_is_fetched_unless_it_was_allowed(sockets: Callable[[], list[str]]) -> None:
    """Not a socket, and not a question to the DNS."""
    fetch = Fetcher()
    for url in (*URLS, f"https://{ALLOWED}/a.png"):
        with pytest.raises(ImageError, match="this server fetches nothing"):
            fetch(url, "image")
    assert sockets() == []


def test_nothing_else_is_fetched_where_a_host_was_allowed(sockets: Callable[[], list[str]]) -> None:
    fetch = Fetcher([ALLOWED])
    for url in URLS:
        with pytest.raises(ImageError) as caught:
            fetch(url, "image")
        assert "cannot be fetched" not in str(caught.value), url
    assert sockets() == []


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_a_name_whose_address_is_not_public_is_not_called(address: str) -> None:
    """Alone, and beside one that is."""
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC]):
        network = Network(addresses)
        with pytest.raises(ImageError, match="has an address that is not public"):
            network.fetcher()(f"https://{ALLOWED}/a.png", "image")
        assert network.dialed == []


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def test_an_image_of_an_allowed_host() -> None:
    network = Network([PUBLIC], ok())
    assert network.fetcher()(f"https://{ALLOWED.upper()}:443/a%20b.png?x=1", "image") == b"pixels"
    assert (network.looked_up, network.dialed) == ([ALLOWED], [PUBLIC])
    lines = network.asked[0].decode().split("\r\n")
    assert lines[0] == "GET /a%20b.png?x=1 HTTP/1.1"
    assert f"Host: {ALLOWED}" in lines


def test_a_name_is_looked_up_once_and_the_checked_address_is_called() -> None:
    """A name that is another one's the second time (DNS rebinding) changes nothing."""
    network = Network([PUBLIC], ok())
    answers = [[PUBLIC], ["127.0.0.1"]]
    fetch = Fetcher([ALLOWED], resolve=lambda host: answers.pop(0), dial=network.dial, tls=lambda plain, _: plain)
    assert fetch(f"https://{ALLOWED}/", "image") == b"pixels"
    assert (network.dialed, answers) == ([PUBLIC], [["127.0.0.1"]])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_within_what_is_allowed(status: int) -> None:
    network = Network([PUBLIC], moved("/b.png", status), moved("https://other.example.org/c", status), ok())
    assert network.fetcher(ALLOWED, "other.example.org")(f"https://{ALLOWED}/a", "image") == b"pixels"
    assert [asked.split()[1] for asked in network.asked] == [b"/a", b"/b.png", b"/c"]
    assert network.looked_up == [ALLOWED, ALLOWED, "other.example.org"]


@pytest.mark.parametrize("url", [url for url in URLS if "://" in url and "\n" not in url and url.isascii()])
def test_a_redirect_is_checked_as_the_first_address_was(url: str) -> None:
    """Some are read as paths of the host that sent them."""
    network = Network([PUBLIC], moved(url), moved("https://127.0.0.1/"))
    with pytest.raises(ImageError):
        network.fetcher()(f"https://{ALLOWED}/a", "image")
    assert (set(network.looked_up), set(network.dialed)) == ({ALLOWED}, {PUBLIC})


def test_a_redirect_to_a_name_that_is_no_longer_public() -> None:
    network = Network([PUBLIC], moved("/b"))
    answers = [[PUBLIC], ["169.254.169.254"]]
    fetch = Fetcher([ALLOWED], resolve=lambda host: answers.pop(0), dial=network.dial, tls=lambda plain, _: plain)
    with pytest.raises(ImageError, match="not public"):
        fetch(f"https://{ALLOWED}/", "image")
    assert network.dialed == [PUBLIC]


def test_redirects_end() -> None:
    network = Network([PUBLIC], *[moved("/again")] * 9)
    with pytest.raises(ImageError, match="redirected more than 3 times"):
        network.fetcher()(f"https://{ALLOWED}/", "image")
    assert len(network.dialed) == 4


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (ok(b"x" * 2000), "has more than 1,000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000, "has more than 1,000 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000, "has more than 1,000 bytes"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered with status 404"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "answered with status 302"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nshort", "cannot be fetched"),
        (b"", "cannot be fetched"),
    ],
    ids=range(8),
)
def test_answers_that_are_no_use(answer: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        Network([PUBLIC], answer).fetcher(max_bytes=1000)(f"https://{ALLOWED}/", "image")


def test_a_host_that_sends_a_byte_at_a_time_is_left() -> None:
    network = Network([PUBLIC], ok(b"x" * 900), slowly=0.05)
    began = time.monotonic()
    with pytest.raises(ImageError, match="cannot be fetched"):
        network.fetcher(seconds=0.5)(f"https://{ALLOWED}/", "image")
    assert time.monotonic() - began < 10


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(ImageError, match="not known to the DNS"):
        Network([]).fetcher()(f"https://{ALLOWED}/", "image")


def test_a_host_that_cannot_be_reached() -> None:
    def dial(address: str, seconds: float) -> socket.socket:
        raise ConnectionRefusedError

    fetch = Fetcher([ALLOWED], resolve=lambda host: [PUBLIC], dial=dial)
    with pytest.raises(ImageError, match="ConnectionRefusedError"):
        fetch(f"https://{ALLOWED}/", "image")
