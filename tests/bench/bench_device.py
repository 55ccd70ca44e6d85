"""Run times of .tflite files side by side, and how far they are from what the CPU can do at most.

    python tests/bench_device.py plain=a.tflite fast=b.tflite --peer yolo26n=c.tflite
    python tests/bench_device.py --checkpoint runs/student/best.pt --peer yolo26n=c.tflite

One process, files in turn (A B C A B C ..), so that whatever else the machine does hits all alike.
A time is one invocation without the copies in and out. On a machine that others use, --clock cpu
leaves out the time in which this process did not run. The floor is a file's multiplications and
additions at the rate of fma_peak.c, measured in the same run. Not run by pytest; the peer's file
comes from tests/peer_yolo.py.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from plumbing.flags import Parser, parse_size  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = {  # --checkpoint: name of the row -> what export.py is told beside it
    "plain": ["--normalization", "graph", "--last_resize", "plain"],  # as the paper has it
    "merged": ["--last_resize", "plain"],
    "fast": [],
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
QUIET = 5.0  # per cent of one core that others may take
STATISTICS = {
    "median": np.median, "p10": lambda ms: np.percentile(ms, 10),
    "p90": lambda ms: np.percentile(ms, 90), "mean": np.mean, "std": np.std,
}  # fmt: skip


class BenchError(ValueError):
    """What cannot be compared; the message says why and names the cure."""


# ------------------------------------------------------------------------------ what is in a file


@dataclass
class Row:
    """One file: what is in it, and the milliseconds of each round's timed invocations."""

    name: str
    content: bytes
    peer: bool
    input: dict = field(init=False)  # LiteRT's details of the tensor
    output: dict = field(init=False)
    ops: Counter = field(init=False)  # operation type -> count, as the file has them
    partitions: int = field(init=False)  # stretches of operations that XNNPACK takes over
    macs: int = field(init=False)
    rounds: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises BenchError for what LiteRT cannot read or has several inputs."""
        plain = interpreter(self.name, self.content, 1, delegate=False)
        inputs = plain.get_input_details()
        if len(inputs) != 1:
            raise BenchError(f"{self.name} has {len(inputs)} inputs, wanted one picture")
        [self.input], self.output = inputs, plain.get_output_details()[0]
        self.ops = Counter(op["op_name"] for op in plain._get_ops_details())
        self.macs = count_macs(plain)
        ready = interpreter(self.name, self.content, 1)
        self.partitions = sum(op["op_name"] == "DELEGATE" for op in ready._get_ops_details())

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture, whether channels come first or last."""
        shape = [int(n) for n in self.input["shape"]]
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise BenchError(f"{self.name} takes {shape}, wanted a picture 1xHxWx3 or 1x3xHxW")
        return (shape[1], shape[2]) if shape[3] == 3 else (shape[2], shape[3])

    @property
    def ms(self) -> np.ndarray:
        return np.concatenate(self.rounds)


def interpreter(name: str, content: bytes, threads: int, delegate: bool = True):
    """A ready LiteRT interpreter, without XNNPACK unless `delegate`. Raises BenchError."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise BenchError(f"LiteRT is missing: pip install ai-edge-litert ({error})") from error
    without = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    resolver = OpResolverType.AUTO if delegate else without
    try:
        runner = Interpreter(
            model_content=content, num_threads=threads, experimental_op_resolver_type=resolver
        )
        runner.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise BenchError(
            f"{name} is no .tflite file that LiteRT runs: {reason[0] if reason else error!r}"
        ) from error
    return runner


def count_macs(runner) -> int:
    """Multiply-accumulates of one invocation in convolutions and matrix products; from the shapes.

    runner: an interpreter without delegates. Whatever else the graph does counts as nothing.
    """
    shapes = {t["index"]: [int(n) for n in t["shape"]] for t in runner.get_tensor_details()}
    total = 0
    for op in runner._get_ops_details():
        tensors = [shapes.get(int(i), []) for i in op["inputs"]]  # -1: an input left out
        total += op_macs(op["op_name"], tensors, shapes[int(op["outputs"][0])])
    return total


def op_macs(op: str, inputs: list[list[int]], output: list[int]) -> int:
    """Of one operation, inputs in TFLite's order: picture and filter, or (TRANSPOSE_CONV) the
    output's shape, filter, picture. Filters are (out, k, k, in), depthwise (1, k, k, out)."""
    if op == "CONV_2D":
        return math.prod(output) * math.prod(inputs[1][1:])
    if op == "DEPTHWISE_CONV_2D":
        return math.prod(output) * inputs[1][1] * inputs[1][2]
    if op == "TRANSPOSE_CONV":
        return math.prod(inputs[2]) * math.prod(inputs[1][:3])
    if op == "FULLY_CONNECTED":
        return math.prod(output) * inputs[1][-1]
    if op == "BATCH_MATMUL":  # either factor may be stored transposed: rows is what is left
        rows = output[-2]
        return math.prod(output) * math.prod(inputs[0][-2:]) // rows
    return 0


