"""Counts and times of a server, in the text form that Prometheus reads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

#: Upper ends of the histogram's buckets, in seconds.
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class RequestMetrics:
    """Requests by endpoint and status, and how long they took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._seconds: dict[str, float] = {}

    def add(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts one request."""
        with self._lock:
            self._num[endpoint, status] += 1
            self._seconds[endpoint] = self._seconds.get(endpoint, 0.0) + seconds
            for upper in _BUCKETS_S:
                if seconds <= upper:
                    self._buckets[endpoint, upper] += 1

    def lines(self) -> list[str]:
        """Its metrics."""
        with self._lock:
            num, buckets, seconds = dict(self._num), dict(self._buckets), dict(self._seconds)
        lines = ["# TYPE align_search_requests_total counter"]
        totals: Counter[str] = Counter()
        for (endpoint, status), count in sorted(num.items()):
            totals[endpoint] += count
            lines.append(line("align_search_requests_total", count, {"endpoint": endpoint, "status": str(status)}))
        lines.append("# TYPE align_search_request_seconds histogram")
        for endpoint in sorted(totals):
            for upper in _BUCKETS_S:
                labels = {"endpoint": endpoint, "le": f"{upper:g}"}
                lines.append(line("align_search_request_seconds_bucket", buckets.get((endpoint, upper), 0), labels))
            name = "align_search_request_seconds"
            lines.append(line(f"{name}_bucket", totals[endpoint], {"endpoint": endpoint, "le": "+Inf"}))
            lines.append(line(f"{name}_sum", round(seconds[endpoint], 6), {"endpoint": endpoint}))
            lines.append(line(f"{name}_count", totals[endpoint], {"endpoint": endpoint}))
        return lines


def line(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    """One sample."""
    shown = ",".join(f'{key}="{text.translate(_ESCAPED)}"' for key, text in (labels or {}).items())
    return f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def single(samples: Iterable[tuple[str, str, float, Mapping[str, str]]]) -> list[str]:
    """Metrics of one sample each: (name, counter or gauge, value, labels)."""
    return [
        text for name, kind, value, labels in samples for text in (f"# TYPE {name} {kind}", line(name, value, labels))
    ]
