"""The agent's one TOML file. Everything has a documented default; the smallest useful file names one model and a repository.

repository = "https://updates.example.com/fleet"
[[models]]
name = "digits"
profile = "raspberry-pi-4b"
"""

import os
from pathlib import Path
from typing import Literal

from device_agent.errors import ConfigError
from runtimes.artifact.files import write_atomic
from runtimes.artifact.manifest import Name
from runtimes.artifact.schema import Field, Schema, Wrong

MAX_CONFIG_BYTES = 1 << 20


class _Strict(Schema, extra="forbid"):
    """A misspelt key must not be ignored silently: on a board nobody is looking."""


class AcceleratorConfig(_Strict):
    """Hardware that is tried before the CPU, in the order of the file."""

    provider: str = Field(
        min_length=1, description="onnxruntime's execution provider, or LiteRT's delegate library (a path)"
    )
    options: dict[str, str] = Field(default_factory=dict, description="handed to the provider or delegate")


class ModelConfig(_Strict):
    """A model that this device runs."""

    name: Name = Field(description="the model's name in the repository")
    profile: str = Field(description="device profile that the release must have been built for")
    runtime: str | None = Field(default=None, description="name in runtimes.RUNTIMES; None takes what is installed")
    threads: int = Field(default=1, ge=0, description="threads per session; 0 leaves it to the runtime")
    sessions: int = Field(default=1, ge=1, le=64, description="requests that run at the same time")
    queue: int = Field(
        default=64, ge=0, le=10_000, description="requests that wait for a session; more are refused (503)"
    )
    timeout_s: float = Field(default=30.0, gt=0, description="for an answer; later ones are withheld (504)")
    max_input_bytes: int = Field(default=64 << 20, ge=1, description="of one request's arrays; larger ones are refused")
    max_batch: int = Field(default=1, ge=1, le=1024, description="samples of requests that run together; 1: each alone")
    max_delay_ms: float = Field(default=2.0, ge=0, le=1000, description="that a request waits for company")
    constant: dict[str, tuple[float, ...]] | None = Field(
        default=None, description="answer when nothing else can: values per output, e.g. {y = [0, 1]}"
    )
    accelerators: tuple[AcceleratorConfig, ...] = ()


class ServerConfig(_Strict):
    """Where the Open Inference Protocol is spoken. ``unix_socket`` replaces host and port."""

    enabled: bool = Field(default=True, description="false: in-process use only")
    host: str = Field(default="127.0.0.1", description="loopback: the protocol has no authentication")
    port: int = Field(default=8321, ge=0, le=65535, description="0 takes any free port")
    unix_socket: Path | None = Field(default=None, description="listen there instead of host and port")
    threads: int = Field(default=4, ge=1, le=64, description="connections answered at the same time")
    max_request_bytes: int = Field(default=16 << 20, ge=1024, description="larger requests are refused")
    stop_timeout_s: float = Field(default=15.0, gt=0, description="at a stop, for requests that have come in")


class UpdateConfig(_Strict):
    """When and how releases are fetched."""

    interval_s: float = Field(default=3600.0, gt=0, description="seconds between looks for a release")
    jitter: float = Field(default=0.1, ge=0, le=1, description="share of the interval added at random")
    timeout_s: float = Field(default=30.0, gt=0, description="connection, and silence on a connection")
    min_speed_bytes_s: int = Field(default=256, ge=0, description="a slower download over speed_window_s is given up")
    speed_window_s: float = Field(default=30.0, gt=0, description="over which the speed is taken")
    attempts: int = Field(default=4, ge=1, le=20, description="resumptions of one download within one update")
    max_artifact_bytes: int = Field(default=2 << 30, gt=0, description="larger artifacts are refused")
    reserve_bytes: int = Field(default=16 << 20, ge=0, description="free space that an update must leave")
    allow_delta: bool = Field(default=True, description="false: full files only")
    metered_file: Path | None = Field(default=None, description="while it exists the link costs money")
    metered_max_bytes: int = Field(default=256 << 10, ge=0, description="fetched for one release over such a link")
    windows: tuple[str, ...] = Field(
        default=(), description="when a release may take over, like `sat,sun 02:00-05:00`; none: at any time"
    )
    remote: bool = Field(default=True, description="false: settings that the channel's publisher signed are not taken")


class TrialConfig(_Strict):
    """Limits of the self-test in a child process; a manifest may be stricter, never looser."""

    timeout_s: float = Field(default=120.0, gt=0, description="of the whole trial")
    max_latency_ms: float | None = Field(default=None, gt=0, description="median of one sample")
    max_memory_bytes: int | None = Field(default=None, gt=0, description="peak resident memory of the child")
    max_tries: int = Field(default=3, ge=1, description="trials that may vanish (power cut) before a release is bad")


class HealthConfig(_Strict):
    """When a new release counts as good, and when it is taken back."""

    confirm_after_s: float = Field(default=300.0, ge=0, description="seconds in service before a release is good")
    confirm_requests: int = Field(default=10, ge=0, description="successful requests needed besides")
    max_boots: int = Field(default=3, ge=1, description="starts without confirmation before rolling back")
    max_error_rate: float = Field(default=0.2, ge=0, le=1, description="share of failed requests that rolls back")
    min_requests: int = Field(default=20, ge=1, description="requests before an error rate means anything")
    stuck_s: float = Field(
        default=120.0, gt=0, description="a run that takes longer lets systemd's watchdog restart the agent"
    )


