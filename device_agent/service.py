"""``edgewright-agent run``: answers requests, updates through a child on a timer, judges health, sends telemetry."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent import slots
from device_agent.alerts import Alert, Alerts
from device_agent.config import AgentConfig, device_id, load_config
from device_agent.engine import Engine
from device_agent.errors import Busy, NoWayBack
from device_agent.health import Diagnosis, Limits, at_start, in_service
from device_agent.health_report import HealthFile
from device_agent.hold import undisturbed
from device_agent.lock import locked
from device_agent.logs import set_up
from device_agent.remote_config import stamp
from device_agent.server import Server, is_loopback
from device_agent.slots import State
from device_agent.spool import Spool
from device_agent.store import confirm, roll_back
from device_agent.telemetry import Telemetry
from profiles.errors import EdgewrightError
from runtimes.errors import StorageError

if TYPE_CHECKING:
    import subprocess

log = logging.getLogger(__name__)
_TICK_S = 0.5
SEVERITIES = {"ok": "info", "warning": "warning", "critical": "error"}


def sd_notify(message: str) -> None:
    """Tell systemd (sd_notify(3)): one datagram to $NOTIFY_SOCKET; nothing without it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sink:
        sink.connect("\0" + address[1:] if address.startswith("@") else address)
        sink.sendall(message.encode())


def serve(path: Path, *, verbose: bool = False) -> None:
    """``edgewright-agent run``: read the file, then serve until stopped. Raises ConfigError."""
    config = load_config(path)
    set_up(config.logs, config.data_dir, verbose=verbose)
    Service(config, path.resolve()).run()


