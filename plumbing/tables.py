"""What evaluate.py prints: metrics by scene and distance, and what a calibration does to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FEW = 20  # a calibration on fewer pictures comes with a warning


def markdown_row(
    name: str, m: dict[str, float], ms: float | None = None, score: float = 0.0
) -> str:
    """One row in the order of Table 1: name, si-RMSE, RMSE, log10, REL, runtime, Score."""
    timing = f"{ms:.2f}ms | {score:.2f}" if ms else "- | -"
    figures = f"{m['si_rmse']:.3f} | {m['rmse']:.2f} | {m['log10']:.3f} | {m['rel']:.3f}"
    return f"| {name} | {figures} | {timing} |"


def metric_lines(rows: Iterable[tuple[str, dict[str, float]]]) -> list[str]:
    """A head and a line for each (name, metrics), for the terminal."""
    head = f"{'':<24}{'images':>7}{'si-RMSE':>9}{'RMSE/m':>8}{'log10':>7}{'REL':>7}"
    head += f"{'<1.25':>7}{'<1.25^2':>9}{'<1.25^3':>9}"
    return [head] + [
        f"{name[:23]:<24}{m['images']:>7}{m['si_rmse']:>9.3f}{m['rmse']:>8.2f}{m['log10']:>7.3f}"
        f"{m['rel']:>7.3f}{m['delta1']:>7.3f}{m['delta2']:>9.3f}{m['delta3']:>9.3f}"
        for name, m in rows
    ]


def report_table(report: dict) -> str:
    """The whole report for the terminal: totals, scenes, distances."""
    rows = [("all, metric", report["metric"]), ("all, median-aligned", report["median_aligned"])]
    if len(report["scenes"]) > 1:
        rows.append(("mean of scenes, metric", report["mean_of_scenes"]))
        rows.append(("mean of scenes, aligned", report["mean_of_scenes_aligned"]))
    lines = metric_lines(rows + [(f"  {name}", m) for name, m in report["scenes"].items()])
    lines.append("\nby distance (pixels pooled)     share    REL  RMSE/m  bias/m")
    pixels = sum(b["pixels"] for b in report["by_distance"])
    for b in report["by_distance"]:
        to = "and more" if b["to"] is None else f"to {b['to']:g} m"
        lines.append(
            f"  {b['from']:g} {to:<25}{b['pixels'] / pixels:>8.1%}{b['rel']:>7.3f}{b['rmse']:>8.2f}"
            f"{b['bias']:>+8.2f}"
        )
    for key, what in (
        ("without_valid_depth", "picture(s) without valid depth left out"),
        ("unreadable", "picture(s) could not be read and were left out"),
        ("not_finite", "prediction(s) are NaN or infinite where there is truth: broken weights? "
         "The means above leave these pictures out"),
    ):  # fmt: skip
        if report.get(key):
            warning = "WARNING: " if key == "not_finite" else ""
            lines.append(f"{warning}{report[key]} {what}")
    return "\n".join(lines)


def calibration_table(
    made: dict, file: Path, metric: dict, after: dict, split: str, fitted: bool
) -> str:
    """The reported split before and after, and what there is to say against it; the split of the
    fit too where it was fitted just now (a file that is only applied may say less)."""
    a, b = made["scale"], made["shift_m"]
    rows = [(f"reported: {split}", metric), ("  calibrated", after)]
    if fitted:
        fit = made["fit"]
        rows[:0] = [(f"fitted: {made['split']}", fit["before"]), ("  calibrated", fit["after"])]
    lines = [
        f"calibration d' = max(0, {a:.4f} d_hat {b:+.4f} m): {file}",
        "(the figures above are without it; export.py --calibration FILE bakes it in)",
        *metric_lines(rows),
    ]
    names = {"si_rmse": "si-RMSE", "rmse": "RMSE", "log10": "log10", "rel": "REL"}
    change = {name: after[k] / metric[k] - 1 for k, name in names.items() if metric[k] > 0}
    lines.append(f"{split}: " + ", ".join(f"{name} {x:+.1%}" for name, x in change.items()))
    if fitted and b == 0:
        lines.append("every prediction was the same, so that only the scale could be fitted")
    if fitted and made["pairs"] < FEW:
        lines.append(f"WARNING: fitted on {made['pairs']} picture(s) only; take {FEW} or more")
    if worse := [name for name, x in change.items() if x > 0.001]:
        lines.append(
            f"WARNING: {', '.join(worse)} of {split} got worse: export without it, or fit on "
            "pictures that are more like these"
        )
    return "\n".join(lines)
