"""Run time on this device (Table 2), and what makes it doubtful."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from plumbing.files import usable_cores
from plumbing.pictures import resize_picture
from plumbing.runtime import Predictor


def benchmark(
    load: Callable[[int], Predictor], picture: np.ndarray | None, threads: Iterable[int], *,
    warmup: int, runs: int, root: Path = Path("/"),
) -> dict:  # fmt: skip
    """Run times in ms for each thread count, and what they depend on, for `benchmark_table`.

    load: thread count -> predictor. picture: RGB u8 of any size; None: noise of the network's. Per
    count, after `warmup` runs: `runs` times the network alone (copies in and out excluded, as far
    as `Predictor.invoke` is known) and `runs` times the whole path (picture resized, copied in,
    run, copied out, depth resized). root: above proc/ and sys/ (tests have their own).
    """
    start, rows = machine(root), []
    for count in threads:
        predictor = load(count)
        predictor.tells_shape = False  # the table names the picture's size
        if picture is None:
            picture = np.random.default_rng(0).integers(0, 256, (*predictor.size, 3), np.uint8)
        for _ in range(warmup):
            predictor(picture)
        before = machine(root)  # after the warm-up: an idle clock is low
        image = resize_picture(picture, predictor.size).astype(predictor.dtype)
        network = predictor.invoke or functools.partial(predictor.run, image)
        rows.append({
            "threads": count, "about": predictor.about, "network_ms": run_times(network, runs),
            "whole_ms": run_times(functools.partial(predictor, picture), runs), "before": before,
            "after": machine(root),
        })  # fmt: skip
    return {
        "picture": list(picture.shape[:2]), "runs": runs, "warmup": warmup, "start": start,
        "threads": rows, "warnings": doubts(start, rows),
    }  # fmt: skip


def run_times(call: Callable, runs: int) -> dict[str, float]:
    """Milliseconds of `runs` calls: median, tail, and Table 2's Average and STD."""
    ends = [time.perf_counter()]
    for _ in range(runs):
        call()
        ends.append(time.perf_counter())
    ms = 1000 * np.diff(ends)
    p50, p90, p99 = np.percentile(ms, (50, 90, 99)).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "mean": float(ms.mean()), "std": float(ms.std())}


def machine(root: Path) -> dict:
    """What this computer tells of itself now; None where it does not.

    cpu, cores, governor; mhz: the fastest core's; celsius: the hottest zone's; load: of the last
    minute; throttled: the bits of a Raspberry Pi's firmware, see `THROTTLED`. They are looked at
    beside the MHz because the Pi's kernel does not count its firmware's throttling in those.
    """

    def read(pattern: str) -> list[str]:
        found = []
        for path in sorted(root.glob(pattern)):
            with contextlib.suppress(OSError):  # some sensors exist and cannot be read
                found.append(path.read_text(errors="replace").strip("\0\n "))
        return found

    def numbers(pattern: str) -> list[int]:
        return [int(text) for text in read(pattern) if re.fullmatch(r"-?\d+", text)]

    cpu = read("proc/device-tree/model")
    cpu += re.findall(r"(?m)^model name\s*: (.+)$", "\n".join(read("proc/cpuinfo")))
    mhz = [khz / 1000 for khz in numbers("sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")]
    celsius = [t / 1000 for t in numbers("sys/class/thermal/thermal_zone*/temp")]
    bits = read("sys/devices/platform/soc*/*/get_throttled")  # hexadecimal
    load = read("proc/loadavg")
    return {
        "cpu": f"{(cpu or [platform.processor() or 'CPU'])[0]}, {platform.machine()}",
        "cores": usable_cores(),
        "governor": (read("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor") or [None])[0],
        "mhz": max(mhz, default=None),
        "celsius": max((t for t in celsius if -50 < t < 150), default=None),
        "throttled": int(bits[0], 16) if bits else None,
        "load": float(load[0].split()[0]) if load else None,
    }


# Bit of get_throttled -> meaning; 16 bits higher the same: has happened earlier.
THROTTLED = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}


def doubts(start: dict, rows: list[dict]) -> list[str]:
    """Reasons not to trust the run times, each in one line with its cure."""
    told = []
    if (start["load"] or 0) >= 0.5:
        told.append(f"load average {start['load']:g} before the start: something else runs here, "
                    "or just did; wait, or stop it")  # fmt: skip
    if start["governor"] == "powersave":
        told.append("governor powersave: the clock may stay low; echo performance | sudo tee "
                    "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")  # fmt: skip
    for row in rows:
        before, after = row["before"]["mhz"], row["after"]["mhz"]
        if before and after and after < 0.95 * before:
            told.append(f"threads {row['threads']}: the clock fell from {before:.0f} to "
                        f"{after:.0f} MHz: heat or a weak supply; cool it and repeat")  # fmt: skip
    states = [state for row in rows for state in (row["before"], row["after"])]
    hottest = max((s["celsius"] for s in states if s["celsius"] is not None), default=0)
    if hottest >= 80:
        told.append(f"{hottest:.0f} C: a Raspberry Pi slows down from 80 C on; give it a heat sink "
                    "or a fan, and repeat")  # fmt: skip
    earlier, bits = start["throttled"] or 0, 0
    for now in (s["throttled"] or 0 for s in states):
        bits |= now | (now & ~earlier) >> 16
    if names := [name for bit, name in THROTTLED.items() if bits >> bit & 1]:
        told.append(f"the firmware reports {', '.join(names)}: better supply or cooling needed")
    return told


def benchmark_table(report: dict) -> str:
    """The report of `benchmark` for the terminal."""
    start, (H, W) = report["start"], report["picture"]

    def state(s: dict) -> str:
        mhz, celsius = ("-" if s[k] is None else round(s[k]) for k in ("mhz", "celsius"))
        return f"{mhz:>6}{celsius:>5}"

    about = [start["cpu"], f"{start['cores']} cores"]
    about += [f"{k} {start[k]}" for k in ("governor", "load") if start[k] is not None]
    about += [f"throttled {start['throttled']:#x}"] if start["throttled"] is not None else []
    kinds = {"network_ms": ("p50", "p90", "p99", "mean", "std"), "whole_ms": ("p50", "p90")}
    lines = [
        ", ".join(about),
        f"{report['runs']} runs after {report['warmup']} more; milliseconds. network: alone (of a "
        ".tflite, without copies in and out)",
        f"whole: {H}x{W} picture to depth. MHz, C: after the runs; at the start{state(start)}",
        f"{'':<8}{'network':>40}{'whole':>16}",
        f"{'threads':<8}" + "".join(f"{k:>8}" for keys in kinds.values() for k in keys)
        + "   MHz    C",
    ]  # fmt: skip
    for row in report["threads"]:
        figures = "".join(f"{row[kind][k]:>8.2f}" for kind, keys in kinds.items() for k in keys)
        lines.append(f"{row['threads']:<8}{figures}{state(row['after'])}")
    return "\n".join(lines)
