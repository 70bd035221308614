"""The server: which requests are refused, and what goes with an answer."""

from __future__ import annotations

import hmac
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Lock
from typing import Any

from compiler.report.browse.site import Site
from schemas.errors import InputError, Problem

HOST = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_REFUSED = {
    403: "Refused: open the address that cli browse printed, with its token.",
    404: "There is no such page.",
    405: "Only GET is answered.",
}
_NO_SUCH_METHOD = 501


class Server(ThreadingHTTPServer):
    """Serves one set on loopback; InputError where the port cannot be had."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, site: Site, port: int) -> None:
        self.site, self.token, self.lock = site, secrets.token_urlsafe(32), Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise InputError(f"--port {port}", error.strerror or str(error), "Give another port, or none.") from error
        self.port = int(self.server_address[1])
        self.hosts = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        if self.port == 80:  # the default, which browsers leave out
            self.hosts |= {HOST, "localhost"}

    def server_bind(self) -> None:
        """Bind without the look-up of the machine's name that HTTPServer makes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def address(self) -> str:
        """The address to open."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away; anything else is a bug."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 20

    def do_GET(self) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            self._refuse(403)
            return
        path, _, query = self.path.partition("?")
        _, token, *rest = [*path.split("/"), ""][: max(2, path.count("/") + 1)]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(403)
        elif path.count("/") != 2 or rest[0] not in self.server.site.pages:
            self._refuse(404)
        else:
            try:
                with self.server.lock:  # a page reads batches, and keeps the last one
                    code, html = self.server.site.page(rest[0], query)
            except Problem as problem:
                print(f"error: {problem}", file=sys.stderr, flush=True)
                code, html = 500, self.server.site.message(str(problem))
            except Exception:
                self._page(500, self.server.site.message("This is a bug. The terminal has more."))
                raise
            self._page(code, html)

    def _page(self, code: int, html: str) -> None:
        self._send(code, html, "text/html", {"Content-Security-Policy": self.server.site.policy})

    def _refuse(self, code: int) -> None:
        more = {"Allow": "GET"} if code == 405 else {}
        self._send(code, _REFUSED[code] + "\n", "text/plain", {"Content-Security-Policy": "default-src 'none'"} | more)

    def _send(self, code: int, text: str, kind: str, more: dict[str, str]) -> None:
        data = text.encode("utf-8", "replace")
        self.send_response_only(code)
        for name, value in (_HEADERS | more).items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Answer what is no request, or has another method, in our words."""
        if code == _NO_SUCH_METHOD:
            self._refuse(405)
        else:
            self.close_connection = True
            self._send(code, "This is no request that can be answered.\n", "text/plain", {})

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing for each request: the address holds the token."""
