"""Servers on loopback for tests of remote streams: files over HTTP, and a proxy with the faults of networks."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone."""


@contextlib.contextmanager
def running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server of these answers. Yields its host and port."""
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def file_server(directory: Path, *, knows_ranges: bool = True) -> Iterator[str]:
    """Files of a directory. Yields its URL."""

    class Files(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # as the base class calls it
            path = directory / unquote(self.path).lstrip("/")
            if not path.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data, status = path.read_bytes(), 200
            size, asked = len(data), self.headers.get("Range")
            begin, end = 0, size
            if asked and knows_ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                begin, end, status = int(first), min(int(last or size - 1) + 1, size), 206
            self.send_response(status)
            self.send_header("Content-Length", str(end - begin))
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}-{size}"')
            self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
            if status == 206:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[begin:end])

        do_HEAD = do_GET  # noqa: N815  # as the base class calls it

        def log_message(self, *_: object) -> None:
            pass

    with running(Files) as place:
        yield f"http://{place}"


@dataclass(frozen=True)
class Fault:
    """What a proxy does to a request instead of passing it on.

    Attributes:
        kind: "drop" the connection without an answer; "truncate" the answer; "corrupt" a byte of it; "delay" it; or an
            HTTP status, which is the answer.
        seconds: Of a delay.
    """

    kind: str
    seconds: float = 0.0


class Proxy:
    """Passes requests on to a server, but for those that a function has a fault for.

    Attributes:
        requests: Number of requests by path, "HEAD" not counted.
        sent_bytes: Bytes of answers that were sent on.
    """

    def __init__(self, upstream: str, fault: Callable[[str, int], Fault | None] = lambda path, number: None) -> None:
        """
        Args:
            upstream: Host and port.
            fault: Of the path and the number of a GET request to it, from 0 on.
        """
        self.fault = fault
        self.requests: Counter[str] = Counter()
        self.sent_bytes = 0
        self._upstream = upstream.removeprefix("http://")
        self._mutex = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Yields its URL."""
        proxy = self

        class Passes(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # as the base class calls it
                proxy._pass(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815  # as the base class calls them

            def log_message(self, *_: object) -> None:
                pass

        with running(Passes) as place:
            yield f"http://{place}"

    def _pass(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        fault = None
        if handler.command == "GET":
            with self._mutex:
                number = self.requests[path]
                self.requests[path] += 1
            fault = self.fault(path, number)
        if fault is not None and fault.kind == "drop":
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        if fault is not None and fault.kind == "delay":
            time.sleep(fault.seconds)
        if fault is not None and fault.kind.isdecimal():
            handler.send_response(int(fault.kind))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        upstream = http.client.HTTPConnection(self._upstream, timeout=60)
        upstream.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault is not None and fault.kind == "corrupt" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                handler.send_header(name, value)
        if not answer.getheader("Content-Length") and handler.command != "HEAD":
            handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault is not None and fault.kind == "truncate":
            data = data[: len(data) // 2]
            handler.close_connection = True
        handler.wfile.write(data)
        with self._mutex:
            self.sent_bytes += len(data)
