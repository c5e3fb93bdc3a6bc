"""The tables of docs/gpu.md, from results."""

from __future__ import annotations

from typing import Any

from benchmarks.table import head, line

__all__ = ["card_section", "shares_section"]

Row = dict[str, Any]


def shares_section(found: Row) -> str:
    """Percent of blocks open after each step."""
    lines = head("pattern", "weights", "after ascent %", "after more of it %", "after paths %")
    for row in found["rows"]:
        parts = (f"{100 * row[key] / row['blocks']:.2f}" for key in ("ascended", "augmented", "on_cpu"))
        lines.append(line(row["pattern"], row["weights"], *parts))
    return "\n".join(lines)


def card_section(found: Row) -> str:
    """What was measured on a card, as far as it went."""
    where, kit = found["card"], found["versions"]
    kinds: dict[str, list[Row]] = {}
    for row in found["rows"]:
        kinds.setdefault(row["kind"], []).append(row)
    whole = "" if found["complete"] else " Not all of it has been measured yet."
    lines = [
        f"{where['name']}, driver {where['driver']}, CUDA {where['cuda']}, torch {kit['torch']}, Triton "
        f"{where['triton']}; begun {found['started']}.{whole}",
        "",
    ]
    for row in kinds.get("tests", []):
        counts = ", ".join(f"{row[what]} {what}" for what in ("passed", "failed", "skipped") if what in row)
        lines += [f"Tests on this card: {counts or 'none ended'}.", ""]
        if "error" in row:
            lines += ["```", row["error"], "```", ""]
    if any(row.get("stats", {}).get("engine", "triton") != "triton" for row in kinds.get("mask", [])):
        lines += ["**Some of these ran as plain torch operations, not in Triton.**", ""]
    lines += _masks(kinds.get("mask", []))
    lines += _lines(
        "beside", kinds.get("beside", []), lambda row: f"{row['pattern']}, {row['name']}: {_ms(row['ms'])} ms"
    )
    lines += _parts(kinds.get("parts", []))
    lines += _lines("agreement", kinds.get("agreement", []), _agreement)
    for row in kinds.get("perceptron", []):
        told = "; ".join(f"{name}: {_ms(value)}" for name, value in row.items() if name not in ("kind", "key"))
        lines += [f"MLP, milliseconds: {told}.", ""]
    lines += _rounds(kinds.get("rounds", []))
    return "\n".join(lines)


def _masks(rows: list[Row]) -> list[str]:
    lines = head("pattern", "weights", "cold ms", "goal ms", "refresh ms", "first call s")
    for row in rows:
        if "error" in row:
            lines.append(_failed(row, "mask", 4))
            continue
        goal = "" if row["target_ms"] is None else f"{row['target_ms']:g}"
        cold, refresh, first = (_ms(row[name]) for name in ("cold_ms", "refresh_ms", "first_seconds"))
        lines.append(line(row["pattern"], row["weights"], cold, goal, refresh, first))
    return [*lines, ""]


def _parts(rows: list[Row]) -> list[str]:
    lines = ["Where a cold solve in bfloat16 spends its time, milliseconds:", ""]
    lines += head("pattern", "masks and proofs", "kept score", "copy of the weights", "solve of 64 x 64")
    for row in rows:
        if "error" in row:
            lines.append(_failed(row, "parts", 3))
            continue
        times = (_ms(row[name]) for name in ("settle_ms", "kept_score_ms", "copy_ms", "tiny_ms"))
        lines.append(line(row["pattern"], *times))
    return [*lines, ""] if rows else []


def _rounds(rows: list[Row]) -> list[str]:
    lines = ["Cold milliseconds by rounds of ascent for all blocks, and then for those left:", ""]
    for row in rows:
        if "error" not in row:
            first, more = (
                ", ".join(f"{k}: {_ms(ms)}" for k, ms in row[part].items()) for part in ("first_ms", "more_ms")
            )
            lines.append(f"- {row['pattern']} (now {row['now'][0]} and {row['now'][1]}): {first}; {more}")
    return [*lines, ""] if len(lines) > 2 else []


def _agreement(row: Row) -> str:
    return f"{row['pattern']} at {row['size']} x {row['size']}, objective less that of the CPU: {row['difference']:g}"


def _failed(row: Row, kind: str, empty: int) -> str:
    return line(row["key"].removeprefix(f"{kind} "), f"failed: {row['error']}", *[""] * empty)


def _lines(kind: str, rows: list[Row], say: Any) -> list[str]:
    told = [
        f"- {row['key'].removeprefix(kind + ' ')} failed: {row['error']}" if "error" in row else f"- {say(row)}"
        for row in rows
    ]
    return [*told, ""] if told else []


def _ms(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
