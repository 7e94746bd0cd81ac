"""`python -m demo`: from a net trained here to a running, updated, measured device, on real data."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo.console import DemoFailed, Story, run

MODEL = "digits"
PROFILES = ("raspberry-pi-4b", "android-arm64", "iphone-15")


class Paths:
    """Where the demo keeps its things."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.repository, self.keys, self.device = out / "repository", out / "keys", out / "device"
        self.log = out / "agent.log"

    def source(self, release: int) -> Path:
        return self.out / f"digits-{release}" / "digits.pt2"

    def build(self, release: int) -> Path:
        return self.out / f"build-{release}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder to write; replaced if it exists")
    parser.add_argument("--quick", action="store_true", help="the same story with shorter training and fewer requests")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    story = Story(chapters=7)
    try:
        tell(story, Paths(out), quick=arguments.quick)
    except DemoFailed as error:
        sys.exit(f"\nThe demo stopped: {error}")
    print("\n" + story.table())
    print(f"Everything lies in {out}; the reports are {out}/build-1/report.html and build-2/report.html.")


def tell(story: Story, paths: Paths, *, quick: bool) -> None:
    """The seven chapters, in order."""
    from demo import digits

    data = digits.load()
    net = digits.DigitsNet()
    story.chapter("Train a MobileNet-style net on scikit-learn's handwritten digits")
    score = digits.train(net, data, epochs=8 if quick else 15, rate=4e-3, seed=0)
    story.fact("trained (PyTorch)", f"{score:.2%} of {len(data.held_y)} held-out digits")
    story.expect(score >= 0.97, f"the net should reach 97 %, it has {score:.2%}")
    calibration, held_out = digits.save_data(data, paths.out)
    _save(net, paths.source(1))

    story.chapter("Build: import, prune, quantize, export, execute, compare")
    _build(story, paths, 1, calibration, held_out)

    story.chapter("Publish release 1: signed, plain files")
    run("edgewright", "release", "init", str(paths.repository), "--keys", str(paths.keys), "--no-password")
    _publish(paths, paths.build(1), "1")
    run("edgewright", "release", "verify", str(paths.repository))
    story.fact("release 1", "signed, verified by a TUF client")

    from demo.device import free_port, write_config
    from demo.receiver import Receiver

    story.chapter("Install on a device, answer offline")
    port = free_port()
    with Receiver() as receiver:
        config = write_config(paths.device, paths.repository, receiver.url, port)
        root = paths.repository / "metadata" / "1.root.json"
        run("edgewright-agent", "install", str(paths.repository), "--root", str(root), "--config", str(config))
        _offline(story, paths, config, port, held_out)

        story.chapter("Fine-tune, publish release 2 with a delta, update under load; then a broken release 3")
        score = digits.train(net, data, epochs=1 if quick else 2, rate=5e-4, seed=1)
        _save(net, paths.source(2))
        _build(story, paths, 2, calibration, held_out)
        _update(story, paths, config, port, data.held_x)

        story.chapter("Telemetry: what the collector received")
        _telemetry(story, receiver)

    story.chapter("Measure on this machine, compare the releases")
    _measure(story, paths, quick)


def _save(net: Any, path: Path) -> None:
    from demo.digits import save_source

    path.parent.mkdir(parents=True)
    save_source(net, path)


def _build(story: Story, paths: Paths, release: int, calibration: Path, held_out: Path) -> None:
    options = ["--calibration", str(calibration), "--evaluate", str(held_out), "--max-drop", "1", "--prune", "0.15"]
    for profile in PROFILES:
        options += ["--profile", profile]
    print(run("edgewright", "build", str(paths.source(release)), "-o", str(paths.build(release)), *options))
    report = json.loads((paths.build(release) / "report.json").read_text("utf-8"))
    story.expect(report["ok"], f"build {release} passes its gates")
    for artifact in report["artifacts"]:
        accuracy = artifact["accuracy"]["value"]
        what = f"build {release}: {artifact['format']} {artifact['precision']}"
        size = f"{artifact['size_bytes'] / 1024:.0f} KiB"
        story.rows.append((what, f"{accuracy:.2%}, {size}, {artifact['evidence']} on {artifact['runtime']}"))
    worst = max(pair["max_steps"] for pair in report["agreement"])
    equal = min(pair["share_equal"] for pair in report["agreement"])
    story.fact(
        f"build {release}: INT8 across formats", f"at most {worst:g} quantization step(s) apart, {equal:.1%} equal"
    )


def _publish(paths: Paths, build: Path, release: str) -> dict[str, Any]:
    arguments = [str(build), str(paths.repository), "--keys", str(paths.keys), "--no-password", "--release", release]
    document: dict[str, Any] = json.loads(run("edgewright", "release", "publish", *arguments, "--json"))
    return document


