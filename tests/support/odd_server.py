"""A server of answers as a test wants them: about lengths, ETags, times, names, and where a body ends."""

import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: An hour of an honest server.
HONEST = {"ETag": '"one"', "Last-Modified": "Sun, 29 Nov 2026 06:00:00 GMT", "Accept-Ranges": "bytes"}
DATE = "Sun, 29 Nov 2026 07:00:00 GMT"


@contextmanager
def answering(answer):
    """The address of a server; `answer`: a request -> status, headers, body; a header of None is left out."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            status, headers, body = answer(self)
            found = {"Date": DATE, **HONEST, "Content-Length": str(len(body))}
            self.send_response_only(status)
            for name, value in (found | headers).items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                if self.command == "HEAD":
                    return
                self.wfile.write(body)
                if headers.get("Content-Length"):
                    self.close_connection = True

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def log_message(self, *words):
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


def listing(*keys):
    """A bucket."""
    rows = "".join(f"<Contents><Key>{key}</Key><Size>1</Size><ETag>&quot;x&quot;</ETag></Contents>" for key in keys)
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{rows}</ListBucketResult>'.encode()