def picture(row: Row, seed: int) -> np.ndarray:
    """Noise in the range that the file expects: bytes, 0..255 as float (ours), 0..1 (a peer)."""
    noise = np.random.default_rng(seed).integers(0, 256, tuple(row.input["shape"]))
    dtype = np.dtype(row.input["dtype"])
    if dtype == np.int8:
        return (noise - 128).astype(dtype)
    return (noise / 255 if row.peer and dtype.kind == "f" else noise).astype(dtype)


# ------------------------------------------------------------------------------ what the CPU can do


class Peak:
    """Gop/s of one core in fused multiply-adds, best of all looks: {floats per vector: Gop/s}."""

    def __init__(self, folder: Path) -> None:
        """Compiles fma_peak.c into `folder`. Raises BenchError without a compiler."""
        source, library = Path(__file__).with_name("fma_peak.c"), folder / "fma_peak.so"
        compiler = os.environ.get("CC", "cc")
        command = [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise BenchError(f"no C compiler ({compiler}): apt install gcc, or set CC") from None
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().splitlines()
            raise BenchError(
                f"{compiler} cannot compile fma_peak.c: {reason[0] if reason else error}"
            ) from None
        self._rate = ctypes.CDLL(str(library)).fma_peak
        self._rate.restype, self._rate.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_double]
        self.gops: dict[int, float] = {}

    def look(self, seconds: float = 0.005) -> None:
        for width in (4, 8, 16):
            rate = self._rate(width, seconds)
            if rate:
                self.gops[width] = max(rate, self.gops.get(width, 0.0))

    @property
    def best(self) -> float:
        return max(self.gops.values())


def floor_ms(macs: int, gops: float) -> float:
    """Milliseconds that `macs` multiplications and as many additions take at `gops`."""
    return 2 * macs / gops / 1e6


def busy_seconds(stat: str, tick: float) -> float:
    """CPU seconds that all cores have worked, or been taken by the host, since the machine started.

    stat: the text of /proc/stat, whose first line is user, nice, system, idle, iowait, irq,
    softirq, steal (guest time is in user already), in ticks of `tick` seconds.
    """
    numbers = [int(n) for n in stat.splitlines()[0].split()[1:9]]
    return tick * (sum(numbers) - sum(numbers[3:5]))


class Watch:
    """How much CPU others take between start and stop, in per cent of one core; None: unknown."""

    def start(self) -> None:
        self.load = os.getloadavg()[0]
        self._begin = self._read()

    def stop(self) -> float | None:
        end = self._read()
        if None in (end[0], self._begin[0]):
            return None
        busy, own, clock = (b - a for a, b in zip(self._begin, end))
        return max(0.0, 100 * (busy - own) / clock)

    @staticmethod
    def _read() -> tuple[float | None, float, float]:
        own = os.times()
        try:
            stat = Path("/proc/stat").read_text()
            busy = busy_seconds(stat, 1 / os.sysconf("SC_CLK_TCK"))
        except (OSError, ValueError, IndexError):  # no Linux, or a sandbox without it
            busy = None
        return busy, own.user + own.system, time.perf_counter()


# --------------------------------------------------------------------------------------- the timing


