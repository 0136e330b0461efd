"""The pages: the dashboard and the browsable description, each one static file without anything from elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

FOLDER: Final = Path(__file__).parent / "static"
SCRIPTS: Final = ("ask", "dashboard", "docs", "draw", "events", "panels", "rest", "state", "status")
FILES: Final = {
    "/": ("dashboard.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/static/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/static/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in SCRIPTS},
}
"""Path, file and type of everything that needs no token."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Page:
    """One file in memory."""

    body: bytes
    kind: str
    tag: str

    def respond(self, request: Request) -> Response:
        """Answer with the file, or with 304 where the browser has it."""
        headers = {"ETag": self.tag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type=self.kind)


def load_pages() -> dict[str, Page]:
    """Read every file once."""
    pages = {}
    for path, (name, kind) in FILES.items():
        body = (FOLDER / name).read_bytes()
        pages[path] = Page(body, kind, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return pages
