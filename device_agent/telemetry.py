"""What the device tells: counters, latency and drift histograms (deltas per interval), events.

Never raw inputs, unless the signed manifest of the release allows so many an hour.
"""

from __future__ import annotations

import binascii
import bisect
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from device_agent.alerts import Alert, error_alert, latency_alert
from device_agent.drift import DriftMonitor, DriftReport
from device_agent.spool import Spool
from runtimes.artifact.manifest import Manifest
from runtimes.session import Feeds

log = logging.getLogger(__name__)
# Milliseconds, roughly geometric from a microcontroller's fastest to a slow board's slowest net.
MAX_SAMPLE_BYTES = 256 << 10  # a larger input is not sent at all: half a picture helps nobody
LATENCY_BOUNDS_MS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0)


class _Series:
    """One model and release within the current interval."""

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.buckets = [0] * (len(LATENCY_BOUNDS_MS) + 1)
        self.sum_ms = 0.0
        self.fallbacks: dict[str, int] = {}


class Telemetry:
    """Implements engine.Recorder; ``flush`` moves the interval's figures to the spool as one record.

    Args:
        now: wall clock in nanoseconds since 1970, for the receiver.
        samples: raw inputs may be sent where a release's signed manifest allows so many an hour.
    """

    def __init__(self, spool: Spool, *, now: Callable[[], int] = time.time_ns, samples: bool = True) -> None:
        self._spool = spool
        self._now = now
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str], _Series] = {}
        self._drift: dict[tuple[str, str], DriftMonitor] = {}
        self._sent: dict[tuple[str, str, str], list[int]] = {}
        self._start = now()
        self._dropped_said = -1
        self._samples = samples
        self._next_sample: dict[str, int] = {}

    def request(self, model: str, release: str, outcome: str, latency_ns: int) -> None:
        """Count one request."""
        ms = latency_ns / 1e6
        with self._lock:
            series = self._series.setdefault((model, release), _Series())
            series.outcomes[outcome] = series.outcomes.get(outcome, 0) + 1
            # OTLP buckets are (bounds[i-1], bounds[i]]: a value on a bound belongs to the lower one.
            series.buckets[bisect.bisect_left(LATENCY_BOUNDS_MS, ms)] += 1
            series.sum_ms += ms

    def fallback(self, model: str, release: str, step: str) -> None:
        """Count an answer that another step of the chain gave."""
        with self._lock:
            series = self._series.setdefault((model, release), _Series())
            series.fallbacks[step] = series.fallbacks.get(step, 0) + 1

    def sample(self, model: str, manifest: Manifest, feeds: Feeds, outputs: Feeds) -> None:
        """Count one answered request's data for drift."""
        monitor = self._drift.get((model, manifest.release))
        if monitor is None:
            with self._lock:
                monitor = self._drift.setdefault((model, manifest.release), DriftMonitor(manifest.drift))
        try:
            monitor.observe(manifest, feeds, outputs)
        except Exception:  # telemetry must never fail a request
            log.exception("Drift of %s could not be counted", model)

        if self._samples and manifest.samples_per_hour:
            self._sample(model, manifest, feeds)

    def _sample(self, model: str, manifest: Manifest, feeds: Feeds) -> None:
        """Spool a request's raw inputs, evenly spread: the first, then one per share of an hour."""
        now = self._now()
        if now < self._next_sample.get(model, 0) or sum(a.nbytes for a in feeds.values()) > MAX_SAMPLE_BYTES:
            return
        self._next_sample[model] = now + int(3600e9 / float(manifest.samples_per_hour))
        attributes: dict[str, Any] = {"model": model, "release": manifest.release}
        for name, array in feeds.items():
            attributes[f"input.{name}"] = binascii.b2a_base64(array.tobytes(), newline=False).decode("ascii")
            attributes[f"input.{name}.form"] = f"{array.dtype}{list(array.shape)}"
        self._spool.put({"kind": "sample", "time": now, "severity": "info", "attr": attributes})

    def event(self, name: str, *, severity: str = "info", **attributes: Any) -> None:
        """Spool something that happened: an update, a rollback, a start."""
        self._spool.put({"kind": "event", "time": self._now(), "name": name, "severity": severity, "attr": attributes})

    def drift(self) -> dict[str, list[DriftReport]]:
        """The present judgement per model and release (``model/release``)."""
        with self._lock:
            monitors = dict(self._drift)
        return {f"{model}/{release}": monitor.report() for (model, release), monitor in monitors.items()}

    def flush(self) -> list[Alert]:
        """Close the interval: one record per model and release that had requests. Returns the level of all that is watched."""
        end = self._now()
        with self._lock:
            series, self._series, start = self._series, {}, self._start
            self._start = end
            for key, figures in series.items():
                self._spool.put(self._record(key, figures, start, end))
        self._say_dropped(end)
        return [*_interval_alerts(series), *self._drift_alerts()]

    def _say_dropped(self, now: int) -> None:
        """The drop counter is telemetry as well: a gap that nobody knows of would look like a quiet device."""
        dropped = self._spool.stats()["dropped"]
        if dropped != max(self._dropped_said, 0):
            self._spool.put({"kind": "dropped", "start": self._spool.counter("born"), "time": now, "value": dropped})
        self._dropped_said = dropped

    def _drift_alerts(self) -> Iterator[Alert]:
        for subject, reports in self.drift().items():
            for report in reports:
                if report.level != "too-few":
                    worse = max(report.corrected, report.ks_corrected)
                    yield Alert(subject, f"drift of {report.quantity}", report.level, worse)

    def _record(self, key: tuple[str, str], figures: _Series, start: int, end: int) -> dict[str, Any]:
        model, release = key
        drift = []
        monitor = self._drift.get(key)
        for quantity, (edges, _) in monitor.references().items() if monitor else ():
            assert monitor is not None
            total = monitor.counts[quantity].tolist()
            before = self._sent.get((*key, quantity), [0] * len(total))
            self._sent[(*key, quantity)] = total
            counts = [t - b for t, b in zip(total, before, strict=True)]
            drift.append({"quantity": quantity, "edges": list(edges) if edges else None, "counts": counts})
        return {
            "kind": "metrics",
            "start": start,
            "time": end,
            "model": model,
            "release": release,
            "requests": figures.outcomes,
            "fallbacks": figures.fallbacks,
            "latency": {"bounds": list(LATENCY_BOUNDS_MS), "counts": figures.buckets, "sum": figures.sum_ms},
            "drift": drift,
        }


def _interval_alerts(series: dict[tuple[str, str], _Series]) -> Iterator[Alert]:
    for (model, release), figures in series.items():
        subject = f"{model}/{release}"
        latency = latency_alert(subject, LATENCY_BOUNDS_MS, figures.buckets)
        errors = error_alert(subject, figures.outcomes)
        yield from (alert for alert in (latency, errors) if alert is not None)
