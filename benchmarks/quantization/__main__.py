"""`python -m benchmarks.quantization`: every quantizer on every model, same calibration data, one run."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from benchmarks.quantization.cases import Case, cases, digest_of, names
from benchmarks.quantization.engines import BUILT_IN, HARD_ONLY, OURS, Engine
from benchmarks.quantization.peers import PEERS, PeerFailed, peer_engines
from benchmarks.quantization.record import Record, kept, load, save
from benchmarks.quantization.running import run_file, run_session
from benchmarks.quantization.scoring import Judge, Row, score, versus
from benchmarks.quantization.table import figures, write_into
from compiler.hostinfo import host_info
from compiler.hub_session import open_hub
from compiler.verification.metrics import Flips
from runtimes.session import Array

PAGE = Path(__file__).parent / "README.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgewright" / "benchmarks"


def main() -> int:
    options = _options()
    engines = dict(BUILT_IN)
    if options.peers_dir is not None:
        engines |= peer_engines(options.peers_dir)
    if options.quantizer:
        engines = {name: engines[name] for name in options.quantizer}
    for case in cases(options.realdata, options.cache, options.model):
        print(f"{case.name}: {len(case.samples)} samples judge", file=sys.stderr, flush=True)
        measure(case, engines, options.results)
    records = load(options.results)
    text = figures(records)
    if options.write:
        write_into(PAGE, text)
    print(text)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__)
    realdata = Path(__file__).resolve().parents[3] / "shared" / "realdata"
    parser.add_argument("--realdata", type=Path, default=realdata)
    parser.add_argument("--peers-dir", type=Path, help="where the peers' environments are, or will be made (5 GB)")
    parser.add_argument("--model", action="append", choices=names(), help="only these models")
    parser.add_argument("--quantizer", action="append", choices=[*BUILT_IN, *PEERS], help="only these quantizers")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained nets, by content")
    parser.add_argument("--results", type=Path, default=CACHE / "results", help="one JSON file per model")
    parser.add_argument("--write", action="store_true", help=f"write the figures into {PAGE.name}")
    return parser.parse_args()


def measure(case: Case, engines: dict[str, Engine], results: Path) -> None:
    """All ``engines`` on one model, into ``results``; rows of others that were measured before stay."""
    with open_hub(case.hub) as session:
        judge = Judge(run_session(session, case.samples), case.labels, case.classes)
    place, digest = names().index(_short(case.name)), digest_of(case)
    before, answers = kept(results, place, digest)
    rows = {row.quantizer: row for row in before}
    for name, engine in engines.items():
        if name in HARD_ONLY and not case.hard:
            continue
        start = time.perf_counter()
        rows[name], found = _one(name, engine, case, judge)
        answers.pop(name, None)
        if found is not None:
            answers[name] = found
        said = rows[name].failed or f"{rows[name].sqnr_db:.1f} dB"
        print(f"  {name}: {said}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    ordered = [rows[name] for name in [*BUILT_IN, *PEERS] if name in rows]
    against = tuple(dataclasses.replace(row, against=_against(row, answers, judge)) for row in ordered)
    base = score("float32", judge.answers, 0, 0.0, judge).accuracy
    size = len(ir.to_proto(case.hub).SerializeToString())
    record = Record(case.name, place, case.hard, len(case.samples), size, base, against, _environment(), digest)
    save(record, answers, results)


def _against(row: Row, answers: Mapping[str, Array], judge: Judge) -> Flips | None:
    if OURS not in answers or row.quantizer not in answers:
        return None
    return versus(answers[OURS], answers[row.quantizer], judge)


def _short(title: str) -> str:
    return title if title in names() else title.split(" ")[0]


def _one(name: str, engine: Engine, case: Case, judge: Judge) -> tuple[Row, Array | None]:
    """One row; an engine that fails says so in it instead of ending the run."""
    with tempfile.TemporaryDirectory(prefix="edgewright-benchmark-") as folder:
        try:
            made = engine(case, Path(folder))
            answers = made.answers if made.answers is not None else run_file(made.artifact, case.samples)
        except PeerFailed as error:
            return Row(name, str(error)), None
        except Exception as error:  # a peer may fail in any way; that is a result
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return Row(name, f"{type(error).__name__}: {lines[-1]}"), None
        return score(name, answers, made.artifact.stat().st_size, made.seconds, judge), answers


def _environment() -> dict[str, str]:
    return {
        "machine": f"{host_info()['cpu']}, one thread, not idle",
        "date": time.strftime("%Y-%m-%d"),
        "Python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
    }


if __name__ == "__main__":
    sys.exit(main())