class Service:
    """The agent as a long-running process; ``run`` returns after ``stop`` or SIGTERM.

    Args:
        config_path: handed to the updater child.
    """

    def __init__(self, config: AgentConfig, config_path: Path) -> None:
        self.config = config
        self._path = config_path
        self.spool = Spool(config.data_dir / "spool.db", max_bytes=config.telemetry.spool_bytes)
        self.telemetry = Telemetry(self.spool, samples=config.telemetry.samples)
        self.alerts = Alerts(config.data_dir)
        self.engine = Engine(config, recorder=self.telemetry)
        self.server = Server(self.engine, config.server)
        self._settings_stamp = stamp(config.data_dir)
        self._stop = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._next_update = 0.0
        self._health_file = HealthFile(config.data_dir)
        self._next_flush = time.monotonic() + config.telemetry.flush_interval_s

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        """Serve until stopped. Raises ConfigError if the address cannot be bound."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.stop())
        try:
            self._recover()
            self.engine.load()
            if self.config.server.enabled:
                self._listen()
            sender = self._sender()
            sd_notify("READY=1")
            self.telemetry.event("agent.start")
            while not self._stop.is_set():
                self.tick()
                self._feed_watchdog()
                self._stop.wait(_TICK_S)
            self._close(sender)
        finally:
            self.spool.close()

    def _listen(self) -> None:
        if self.config.server.unix_socket is None and not is_loopback(self.config.server.host):
            log.warning("The server is reachable from the network (%s) without authentication", self.config.server.host)
        self.server.start()
        log.info("Listening at %s", self.server.where())

    def _feed_watchdog(self) -> None:
        """Not while a run hangs: systemd then restarts the agent, and a release that does it again and again is left."""
        longest = self.engine.longest_run_s()
        if longest <= self.config.health.stuck_s:
            sd_notify("WATCHDOG=1")
        else:
            log.error("A run has not come back for %.0f s; the watchdog is no longer fed", longest)

    def _close(self, sender: threading.Thread | None) -> None:
        sd_notify("STOPPING=1")
        self.server.stop()
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()  # an update is safe to kill at any step
            self._child.wait()
        self.engine.close()
        self.telemetry.event("agent.stop")
        self.telemetry.flush()
        if sender is not None:
            sender.join(self.config.telemetry.timeout_s)

    def _recover(self) -> None:
        """Mend what a crash left, count this start, and leave a release that does not survive its starts."""
        for model in self.config.models:
            store = self.engine.store(model.name)
            try:
                with contextlib.suppress(Busy), locked(self.config.data_dir):
                    store.recover()
                state = store.change(slots.booted)
                self._apply(model.name, at_start(state, self.config.health))
            except (EdgewrightError, OSError) as error:
                log.error("State of %s could not be recovered: %s", model.name, error)  # what is there still serves

    # --- one round ------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One round of everything that is not answering requests."""
        self._settings()
        self._update()
        self._health_file.write(self.engine, time.monotonic())
        for model in self.config.models:
            try:
                self._look_after(model.name)
            except (EdgewrightError, OSError) as error:
                log.warning("Model %s: %s", model.name, error)
        if time.monotonic() >= self._next_flush:
            self._raise_alerts([*self.telemetry.flush(), *self.engine.truth.alerts()])
            for (name, release), (right, wrong) in self.engine.truth.counts().items():
                self.telemetry.event("feedback", model=name, release=release, right=right, wrong=wrong)
            self._next_flush = time.monotonic() + self.config.telemetry.flush_interval_s

    def _settings(self) -> None:
        """Take settings that the updater has brought; what a part of the service has read at its start waits for the next one."""
        if (now := stamp(self.config.data_dir)) == self._settings_stamp:
            return
        self._settings_stamp = now
        try:
            self.config = load_config(self._path)
        except EdgewrightError as error:
            log.warning("The configuration could not be read again: %s", error)
            return
        self._next_update = min(self._next_update, time.monotonic() + self.config.update.interval_s)
        self._next_flush = min(self._next_flush, time.monotonic() + self.config.telemetry.flush_interval_s)

    def _raise_alerts(self, found: list[Alert]) -> None:
        """An event for every level that changed, up or down."""
        try:
            changed = self.alerts.update(found)
        except StorageError as error:
            log.warning("Alerts could not be kept: %s", error)
            return
        for alert in changed:
            log.warning("%s: %s is %s (%.3g)", alert.subject, alert.quantity, alert.level, alert.value)
            self.telemetry.event(
                "alert",
                severity=SEVERITIES[alert.level],
                subject=alert.subject,
                quantity=alert.quantity,
                level=alert.level,
                value=alert.value,
            )

    def _look_after(self, name: str) -> None:
        store = self.engine.store(name)
        state = store.load()
        if state.active is None:
            return
        if self.engine.refresh(name, state):
            self.telemetry.event("model.swapped", model=name, release=state.active.release)
        self._shadow(name, state)
        health = self.engine.health(name)
        if health is None or state.confirmed or health[0] != state.active:
            return
        _, counts, age = health
        if counts.ok < self.config.health.confirm_requests:
            self._probe(name)
        limits = Limits(self.engine.manifest(name).self_test.max_latency_ms, self._drifted(name, state.active.release))
        self._apply(name, in_service(state, counts, age, self.config.health, limits))

    def _drifted(self, name: str, release: str) -> str | None:
        """What the answers of a release have drifted in beyond its own critical limit; inputs are not its fault."""
        reports = self.telemetry.drift().get(f"{name}/{release}", [])
        found = (r.quantity for r in reports if r.level == "critical" and not r.quantity.startswith("input:"))
        return next(found, None)

    def _shadow(self, name: str, state: State) -> None:
        """Take or refuse a candidate that has seen enough live requests."""
        shadow = self.engine.shadow(name, state)
        verdict = shadow.verdict() if shadow is not None else None
        if shadow is None or verdict is None:
            return
        taken, reason = verdict

        def decide(now: State) -> State:
            if now.candidate != shadow.ref:  # a newer release came between
                return now
            return slots.activated(now) if taken else slots.rejected(now, reason)

        with undisturbed(self.config.data_dir) as free:
            if not free:  # an application holds the update lock: the next round asks again
                return
            self.engine.store(name).change(decide)
        log.log(logging.INFO if taken else logging.ERROR, "%s of %s: %s", shadow.ref.release, name, reason)
        self.telemetry.event(
            "release.activated" if taken else "release.rejected",
            severity="info" if taken else "error",
            model=name,
            release=shadow.ref.release,
            reason=reason,
            dropped=shadow.counts.dropped,
        )
        self.engine.shadow(name)  # closes it

    def _probe(self, name: str) -> None:
        """A request of our own, from the self-test vectors: an idle device must be able to confirm as well."""
        store = self.engine.store(name)
        ref = store.load().active
        if ref is None:
            return
        from device_agent.trial_child import read_vectors

        feeds, _ = read_vectors(store.slot(ref.slot) / store.manifest(ref).self_test.vectors.path)
        shapes = {spec.name: spec.shape for spec in self.engine.manifest(name).inputs}
        self.engine.probe(name, {n: a[: (shapes[n][0] or 1)] if a.ndim else a for n, a in feeds.items()})

    def _apply(self, name: str, diagnosis: Diagnosis) -> None:
        store = self.engine.store(name)
        release = active.release if (active := store.load().active) else None
        if diagnosis.action == "confirm":
            confirm(store)
            log.info("Release %s of %s is confirmed: %s", release, name, diagnosis.reason)
            self.telemetry.event("release.confirmed", model=name, release=release, reason=diagnosis.reason)
        elif diagnosis.action == "roll-back":
            try:
                roll_back(store, diagnosis.reason)
            except NoWayBack:
                log.error("Release %s of %s fails (%s) and nothing better is kept", release, name, diagnosis.reason)
                return
            log.error("Release %s of %s is rolled back: %s", release, name, diagnosis.reason)
            self.telemetry.event(
                "release.rolled_back", severity="error", model=name, release=release, reason=diagnosis.reason
            )

    # --- helpers with their own process or thread --------------------------------------------------------------------

    def _update(self) -> None:
        """Start the updater when it is time; note how the last one ended."""
        if self._child is not None:
            if self._child.poll() is None:
                return
            if self._child.returncode != 0:
                log.warning("The updater left with status %d; inference goes on", self._child.returncode)
                self.telemetry.event("update.failed", severity="warning", status=self._child.returncode)
            self._child = None
        if self.config.repository is None or time.monotonic() < self._next_update:
            return
        import random
        import subprocess  # with the first update: a start waits for neither

        pause = self.config.update.interval_s * (1 + self.config.update.jitter * random.random())
        self._next_update = time.monotonic() + pause
        command = [sys.executable, "-m", "device_agent.cli", "update", "--config", str(self._path)]
        self._child = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def _sender(self) -> threading.Thread | None:
        settings = self.config.telemetry
        if settings.endpoint is None:
            return None
        from device_agent.transports import TRANSPORTS, Sender

        transport = TRANSPORTS.get(settings.transport)(settings, device_id(self.config))
        sender = Sender(self.spool, transport, settings.batch_records, time.monotonic)

        def work() -> None:
            while not self._stop.wait(min(1.0, settings.flush_interval_s)):
                sender.pump()
            self.spool.flush()
            sender.pump()

        thread = threading.Thread(target=work, name="telemetry-sender", daemon=True)
        thread.start()
        return thread
