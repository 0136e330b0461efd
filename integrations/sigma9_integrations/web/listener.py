"""Where the web service listens: addresses, the sockets bound to them, and TLS."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from sigma9_core.config import ServerSettings
from sigma9_core.errors import Sigma9Error

BACKLOG = 256
WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


@dataclass(frozen=True, slots=True)
class Address:
    """A bound address: its listening sockets, and how a person on this machine reaches it."""

    sockets: list[socket.socket]
    host: str
    """As configured."""
    port: int
    """The real one, where the configured port is 0."""
    url: str
    """Such as `http://127.0.0.1:8000`, without a slash at the end."""
    loopback: bool
    """Whether only this machine can connect."""

    def close(self) -> None:
        """Close the sockets; closing twice is fine."""
        for listening in self.sockets:
            listening.close()


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """Load `server.tls`; None without a certificate. Raise Sigma9Error naming the file that does not serve."""
    cert, key = settings.tls.cert, settings.tls.key
    if cert is None:
        if key is not None:
            raise Sigma9Error("server.tls.key is set without server.tls.cert: name the certificate too")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, path in (("cert", cert), ("key", key)):
        if path is not None and not path.is_file():
            raise Sigma9Error(f"server.tls.{name}: there is no file {path}: correct the path")
    try:
        # An empty password, so that an encrypted key is an error here instead of a question on the terminal.
        context.load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise Sigma9Error(
            f"server.tls: {cert} and {key or 'the key inside it'} can't be used ({error}): "
            "they must be a PEM certificate and its unencrypted key"
        ) from error
    return context


async def bind(settings: ServerSettings) -> Address:
    """Bind `server.host` and `server.port`; raise Sigma9Error that names them and says what to do."""
    hosts = await _resolve(settings.host)
    loopback = all(ipaddress.ip_address(host.split("%")[0]).is_loopback for host in hosts)
    secure = settings.tls.cert is not None
    if not (loopback or secure or settings.insecure):
        raise Sigma9Error(
            f"server.host: {settings.host or 'every interface'} without TLS would send tokens and orders in the "
            "clear: set server.tls.cert and server.tls.key, keep 127.0.0.1, or set server.insecure: true behind "
            "a proxy that adds TLS"
        )
    sockets: list[socket.socket] = []
    port = settings.port
    try:
        for host in hosts:
            sockets.append(_listen(host, port, settings))
            port = sockets[0].getsockname()[1]
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    shown = "127.0.0.1" if settings.host in WILDCARDS else settings.host
    shown = f"[{shown}]" if ":" in shown else shown
    url = f"{'https' if secure else 'http'}://{shown}:{port}"
    return Address(sockets, settings.host, port, url, loopback)


async def _resolve(host: str) -> Sequence[str]:
    """Give the numeric addresses of a host name, without doubles."""
    if host == "":
        return ["0.0.0.0"]  # noqa: S104 - what the configuration asks for
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Sigma9Error(
            f"server.host: '{host}' can't be resolved ({error}): name an address of this machine, as 127.0.0.1 is"
        ) from error
    return list(
        dict.fromkeys(str(entry[4][0]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6))
    )


def _listen(host: str, port: int, settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only where it is: without it answers take 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            only = 0 if host == "::" and socket.has_dualstack_ipv6() else 1
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        listening.setblocking(False)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Sigma9Error(_advice(error, settings, port)) from error
    except BaseException:
        listening.close()
        raise
    return listening


def _advice(error: OSError, settings: ServerSettings, port: int) -> str:
    where = f"{settings.host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"server.port: {where} is in use by another program, perhaps another Sigma9: "
            "stop that one, or set server.port to a free port"
        )
    if error.errno == errno.EACCES:
        return f"server.port: {where} may not be opened by this user: set server.port to one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"server.host: {where} can't be opened, no interface of this machine has this address: correct it"
    return f"server.host: {where} can't be opened ({error.strerror or error}): correct server.host and server.port"
