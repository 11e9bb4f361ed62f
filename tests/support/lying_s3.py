"""An S3 endpoint that lies: about lengths, ETags, times, names, and where a body ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat

#: An hour of an honest server.
HONEST = {"ETag": '"one"', "Last-Modified": "Sun, 29 Nov 2026 06:00:00 GMT", "Accept-Ranges": "bytes"}
DATE = "Sun, 29 Nov 2026 07:00:00 GMT"
ENDLESS: list[bytes] = []
#: A request -> status, headers, body. ENDLESS: one that does not end; a header of None is left out.
Answer = Callable[[BaseHTTPRequestHandler], tuple[int, dict[str, str | None], bytes | list[bytes]]]


@contextmanager
def lying(answer: Answer) -> Iterator[str]:
    """The address of a server that answers so."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = answer(self)
            chunked = body is ENDLESS
            found: dict[str, str | None] = {"Date": DATE, **HONEST}
            if not isinstance(body, list):
                found["Content-Length"] = str(len(body))
            found |= {"Transfer-Encoding": "chunked"} if chunked and "Content-Length" not in headers else {}
            self.send_response_only(status)
            for name, value in (found | headers).items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                if self.command == "HEAD":
                    return
                if not chunked:
                    self.wfile.write(bytes(body) if isinstance(body, bytes) else b"")
                    if headers.get("Content-Length"):
                        self.close_connection = True
                    return
                piece = bytes(1 << 20)
                for _ in repeat(None):
                    self.wfile.write(piece if "Content-Length" in headers else b"100000\r\n" + piece + b"\r\n")

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def log_message(self, *words: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def listing(*keys: str, more: str = "") -> bytes:
    """A page of a bucket; `more` is the token of the next one."""
    rows = "".join(f"<Contents><Key>{key}</Key><Size>1</Size><ETag>&quot;x&quot;</ETag></Contents>" for key in keys)
    end = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{rows}{end}</ListBucketResult>'.encode()
