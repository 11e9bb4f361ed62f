"""Pictures from the web: fast, polite, and safe from what is out there.

downloader   the loop: which request next, what becomes of its outcome
exchange     one request and its answer, on libcurl
events       libcurl's sockets and timers, waited for with epoll
schedule     which request comes next
hosts        what is known of a host: its queue, its limits, when it may be asked again
robots       robots.txt and X-Robots-Tag
addresses    URLs in normal form, and which addresses may be connected to
failure      what went wrong, and whether trying again can help
statistics   counts, over all and by host
"""

from __future__ import annotations

from align.ingest.download.downloader import Downloader, Fetched
from align.ingest.download.statistics import HostStatistics, Statistics

__all__ = ["Downloader", "Fetched", "HostStatistics", "Statistics"]