class LogConfig(_Strict):
    """What is said, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="the least that is said")
    format: Literal["text", "json"] = Field(default="text", description="of the lines on standard error")
    keep_bytes: int = Field(default=512 << 10, ge=0, description="of agent.log in data_dir, for `logs`; 0: none")


class TelemetryConfig(_Strict):
    """Counters, histograms and events; never raw inputs. Without an endpoint they stay in the spool."""

    endpoint: str | None = Field(
        default=None, description="OTLP/HTTP base, e.g. http://collector:4318; or mqtt://host[:port][/prefix]"
    )
    transport: str = Field(default="otlp-http", description="otlp-http, or mqtt with the extra of that name")
    compression: Literal["gzip", "none"] = Field(
        default="gzip", description="of OTLP bodies; not every receiver unpacks"
    )
    headers: dict[str, str] = Field(default_factory=dict, description="sent with every batch, e.g. a token")
    samples: bool = Field(
        default=True, description="false: no raw inputs, even where the release's manifest allows them"
    )
    flush_interval_s: float = Field(default=60.0, gt=0, description="seconds per record of counters and histograms")
    timeout_s: float = Field(default=10.0, gt=0, description="of one request to the collector")
    spool_bytes: int = Field(
        default=16 << 20, ge=65536, description="kept on disk at most; the least important go first"
    )
    batch_records: int = Field(default=64, ge=1, le=10_000, description="records per request")


def _location(value: str) -> None:
    if "://" in value and not value.startswith(("http://", "https://", "file://")):
        raise ValueError(f"{value!r} is neither http(s)://, file:// nor a path")


class AgentConfig(_Strict):
    """The whole file. Relative paths start at the file's own folder."""

    repository: str | None = Field(default=None, check=_location, description="URL, folder, or a bundle's file")
    channel: Name = Field(default="stable", description="channel of the repository")
    data_dir: Path = Field(default=Path("agent-data"), description="slots, trust, spool, alerts")
    device_id: str | None = Field(default=None, min_length=8, max_length=128, description="None: made once and kept")
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    server: ServerConfig = ServerConfig()
    update: UpdateConfig = UpdateConfig()
    trial: TrialConfig = TrialConfig()
    health: HealthConfig = HealthConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    logs: LogConfig = LogConfig()

    def validate_whole(self) -> None:
        if len({m.name for m in self.models}) != len(self.models):
            raise ValueError("a model is listed twice")

    def model(self, name: str | None = None) -> ModelConfig:
        """The model called ``name``, or the only one. Raises ConfigError."""
        if name is None and len(self.models) == 1:
            return self.models[0]
        for model in self.models:
            if model.name == name:
                return model
        known = ", ".join(m.name for m in self.models)
        raise ConfigError(f"No model is called {name!r}; configured: {known}.", remedy="Name one with --model.")


def load_config(path: Path) -> AgentConfig:
    """Read and check the file; relative paths become absolute, and settings that the publisher signed lie over it.

    Raises:
        ConfigError: missing, unreadable, not TOML, or not following the schema.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES} bytes")
        import tomllib

        config = AgentConfig.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.", remedy="Name the file with --config.") from error
    except Wrong as error:
        raise ConfigError(f"{path} is not a valid configuration: {error}.", remedy="Correct these keys.") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(f"{path} is not valid TOML: {error}.", remedy="Correct the file.") from error
    from device_agent.remote_config import effective

    return effective(_absolute(config, path.resolve().parent))


def _absolute(config: AgentConfig, base: Path) -> AgentConfig:
    changes: dict[str, object] = {"data_dir": base / config.data_dir.expanduser()}
    if config.repository is not None and "://" not in config.repository:
        changes["repository"] = str(base / Path(config.repository).expanduser())
    if config.update.metered_file is not None:
        metered = base / config.update.metered_file.expanduser()
        changes["update"] = config.update.model_copy(update={"metered_file": metered})
    if config.server.unix_socket is not None:
        server = config.server.model_copy(update={"unix_socket": base / config.server.unix_socket})
        changes["server"] = server
    return config.model_copy(update=changes)


def device_id(config: AgentConfig) -> str:
    """The configured id, or a random one made at first use and kept in the data folder.

    Pseudonymous on purpose: no serial number or MAC address leaves the device.

    Raises:
        StorageError: the id cannot be kept.
    """
    if config.device_id is not None:
        return config.device_id
    path = config.data_dir / "device_id"
    try:
        kept = path.read_text("ascii").strip()
        if len(kept) == 32 and all(c in "0123456789abcdef" for c in kept):
            return kept
    except (OSError, UnicodeDecodeError):
        pass  # first start, or a damaged file: a new identity is the only way on
    config.data_dir.mkdir(parents=True, exist_ok=True)
    made = os.urandom(16).hex()
    write_atomic(path, made.encode("ascii") + b"\n")
    return made
