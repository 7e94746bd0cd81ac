"""`edgewright-bench`: thin commands over hw_benchmarks.bench."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from profiles.command import run_command

if TYPE_CHECKING:
    from hw_benchmarks.statistics import Comparison


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgewright")
def cli() -> None:
    """Measure artifacts on the hardware that will run them."""


@cli.command()
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", default="local", show_default=True, help="local, ssh://user@host[:port] or adb:SERIAL.")
@click.option("--scenario", default="single-stream", show_default=True, type=click.Choice(["single-stream", "offline"]))
@click.option("--runtime", help="Runtime by name; default: the best available on the target.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
@click.option(
    "--duration",
    "duration_s",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds per run.",
)
@click.option("--min-queries", default=64, show_default=True, type=click.IntRange(1))
@click.option("--warm-up", default=10, show_default=True, type=click.IntRange(0))
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Fresh processes per artifact.")
@click.option("--inputs", type=click.Path(path_type=Path, exists=True), help=".npz with the inputs; default: random.")
@click.option("--driver", default="auto", show_default=True, type=click.Choice(["auto", "loadgen", "built-in"]))
@click.option("--operators", is_flag=True, help="Add the time per operator type where the runtime tells.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds for one run.")
@click.option("--profile", "profile_name", help="Judge by this device profile's budgets; exit code 1 if one is missed.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Results file for `compare`.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write an SVG of the latencies.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    artifacts: tuple[Path, ...],
    profile_name: str | None,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    inputs: Path | None,
    **options: Any,
) -> None:
    """Measure ARTIFACTS: latency with intervals, throughput, cold start, memory."""
    from hw_benchmarks.bench import BenchOptions
    from hw_benchmarks.bench import run as measure
    from hw_benchmarks.budgets import check_budgets
    from profiles.catalog import load_profile
    from runtimes.artifact.files import write_atomic

    profile = load_profile(profile_name) if profile_name else None
    chosen = BenchOptions(inputs=str(inputs) if inputs else None, **options)
    document = measure(artifacts, chosen, lambda line: click.echo(line, err=True))
    checks = check_budgets(document, profile) if profile else []
    if profile:
        judged = [asdict(check) | {"ok": check.ok} for check in checks]
        document |= {"profile": profile.name, "budgets": judged, "ok": all(check.ok for check in checks)}
    if output:
        write_atomic(output, json.dumps(document, indent=1).encode() + b"\n")
    if plot:
        from hw_benchmarks.plots import latency_plot

        write_atomic(plot, latency_plot(document).encode())
    if as_json:
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo("\n".join([_table(document), *(check.sentence for check in checks)]))
    ctx.exit(0 if all(check.ok for check in checks) else 1)


@cli.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--threshold", default=0.05, show_default=True, type=click.FloatRange(min=0), help="Relative change that counts."
)
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def compare(ctx: click.Context, base: Path, new: Path, threshold: float, as_json: bool) -> None:
    """Compare two results files; exit code 1 if something became slower beyond the noise."""
    from hw_benchmarks.bench import compare_results

    found = compare_results(base, new, threshold)
    slower = [c for c in found if c.verdict == "slower"]
    if as_json:
        document = {"schema": "edgewright.bench-compare/1", "ok": not slower, "comparisons": [asdict(c) for c in found]}
        click.echo(json.dumps(document, indent=1))
    else:
        for comparison in found:
            click.echo(_line(comparison))
        same, faster = (sum(c.verdict == v for c in found) for v in ("same", "faster"))
        click.echo(f"{len(slower)} slower, {faster} faster, {same} the same within the noise")
    ctx.exit(1 if slower else 0)


def _line(c: Comparison) -> str:
    times = f"{c.base_ns / 1e6:.3f} -> {c.new_ns / 1e6:.3f} ms"
    return f"{c.name:32} {times:24} {100 * (c.ratio - 1):+6.1f} %  (noise {100 * c.noise:.1f} %)  {c.verdict}"


def _table(document: dict[str, Any]) -> str:
    from profiles.units import format_bytes

    header = f"{'artifact':28} {'runtime':20} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8} {'per s':>8} {'cold ms':>8} {'peak':>10}"
    lines = [header]
    for r in document["results"]:
        p50, p90, p99 = (r["latency_ns"][p]["value"] / 1e6 for p in ("p50", "p90", "p99"))
        cold = sum(r["cold_start_ns"].values()) / 1e6
        lines.append(
            f"{r['artifact']:28} {r['runtime'] + ' ' + r['runtime_version']:20} {p50:8.3f} {p90:8.3f} {p99:8.3f} "
            f"{r['throughput_per_s']:8.0f} {cold:8.0f} {format_bytes(r['peak_memory_bytes']):>10}"
        )
    environment = document["results"][0]["environment"]
    lines.append(f"on {environment['cpu']}, {environment['threads']} thread(s), load {environment['load_1min']:.1f}")
    return "\n".join(lines)


def main() -> None:
    """Entry point of the installed script."""
    run_command(cli)


if __name__ == "__main__":
    main()