def measure(
    rows: list[Row], peak: Peak | None, *, rounds: int, runs: int, peer_runs: int, settle: int,
    threads: int, seed: int, clock: Callable[[], float],
) -> None:  # fmt: skip
    """Fills every row's `rounds`. A turn is `settle` invocations that are not timed (a file finds
    the caches full of the one before) and `runs` that are; a round gives every file one turn.

    The first round is the warm-up and is thrown away. Between rounds `peak` is looked at. clock:
    seconds; one of CLOCKS.
    """
    runners = []
    for row in rows:
        runner = interpreter(row.name, row.content, threads)
        runner.set_tensor(row.input["index"], picture(row, seed))
        runners.append(runner)
    gc.disable()
    try:
        for number in range(rounds + 1):
            if peak:
                peak.look()
            for row, runner in zip(rows, runners):
                ms = np.empty(peer_runs if row.peer else runs)
                for _ in range(settle):
                    runner.invoke()
                for i in range(len(ms)):
                    start = clock()
                    runner.invoke()
                    ms[i] = 1e3 * (clock() - start)
                if number:
                    row.rounds.append(ms)
    finally:
        gc.enable()


def speedup(row: Row, other: Row) -> tuple[float, float, float]:
    """other's median over row's: how much faster row is; and the 10th and 90th percentile of that
    over the rounds."""
    each = [np.median(b) / np.median(a) for a, b in zip(row.rounds, other.rounds)]
    low, high = np.percentile(each, [10, 90])
    return float(np.median(other.ms) / np.median(row.ms)), float(low), float(high)


# --------------------------------------------------------------------------------------- the report


def report(
    rows: list[Row], baseline: Row, gops: float | None, macs: dict[str, int]
) -> list[dict]:  # fmt: skip
    """One dictionary per row, for JSON and for the table. macs: what a row's floor is counted on,
    where that is not the file's own."""
    compared = list({id(row): row for row in [baseline, *(r for r in rows if r.peer)]}.values())
    found = []
    for row in rows:
        ms = {name: float(f(row.ms)) for name, f in STATISTICS.items()}
        floor = gops and floor_ms(macs.get(row.name, row.macs), gops)
        found.append({
            "name": row.name, "peer": row.peer, "bytes": len(row.content),
            "input": {"shape": row.input["shape"].tolist(),
                      "dtype": np.dtype(row.input["dtype"]).name},
            "output": {"shape": row.output["shape"].tolist(),
                       "dtype": np.dtype(row.output["dtype"]).name},
            "ops": dict(row.ops.most_common()), "partitions": row.partitions, "macs": row.macs,
            "floor_macs": macs.get(row.name, row.macs), "floor_ms": floor,
            "over_floor": floor and ms["median"] / floor, "ms": ms, "timed": len(row.ms),
            "faster_than": {o.name: dict(zip(("ratio", "p10", "p90"), speedup(row, o)))
                            for o in compared},
        })  # fmt: skip
    return found


def table(found: list[dict]) -> str:
    """The report as a markdown table."""
    others = list(found[0]["faster_than"])
    head = ["file", "in", "out", "MB", "ops", "XNNPACK partitions", "M MACs", "median ms", "p10",
            "p90", "mean", "std", "floor ms", "times floor"]  # fmt: skip
    head += [f"faster than {name} (p10-p90)" for name in others]
    lines = [head, ["---"] * 3 + ["--:"] * (len(head) - 3)]
    for row in found:
        tensors = ["x".join(map(str, t["shape"])) + " " + t["dtype"]
                   for t in (row["input"], row["output"])]  # fmt: skip
        floor = ["-", "-"]
        if row["floor_ms"]:
            floor = [f"{row['floor_ms']:.3f}", f"{row['over_floor']:.2f}"]
        cells = [row["name"], *tensors, f"{row['bytes'] / 1e6:.3f}", str(sum(row["ops"].values())),
                 str(row["partitions"]), f"{row['macs'] / 1e6:.2f}",
                 *(f"{row['ms'][name]:.3f}" for name in STATISTICS), *floor]  # fmt: skip
        for name in others:
            cells.append("{ratio:.2f} ({p10:.2f}-{p90:.2f})".format(**row["faster_than"][name]))
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def cpu_name() -> str:
    """As the system calls it; an ARM system may say nothing but the machine's name."""
    for file, key in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", "")):
        try:
            text = Path(file).read_text().rstrip("\0\n")
        except OSError:
            continue
        if not key:
            return text
        for line in text.splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return platform.machine()


