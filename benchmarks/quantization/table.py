"""The page of figures: one table per model, a summary, and what is lost to whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.quantization.engines import OURS, is_ours
from benchmarks.quantization.record import Record
from benchmarks.quantization.scoring import Row, median_sqnr, worse
from compiler.verification.metrics import Accuracy

BEGIN, END = "<!-- figures: written by --write -->", "<!-- end of figures -->"
EASY_DROP, HARD_DROP = 0.1, 1.0  # points


def figures(records: Sequence[Record]) -> str:
    """Markdown of everything that was measured."""
    return "\n".join([*_machine(records), "", *_summary(records), "", *_verdicts(records), "", *_details(records)])


def write_into(page: Path, text: str) -> None:
    """Replace what stands between the two marks. Raises ValueError where the page lacks them."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")


def _machine(records: Sequence[Record]) -> Iterator[str]:
    facts: dict[str, set[str]] = {}
    for record in records:
        for key, value in record.environment.items():
            facts.setdefault(key, set()).add(value)
    yield "; ".join(f"{key}: {', '.join(sorted(found))}" for key, found in facts.items()) + "."


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(row.quantizer for record in records for row in record.rows))


def _summary(records: Sequence[Record]) -> Iterator[str]:
    """Medians over the models that both a quantizer and ours quantized: a peer that fails on hard ones gains nothing by it."""
    yield "| quantizer | models | median SQNR dB | ours on the same models | ours significantly worse / better | failed |"
    yield "|---|---|---|---|---|---|"
    for name in _names(records):
        pairs = [(_row(r, name), _row(r, OURS)) for r in records]
        shared = [(one, ours) for one, ours in pairs if one and ours and one.failed is None and ours.failed is None]
        failed = sum(1 for one, _ in pairs if one and one.failed)
        lost = sum(worse(one.against) for one, _ in shared)
        won = sum(_better(one) for one, _ in shared)
        counts = "" if is_ours(name) else f"{lost} / {won}"
        yield (
            f"| {name} | {len(shared)} | {_number(median_sqnr(one for one, _ in shared))} | "
            f"{_number(median_sqnr(ours for _, ours in shared))} | {counts} | {failed or ''} |"
        )


def _better(row: Row) -> bool:
    test = row.against
    return test is not None and test.drop_points < 0 and test.p_value < 0.05


def _verdicts(records: Sequence[Record]) -> Iterator[str]:
    """One line a model: the drop against its target, and the best peer."""
    yield (
        f"| model | drop of {OURS}, points (p) | target | best peer by accuracy | ours against it, points (p) | "
        "best peer by SQNR | ours |"
    )
    yield "|---|---|---|---|---|---|---|"
    for record in records:
        ours = _row(record, OURS)
        if ours is None or ours.failed is not None:
            yield f"| {record.model} | {'failed' if ours else 'not measured'} | | | | | |"
            continue
        rows = [r for r in record.rows if r.failed is None and not is_ours(r.quantizer)]
        yield f"| {record.model} | {_drop(ours)} | {_target(record, ours)} | {_rivals(rows, ours)} |"


def _rivals(rows: Sequence[Row], ours: Row) -> str:
    judged = [r for r in rows if r.flips is not None]
    best = min(judged, key=lambda r: r.flips.drop_points if r.flips else 0.0, default=None)
    clean = max(rows, key=lambda r: r.sqnr_db or float("-inf"), default=None)
    test = (
        ""
        if best is None or best.against is None
        else f"{_points(-best.against.drop_points)} ({best.against.p_value:.2f})"
    )
    name = "" if best is None else best.quantizer
    rival = "" if clean is None else f"{clean.quantizer} {_number(clean.sqnr_db)} dB"
    return f"{name} | {test} | {rival} | {_number(ours.sqnr_db)} dB"


def _target(record: Record, ours: Row) -> str:
    if ours.flips is None:
        return ""
    limit = HARD_DROP if record.hard else EASY_DROP
    drop = ours.flips.drop_points
    if drop <= limit:
        return f"≤ {limit:g}: met"
    return f"≤ {limit:g}: within noise" if ours.flips.p_value >= 0.05 else f"≤ {limit:g}: **missed**"


def _details(records: Sequence[Record]) -> Iterator[str]:
    yield "| model | quantizer | accuracy [95 %] | drop, points (p) | agreement | SQNR dB | bytes | seconds |"
    yield "|---|---|---|---|---|---|---|---|"
    for record in records:
        title = f"{record.model} ({record.samples:,} samples)"
        yield f"| **{title}** | float32 | {_share(record.float_accuracy)} | | | | {record.float_bytes:,} | |"
        for row in record.rows:
            yield _detail(record.model, row)


def _detail(model: str, row: Row) -> str:
    if row.failed is not None:
        return f"| {model} | {row.quantizer} | {_failure(row.failed)} | | | | | |"
    same = "" if row.agreement is None else f"{row.agreement:.1%}"
    return (
        f"| {model} | {row.quantizer} | {_share(row.accuracy)} | {_drop(row)} | {same} | {_number(row.sqnr_db)} | "
        f"{row.size_bytes:,} | {row.seconds:.1f} |"
    )


def _failure(text: str) -> str:
    """One line that fits a table's cell."""
    short = text.replace("|", "/").replace("\n", " ")
    return f"failed: {short if len(short) <= 110 else short[:107] + '...'}"


def _drop(row: Row) -> str:
    return "" if row.flips is None else f"{_points(row.flips.drop_points)} ({row.flips.p_value:.2f})"


def _points(value: float) -> str:
    return f"{value + 0.0:+.2f}"  # + 0.0: minus zero is zero


def _share(value: Accuracy | None) -> str:
    return "" if value is None else f"{value.value:.1%} [{value.low:.1%}, {value.high:.1%}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _row(record: Record, name: str) -> Row | None:
    return next((row for row in record.rows if row.quantizer == name), None)
