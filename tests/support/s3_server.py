"""A real S3 server, SeaweedFS from pip, on loopback. Tests can kill it and start it again."""

import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.config import Config

KEY = "key-of-the-tests"
SECRET = "secret-of-the-tests"

#: Every port that `weed mini` opens here. Others are turned off: some have fixed numbers, so that two test runs clash.
PORTS = tuple(f"{name}.port{kind}" for name in ("s3", "master", "volume", "filer", "admin") for kind in ("", ".grpc"))


class S3Server:
    """One data folder and its ports, the same after every start."""

    def __init__(self, root):
        root.mkdir(parents=True)
        self.root = root
        self._claim, self.ports = _free_ports()
        self.url = f"http://127.0.0.1:{self.ports['s3.port']}"
        self._process = None

    def start(self):
        """Returns when it answers; fails if it listens on any other address."""
        command = [
            str(Path(sys.executable).parent / "weed"), "-logtostderr=true", "mini",
            "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *(f"-{name}={port}" for name, port in self.ports.items()),
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false",
            "-s3.autoCreateBucket=false",  # AWS does not create unknown buckets either
            "-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock",  # relative: a socket's path must be short
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
        environment |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        with (self.root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait_until_up(self._process, deadline=time.monotonic() + 180)

    def _wait_until_up(self, process, deadline):
        expected = {("127.0.0.1", port) for port in self.ports.values()}
        listening = set()
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
            with suppress(psutil.Error):  # the process may have just ended
                sockets = psutil.Process(process.pid).net_connections(kind="tcp")
                listening = {(each.laddr.ip, each.laddr.port) for each in sockets if each.status == psutil.CONN_LISTEN}
            assert listening <= expected, "weed listens on an address that it was not given"
            if listening == expected:
                # It may listen before it works: then it answers 503, or closes the connection.
                with suppress(OSError), urllib.request.urlopen(f"{self.url}/healthz", timeout=5):
                    return
        log = (self.root / "server.log").read_text("utf-8", "replace")[-2000:]
        pytest.fail(f"SeaweedFS did not start; it listens on {sorted(listening)} of {sorted(expected)}: {log}")

    def use(self, monkeypatch):
        """Sets the variables by which clients find it."""
        values = {"ENDPOINT_URL": self.url, "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET}
        for name, value in {**values, "DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)

    def kill(self):
        """Kills it at once, as a crash does; acknowledged writes are in its folder."""
        if self._process:
            self._process.kill()
            self._process.wait()
        for name, port in self.ports.items():
            if name.endswith(".grpc"):  # weed removes these only when it ends normally
                Path(f"/tmp/seaweedfs-{name.removesuffix('.port.grpc')}-grpc-{port}.sock").unlink(missing_ok=True)

    @contextmanager
    def away_for(self, seconds):
        """Kills it, and starts it again after some seconds, while the block runs.

        Ends when the server answers again: otherwise a test that ends early would kill it while it starts.
        """
        self.kill()
        with ThreadPoolExecutor(1) as pool:
            started = pool.submit(lambda: (time.sleep(seconds), self.start()))
            yield
            started.result()

    def close(self):
        """Kills it for good, and releases its ports."""
        self.kill()
        self._claim.close()

    def make_bucket(self, name):
        """Creates a bucket; returns its name."""
        with closing(self._client()) as client:
            client.create_bucket(Bucket=name)
        return name

    def keys(self, bucket):
        """The keys of all objects in a bucket."""
        with closing(self._client()) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def objects(self, bucket):
        """Key -> bytes, for all objects in a bucket."""
        keys = self.keys(bucket)
        with closing(self._client()) as client:
            return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def _client(self):
        return boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 6, "mode": "standard"}),  # a busy machine may answer 500
        )  # fmt: skip


@contextmanager
def serve(root):
    """A started server with its data in a new folder; killed at the end in any case."""
    server = S3Server(root)
    try:
        server.start()
        yield server
    finally:
        server.close()


def _free_ports():
    """A block of free ports, and the socket that claims it until closed. A TCP port cannot be reserved for another
    process, especially while the server is down: the UDP port of the first number claims the block, which only one test
    run gets, below the range that systems assign automatically.
    """
    for first in random.sample(range(20000, 32000, len(PORTS)), 100):
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", first))
            for port in range(first, first + len(PORTS)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        return claim, dict(zip(PORTS, range(first, first + len(PORTS)), strict=True))
    pytest.fail("no ten free ports in a row")