# --------------------------------------------------------------------------------------------- main


def export_graphs(checkpoint: Path, size: tuple[int, int], folder: Path) -> list[tuple[str, Path]]:
    """(name, file) of each of GRAPHS, made by export.py in a process of its own: this one, which
    is timed, has neither TensorFlow nor PyTorch in it. Raises BenchError."""
    made = []
    for name, flags in GRAPHS.items():
        out = folder / f"{name}.tflite"
        command = [
            sys.executable, str(ROOT / "export.py"), "--checkpoint", str(checkpoint.resolve()),
            "--out", str(out), "--input_size", f"{size[0]}x{size[1]}", "--pictures", "0",
            "--runs", "1", "--warmup", "0", *flags,
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            said = [line for line in result.stderr.splitlines() if line.startswith("export.py")]
            raise BenchError(said[-1] if said else f"export.py failed: {result.stderr[-500:]}")
        made.append((name, out))
    return made


def named_file(text: str) -> tuple[str, Path]:
    """An argparse type: "NAME=FILE" -> (NAME, FILE); a bare FILE is named by its stem."""
    name, separator, file = text.partition("=")
    path = Path(file if separator else text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{path}: no such file")
    return (name if separator else path.name.removesuffix(".tflite")), path


def whole(low: int):
    """An argparse type: a whole number of at least `low`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {low} or more")
        return int(text)

    return parse


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description="Run times of .tflite files, interleaved in one process, beside the arithmetic "
        "floor of this CPU. Prints a markdown table.",
        epilog="exit code: 0 measured (a machine that was not quiet is named, not refused); 2 an "
        "error, in one line",
    )
    parser.add_argument("files", nargs="*", type=named_file, metavar="NAME=FILE",
        help="files of ours; their input is raw RGB 0..255, float32 or uint8. All must take "
        "pictures of one size")  # fmt: skip
    parser.add_argument("--peer", action="append", default=[], type=named_file, metavar="NAME=FILE",
        help="somebody else's file, fed 0..1 where it takes floats; python tests/peer_yolo.py "
        "makes one. May be given again")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, metavar="FILE",
        help="a trained student: export.py makes three files of it, the first rows: plain, the "
        "straightforward conversion; merged, Eq. 3-6; fast, its default")  # fmt: skip
    parser.add_argument("--input_size", type=parse_size, default=(480, 640), metavar="HxW",
        help="size of the pictures of --checkpoint's files (default 480x640)")  # fmt: skip
    parser.add_argument("--baseline", metavar="NAME",
        help="the row that the others are said to be faster than (default: the first)")  # fmt: skip
    parser.add_argument("--macs", type=float, metavar="M",
        help="millions of multiply-accumulates that the floor of our rows counts, e.g. 26.735 for "
        "the paper's network, so that arithmetic spent on a resize does not raise it (default: "
        "what each file does; the least of them for --checkpoint's)")  # fmt: skip
    parser.add_argument("--rounds", type=whole(1), default=30, metavar="N",
        help="turns of each file, after one that is thrown away (default 30)")  # fmt: skip
    parser.add_argument("--runs", type=whole(1), default=20, metavar="N",
        help="timed invocations per turn (default 20)")  # fmt: skip
    parser.add_argument("--peer_runs", type=whole(1), default=2, metavar="N",
        help="the same for peers, which take hundreds of times as long (default 2)")  # fmt: skip
    parser.add_argument("--settle", type=whole(0), default=2, metavar="N",
        help="invocations at the start of a turn that are not timed; 0 = time a file on caches "
        "that hold another's data (default 2)")  # fmt: skip
    parser.add_argument("--threads", type=whole(1), default=1, metavar="N",
        help="LiteRT's threads; the floor stays that of one core (default 1)")  # fmt: skip
    parser.add_argument("--clock", default="wall", choices=[*CLOCKS],
        help="cpu = only the time in which this thread ran, for a machine that is not quiet (its "
        "caches and clock rate are still shared); one thread only (default wall)")  # fmt: skip
    parser.add_argument("--cpu", type=whole(0), metavar="N",
        help="stay on this core; worth it where the system moves the process about (default: "
        "wherever the system puts it)")  # fmt: skip
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N",
        help="of the noise picture; run times do not depend on it (default 0)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE",
        help="also write everything there, operations by type included")  # fmt: skip
    return parser


def collect(args: argparse.Namespace, folder: Path) -> tuple[list[Row], Row, dict[str, int]]:
    """-> (rows, the baseline, MACs of the floor where they are not the file's own)."""
    made = export_graphs(args.checkpoint, args.input_size, folder) if args.checkpoint else []
    ours = [Row(name, path.read_bytes(), peer=False) for name, path in [*made, *args.files]]
    rows = ours + [Row(name, path.read_bytes(), peer=True) for name, path in args.peer]
    if not rows:
        raise BenchError("no files: name some, or --checkpoint FILE")
    names = [row.name for row in rows]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BenchError(f"two rows are called {twice[0]}: name them apart, NAME=FILE")
    sizes = {row.name: row.size for row in rows}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {H}x{W}" for name, (H, W) in sizes.items())
        raise BenchError(f"pictures of unequal size ({shown}): export them for one --input_size")
    if args.baseline not in (None, *names):
        raise BenchError(f"--baseline {args.baseline}: no such row; there is {', '.join(names)}")
    if args.clock == "cpu" and args.threads > 1:
        raise BenchError("--clock cpu sees one thread only: --threads 1, or --clock wall")
    baseline = rows[names.index(args.baseline) if args.baseline else 0]
    macs = {}
    if args.macs:
        macs = {row.name: round(1e6 * args.macs) for row in ours}
    elif made:
        least = min(row.macs for row in ours[: len(made)])
        macs = {row.name: least for row in ours[: len(made)]}
    return rows, baseline, macs


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see make_parser."""
    args = make_parser().parse_args(argv)
    watch = Watch()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows, baseline, macs = collect(args, Path(folder))
            if args.cpu is not None:
                os.sched_setaffinity(0, {args.cpu})
            try:
                peak = Peak(Path(folder))
            except BenchError as error:
                peak = None
                print(f"notice: {error}; no floor", file=sys.stderr)
            watch.start()
            measure(rows, peak, rounds=args.rounds, runs=args.runs, peer_runs=args.peer_runs,
                    settle=args.settle, threads=args.threads, seed=args.seed,
                    clock=CLOCKS[args.clock])  # fmt: skip
            others = watch.stop()
        found = report(rows, baseline, peak and peak.best, macs)
        version = metadata.version("ai-edge-litert")
        if args.json:
            args.json.write_text(json.dumps({
                "cpu": cpu_name(), "cores": os.cpu_count(), "litert": version,
                "threads": args.threads, "clock": args.clock,
                "rounds": args.rounds, "runs": args.runs,
                "peer_runs": args.peer_runs, "settle": args.settle, "load_before": watch.load,
                "others_percent_of_a_core": others, "baseline": baseline.name,
                "quiet": others is not None and others <= QUIET,
                "peak_gops": peak and {str(w): rate for w, rate in peak.gops.items()},
                "rows": found,
            }, indent=1) + "\n")  # fmt: skip
    except (BenchError, OSError) as error:
        print(f"bench_device.py: {error}", file=sys.stderr)
        return 2

    print(table(found))
    threads = f"{args.threads} thread" + "s" * (args.threads > 1)
    print(f"\n{cpu_name()}, {threads}, LiteRT {version}, {args.rounds} rounds of {args.runs} runs "
          f"({args.peer_runs} of a peer's) in turn, {args.clock} time")  # fmt: skip
    if peak:
        shown = ", ".join(f"{rate:.0f} in vectors of {w}" for w, rate in peak.gops.items())
        print(f"peak of one core, fp32: {peak.best:.0f} Gop/s ({shown})")
    if others is None:
        print("load unknown: no /proc/stat here")
    else:
        print(f"load average {watch.load:.2f} before; others took {others:.1f} % of one core"
              + (f": NOT QUIET (over {QUIET:g} %), trust the ratios, not the milliseconds"
                 if others > QUIET else ""))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
