"""A server that speaks HTTP/2 over TLS, with a certificate of its own for `pictures.test`."""

import asyncio
import datetime
import ssl
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, StreamEnded

NAME = "pictures.test"


def make_certificate(folder):
    """Writes a self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    public, private = folder / "certificate.pem", folder / "key.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return public, private


class Http2Server:
    """Answers every request with the same picture, but /robots.txt with 404.

    Attributes:
        certificate: what a client has to trust.
        num_connections, num_streams: so far.
        most_streams: on one connection at a time.
    """

    def __init__(self, folder, picture):
        self.certificate, key = make_certificate(folder)
        self.picture = picture
        self.num_connections = 0
        self.num_streams = 0
        self.most_streams = 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.certificate, key)
        self.context.set_alpn_protocols(["h2"])
        self.loop = asyncio.new_event_loop()

    def __enter__(self):
        started = threading.Event()
        self.thread = threading.Thread(target=self.serve, args=(started,), daemon=True)
        self.thread.start()
        assert started.wait(60)
        return self

    def __exit__(self, *exception):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    def serve(self, started):
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(
            self.loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, ssl=self.context)
        )
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self.loop.run_forever()
        server.close()
        self.loop.run_until_complete(asyncio.sleep(0.05))
        self.loop.close()


class _Connection(asyncio.Protocol):
    def __init__(self, server):
        self.server = server
        self.http = H2Connection(H2Configuration(client_side=False))
        self.paths = {}

    def connection_made(self, transport):
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.num_connections += 1
        self.http.initiate_connection()
        transport.write(self.http.data_to_send())

    def data_received(self, data):
        for event in self.http.receive_data(data):
            if isinstance(event, RequestReceived):
                self.paths[event.stream_id] = dict(event.headers)[b":path"].decode()
                self.server.num_streams += 1
                self.server.most_streams = max(self.server.most_streams, len(self.paths))
            elif isinstance(event, StreamEnded):
                asyncio.get_running_loop().call_later(0.01, self.answer, event.stream_id)
        self.transport.write(self.http.data_to_send())

    def answer(self, stream):
        is_robots = self.paths.pop(stream) == "/robots.txt"
        self.http.send_headers(stream, [(":status", "404" if is_robots else "200")], end_stream=is_robots)
        if not is_robots:
            self.http.send_data(stream, self.server.picture, end_stream=True)
        self.transport.write(self.http.data_to_send())
