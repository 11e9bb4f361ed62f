"""What the downloader's tests share: settings, a clock of their own, a picture."""

import math

import pycurl

from align.config.ingest import DownloadConfig
from align.ingest.download import Downloader
from tests.support.params import load_params

PICTURE = b"\xff\xd8" + bytes(range(256)) * 40


def config(**changes):
    """The section of params.yaml, with short waits, time-outs that no busy machine reaches, and loopback allowed."""
    changed = {
        "connect_timeout_s": 60.0, "timeout_s": 60.0, "deadline_s": 200.0, "backoff_s": 0.02, "num_retries": 2,
        "max_image_bytes": 1 << 20, "obey_robots": False, "allow_networks": ("127.0.0.0/8",),
    }  # fmt: skip
    section = load_params().section(DownloadConfig)
    return section.model_copy(update={**changed, **changes})


class TimelessDownloader(Downloader):
    """Its clock stands still while the server may still answer; then it jumps to what is due next.

    So no time-out comes early on a busy machine, and none has to be waited for.

    Attributes:
        now_s: since the start.
    """

    def __init__(self, server, config, **arguments):
        super().__init__(config, **arguments)
        self.now_s = 0.0
        self._server = server
        self._num_given_up = server.num_stuck

    def _now(self):
        return self.now_s

    def _advance(self, *, wait):
        is_over = self._server.num_stuck - self._num_given_up == len(self._active)  # before the last look at sockets
        super()._advance(wait=wait and not is_over)
        due = [job.expires_s for job, _ in self._active.values()]
        due.append(self.now_s + self._schedule.wait_s(self.now_s, math.inf))
        if is_over and not self._results and min(due) < math.inf:
            self.now_s = max(self.now_s, min(due))
            self._sweep(self.now_s)

    def _sweep(self, now):
        before = len(self._active)
        super()._sweep(now)
        self._num_given_up += before - len(self._active)


def fetch_one(url, server=None, **changes):
    """With a server: its silence costs no time."""
    limits = config(**changes)
    with TimelessDownloader(server, limits) if server else Downloader(limits) as downloader:
        (fetched,) = downloader.fetch([url])
    return fetched


def any_host(server):
    """libcurl options under which every name leads to this server."""
    return {pycurl.CONNECT_TO: [f"::127.0.0.1:{server.port}"]}
