"""MLCommons LoadGen as the driver of a scenario: it decides when the next query goes out and when enough were seen.

Source: MLPerf Inference rules, section "Scenarios"; mlcommons-loadgen's TestSettings.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtimes.session import Array, Session

SAMPLES = 16


def available() -> bool:
    return importlib.util.find_spec("mlperf_loadgen") is not None


def drive(session: Session, feeds: dict[str, Array], request: dict[str, Any]) -> list[int]:
    """Run LoadGen's performance mode; returns the latency of every sample in nanoseconds, in issue order.

    SingleStream sends the next sample when the last one is answered. Offline sends all samples in one query; they are answered one
    by one, so that each latency is the model's own.
    """
    import mlperf_loadgen as lg

    latencies: list[int] = []

    def issue(samples: list[Any]) -> None:
        for sample in samples:
            start = time.perf_counter_ns()
            session.run(feeds)
            latencies.append(time.perf_counter_ns() - start)
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0)])

    sut = lg.ConstructSUT(issue, lambda: None)
    library = lg.ConstructQSL(SAMPLES, SAMPLES, lambda indices: None, lambda indices: None)
    try:
        with tempfile.TemporaryDirectory(prefix="edgewright-loadgen-") as folder:
            lg.StartTestWithLogSettings(sut, library, _settings(lg, session, feeds, request), _logging(lg, folder))
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)
    return latencies


def _settings(lg: Any, session: Session, feeds: dict[str, Array], request: dict[str, Any]) -> Any:
    settings = lg.TestSettings()
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(request["duration_s"] * 1000)
    settings.min_query_count = request["min_queries"]
    if request["scenario"] == "offline":
        settings.scenario = lg.TestScenario.Offline
        settings.min_query_count = 1
        start = time.perf_counter()
        session.run(feeds)
        rate = 1 / max(time.perf_counter() - start, 1e-9)
        # LoadGen sizes the one query by this expectation and by the duration (with 10 % slack of its own).
        settings.offline_expected_qps = max(rate, request["min_queries"] / max(request["duration_s"], 1e-3))
    else:
        settings.scenario = lg.TestScenario.SingleStream
    return settings


def _logging(lg: Any, folder: str) -> Any:
    output = lg.LogOutputSettings()
    output.outdir = folder
    output.copy_summary_to_stdout = False
    log = lg.LogSettings()
    log.log_output = output
    log.enable_trace = False
    return log