def _offline(story: Story, paths: Paths, config: Path, port: int, held_out: Path) -> None:
    module = [sys.executable, "-m", "demo.offline", str(config), str(port), str(held_out), str(paths.log)]
    isolated = subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
    done = subprocess.run(
        [*(["unshare", "-n"] if isolated else []), *module, "yes" if isolated else "no"], capture_output=True, text=True
    )
    story.expect(done.returncode == 0, f"offline inference works:\n{done.stdout}{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    where = f"network interfaces: {', '.join(found['interfaces'])}" if isolated else "namespace not permitted here"
    story.fact("answered offline", f"{found['right']}/{found['total']} right, {found['rate']:.0f} requests/s ({where})")


def _update(story: Story, paths: Paths, config: Path, port: int, images: Any) -> None:
    from demo.broken import break_release
    from demo.device import Client, Traffic, agent

    with agent(config, paths.log):
        Client(port).wait_ready()
        with Traffic(port, images) as traffic:
            _wait_for(config, "confirmation of release 1", _confirmed("1"))
            published = _publish(paths, paths.build(2), "2")
            _wait_for(config, "update to release 2", _confirmed("2"))
            _publish(paths, break_release(paths.build(2), paths.out / "build-3-broken"), "3")
            status = _wait_for(config, "rejection of release 3", lambda s: any(b["release"] == "3" for b in s["bad"]))
        story.expect(not traffic.failures, f"no request failed: {traffic.failures[:3]}")
        active = status["active"]["release"]
        story.expect(active == "2", f"the device stays on release 2, it is on {active}")
        reason = next(b["reason"] for b in status["bad"] if b["release"] == "3")
    delta, full = _delta_sizes(published)
    story.fact("update 1 -> 2", f"delta {delta / 1024:.1f} KiB instead of {full / 1024:.1f} KiB ({delta / full:.0%})")
    story.fact("requests during both updates", f"{traffic.answers} answered, {len(traffic.failures)} failed")
    story.fact("versions that answered", " then ".join(traffic.versions))
    story.fact("broken release 3 (NaN)", f"rejected by the device's own trial; still on release {active}")
    print(f"    the device's reason: {reason}")


def _delta_sizes(published: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the delta and of the full file that the Raspberry Pi profile takes: its first artifact, the INT8 TFLite file."""
    delta = next(d for d in published["deltas"] if d["full_bytes"] == _artifact_bytes(published))
    return int(delta["size_bytes"]), int(delta["full_bytes"])


def _artifact_bytes(published: dict[str, Any]) -> int:
    return int(next(f["size_bytes"] for f in published["files"] if f["path"].endswith("-int8.tflite")))


def _status(config: Path) -> dict[str, Any]:
    document = json.loads(run("edgewright-agent", "status", "--config", str(config), "--json", show=False))
    found: dict[str, Any] = document["models"][MODEL]
    return found


def _wait_for(
    config: Path, what: str, wanted: Callable[[dict[str, Any]], bool], timeout: float = 120
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        status = _status(config)
        if wanted(status):
            return status
        time.sleep(0.5)
    raise DemoFailed(f"{what} did not happen in {timeout:.0f} s: {_status(config)}")


def _confirmed(release: str) -> Callable[[dict[str, Any]], bool]:
    return lambda status: (
        status["confirmed"] and status["active"] is not None and status["active"]["release"] == release
    )


def _telemetry(story: Story, receiver: Any) -> None:
    deadline = time.monotonic() + 20
    while not receiver.metrics and time.monotonic() < deadline:
        time.sleep(0.2)
    story.expect(bool(receiver.metrics), "the collector received metrics")
    for name in sorted(receiver.metrics):
        print(f"    {name}: {receiver.metrics[name]} data points")
    for event in dict.fromkeys(receiver.events):
        print(f"    event: {event}")
    points = sum(receiver.metrics.values())
    story.fact(
        "telemetry over OTLP/HTTP",
        f"{points} data points of {len(receiver.metrics)} metrics, {len(receiver.events)} events",
    )


def _measure(story: Story, paths: Paths, quick: bool) -> None:
    results = []
    for release in (1, 2):
        report = json.loads((paths.build(release) / "report.json").read_text("utf-8"))
        artifacts = [str(paths.build(release) / a["path"]) for a in report["artifacts"]]
        out = paths.out / f"bench-{release}.json"
        effort = ["--duration", "0.3", "--repeats", "3"] if quick else ["--duration", "1.0"]
        print(run("edgewright-bench", "run", *artifacts, "-o", str(out), *effort))
        results.append(out)
    # Exit code 1 says that an artifact became slower: news for the table on a machine that does other things, no reason to stop.
    verdict = run("edgewright-bench", "compare", *map(str, results), expect=(0, 1))
    print(verdict)
    story.fact("release 2 against 1", verdict.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
