"""Who may come in: tokens, Host headers and the origins of browsers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers

from sigma9_core.commands import Right
from sigma9_core.contracts import Server
from sigma9_core.errors import CommandError, Sigma9Error
from sigma9_integrations.web.listener import Address

IN_QUERY = "sigma9.query_token"
"""Where the guard puts the token that it took out of a handshake's query."""
SUBPROTOCOL = "sigma9.token."
"""A WebSocket sub-protocol that carries the token after this prefix, for browsers."""
TOKEN_LENGTH = 512
"""A longer token is not looked up."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The name and right of a token that is valid; the token itself is kept to see when it is revoked."""

    name: str
    right: Right
    token: str

    def __repr__(self) -> str:
        """Keep the token out of logs and tracebacks."""
        return f"Identity(name={self.name!r}, right={self.right!r})"


class Access:
    """Decides about tokens, hosts and origins for one node."""

    def __init__(self, server: Server, address: Address) -> None:
        self._server = server
        self.origins = tuple(_normal(origin) for origin in server.settings.server.allowed_origins)
        """Foreign origins that may talk to us, as browsers write them."""
        # Against DNS rebinding: a foreign page must not reach a loopback server under a name of its own.
        self._hosts: frozenset[str] | None = None
        if address.loopback:
            named = (urlsplit(origin).hostname or "" for origin in self.origins)
            self._hosts = frozenset(("localhost", "127.0.0.1", "::1", _plain_host(address.host), *named))

    def identify(self, token: str | None) -> Identity:
        """Tell whose token it is; raise `unauthorized` where it is missing or not valid.

        A missing token is looked up like any other, so that every refusal costs the same.
        """
        known = self._server.right_of(token if token is not None and len(token) <= TOKEN_LENGTH else "")
        if token and known is not None:
            return Identity(known[0], known[1], token)
        if token:
            raise CommandError(
                "unauthorized", "the token is not valid: `sigma9 token --show` on the server tells the admin's"
            )
        raise CommandError("unauthorized", "a token is needed: send the header Authorization: Bearer <token>")

    def still_valid(self, identity: Identity) -> bool:
        """Tell whether a token has not been revoked since."""
        return self._server.right_of(identity.token) is not None

    def check_host(self, host: str | None) -> None:
        """Raise `forbidden` for a Host header that does not name this server; a missing one is no browser's."""
        if self._hosts is None or host is None or _host_of(host) in self._hosts:
            return
        raise CommandError(
            "forbidden",
            "the Host header does not name this server: behind a proxy add its origin to server.allowed_origins",
        )

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """Raise `forbidden` for a browser's page from elsewhere, unless its origin is allowed."""
        if origin is None or origin.lower() in self.origins:
            return
        if host is not None and urlsplit(origin).netloc.lower() == host.lower():
            return
        raise CommandError("forbidden", "pages of this origin may not connect: add it to server.allowed_origins")


def bearer(headers: Headers) -> str | None:
    """Take the token out of the Authorization header."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def websocket_token(
    headers: Headers, in_query: str | None, subprotocols: Iterable[str]
) -> tuple[str | None, str | None]:
    """Take the token of a handshake from header, query or sub-protocol, in this order.

    Give it with the sub-protocol that must be echoed, which a browser expects whatever was used. A token with
    signs that no sub-protocol may hold comes percent-encoded.
    """
    offered = next((name for name in subprotocols if name.startswith(SUBPROTOCOL)), None)
    token = bearer(headers) or in_query or (offered and unquote(offered.removeprefix(SUBPROTOCOL))) or None
    return token, offered


def _normal(origin: str) -> str:
    """Write an origin as browsers do; raise Sigma9Error for what is none."""
    try:
        parts = urlsplit(origin.strip().lower())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = parts.hostname
    if (
        parts.scheme not in ("http", "https")
        or not host
        or parts.path not in ("", "/")
        or parts.query
        or "*" in host
    ):
        raise Sigma9Error(
            f"server.allowed_origins: '{origin}' is not an origin: write it as https://dashboard.example.com"
        )
    shown = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{shown}" if port in (None, default) else f"{parts.scheme}://{shown}:{port}"


def _host_of(header: str) -> str:
    """Take the host out of a Host header: without port, brackets, and the dot at the end."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _plain_host(host: str) -> str:
    return host.lower().strip("[]").rstrip(".")
