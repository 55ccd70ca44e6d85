"""Run times of .tflite files side by side, and how far they are from what the CPU can do at most.

    python tests/bench/bench_device.py plain=a.tflite fast=b.tflite --peer yolo26n=c.tflite
    python tests/bench/bench_device.py --checkpoint runs/student/best.pt --peer yolo26n=c.tflite

One process, files in turn (A B C A B C ..), so that whatever else the machine does hits all alike.
A time is one invocation without the copies in and out. The floor is a file's multiplications and
additions at the rate of fma_peak.c, measured in the same run. Not run by pytest; the peer's file
comes from peer_yolo.py.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from plumbing.device import doubts, machine  # noqa: E402
from plumbing.files import UserError, notice, run_main, write_json  # noqa: E402
from plumbing.flags import Parser, count, parse_size, positive  # noqa: E402
from plumbing.report import operations  # noqa: E402

GRAPHS = {  # --checkpoint: name of the row -> what export.py is told beside it
    "plain": ["--normalization", "graph", "--last_resize", "plain"],  # as the paper has it
    "merged": ["--last_resize", "plain"],
    "fast": [],
}
SETTLE = 2  # invocations at the start of a turn that are not timed: the caches are another file's


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
        plain = interpreter(self.name, self.content, 1, delegate=False)
        [self.input], [self.output, *_] = plain.get_input_details(), plain.get_output_details()
        self.macs = count_macs(plain)
        self.ops, self.partitions, _ = operations(self.content)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture, whether channels come first or last."""
        shape = self.input["shape"].tolist()
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise UserError(f"{self.name} takes {shape}, wanted a picture 1xHxWx3 or 1x3xHxW")
        return (shape[1], shape[2]) if shape[3] == 3 else (shape[2], shape[3])

    @property
    def ms(self) -> np.ndarray:
        return np.concatenate(self.rounds)


def interpreter(name: str, content: bytes, threads: int, delegate: bool = True):
    """A ready LiteRT interpreter, without XNNPACK unless `delegate`. Raises UserError."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    without = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    resolver = OpResolverType.AUTO if delegate else without
    try:
        lite = Interpreter(
            model_content=content, num_threads=threads, experimental_op_resolver_type=resolver
        )
        lite.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{name} is no .tflite file that LiteRT runs: {error}") from error
    return lite


def count_macs(lite) -> int:
    """Multiply-accumulates of one invocation in convolutions and matrix products; from the shapes.

    lite: an interpreter without delegates. Whatever else the graph does counts as nothing.
    """
    shapes = {t["index"]: t["shape"].tolist() for t in lite.get_tensor_details()}
    total = 0
    for op in lite._get_ops_details():
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
        return math.prod(output) * math.prod(inputs[0][-2:]) // output[-2]
    return 0


def picture(row: Row) -> np.ndarray:
    """Noise in the range that the file expects: bytes, 0..255 as float (ours), 0..1 (a peer)."""
    noise = np.random.default_rng(0).integers(0, 256, tuple(row.input["shape"]))
    dtype = np.dtype(row.input["dtype"])
    if dtype == np.int8:
        return (noise - 128).astype(dtype)
    return (noise / 255 if row.peer and dtype.kind == "f" else noise).astype(dtype)


# ------------------------------------------------------------------------------ what the CPU can do


class Peak:
    """Gop/s of one core in fused multiply-adds, best of all looks: {floats per vector: Gop/s}."""

    def __init__(self, folder: Path) -> None:
        """Compiles fma_peak.c into `folder`. Raises UserError where there is no compiler."""
        source, library = Path(__file__).with_name("fma_peak.c"), folder / "fma_peak.so"
        command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", source, "-o", library]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"fma_peak.c: {error}: apt install gcc, or set CC") from error
        self._rate = ctypes.CDLL(str(library)).fma_peak
        self._rate.restype, self._rate.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_double]
        self.gops: dict[int, float] = {}

    def update(self, seconds: float = 0.005) -> None:
        for width in (4, 8, 16):
            if rate := self._rate(width, seconds):
                self.gops[width] = max(rate, self.gops.get(width, 0.0))


def floor_ms(macs: int, gops: float) -> float:
    """Milliseconds that `macs` multiplications and as many additions take at `gops`."""
    return 2 * macs / gops / 1e6


# --------------------------------------------------------------------------------------- the timing


def time_in_turn(rows: list[Row], peak: Peak | None, args: argparse.Namespace) -> None:
    """Fills every row's `rounds`. A round gives every file one turn: SETTLE invocations and
    args.runs (args.peer_runs) timed ones. The first round is thrown away."""
    ready = []
    for row in rows:
        lite = interpreter(row.name, row.content, args.threads)
        lite.set_tensor(row.input["index"], picture(row))
        ready.append(lite)
    gc.disable()
    try:
        for number in range(args.rounds + 1):
            if peak:
                peak.update()
            for row, lite in zip(rows, ready):
                ms = np.empty(args.peer_runs if row.peer else args.runs)
                for _ in range(SETTLE):
                    lite.invoke()
                for i in range(len(ms)):
                    start = time.perf_counter()
                    lite.invoke()
                    ms[i] = 1e3 * (time.perf_counter() - start)
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


def report(rows: list[Row], gops: float | None, macs: int | None) -> list[dict]:
    """One dictionary per row, for JSON and for the table: compared with the first row and with the
    peers. macs: what the floor of ours is counted on; None: the file's own."""
    compared = [rows[0], *(row for row in rows[1:] if row.peer)]
    found = []
    for row in rows:
        p10, median, p90 = np.percentile(row.ms, [10, 50, 90]).tolist()
        floor = gops and floor_ms(macs if macs and not row.peer else row.macs, gops)
        tensors = {
            name: {"shape": t["shape"].tolist(), "dtype": np.dtype(t["dtype"]).name}
            for name, t in (("input", row.input), ("output", row.output))
        }
        found.append({
            "name": row.name, "peer": row.peer, "bytes": len(row.content), **tensors,
            "ops": dict(row.ops.most_common()), "partitions": row.partitions, "macs": row.macs,
            "floor_ms": floor, "over_floor": floor and median / floor, "timed": len(row.ms),
            "ms": {"median": median, "p10": p10, "p90": p90},
            "faster_than": {o.name: dict(zip(("ratio", "p10", "p90"), speedup(row, o)))
                            for o in compared},
        })  # fmt: skip
    return found


def table(found: list[dict]) -> str:
    """The report as a markdown table."""
    others = list(found[0]["faster_than"])
    head = ["file", "in", "out", "MB", "ops", "XNNPACK partitions", "M MACs", "median ms (p10-p90)",
            "floor ms", "times floor", *(f"faster than {name} (p10-p90)" for name in others)]  # fmt: skip  # noqa: E501
    lines = [head, ["---"] * 3 + ["--:"] * (len(head) - 3)]
    for row in found:
        tensors = ["x".join(map(str, t["shape"])) + " " + t["dtype"]
                   for t in (row["input"], row["output"])]  # fmt: skip
        floor = row["floor_ms"]
        lines.append([
            row["name"], *tensors, f"{row['bytes'] / 1e6:.3f}", str(sum(row["ops"].values())),
            str(row["partitions"]), f"{row['macs'] / 1e6:.2f}",
            "{median:.3f} ({p10:.3f}-{p90:.3f})".format(**row["ms"]),
            *([f"{floor:.3f}", f"{row['over_floor']:.2f}"] if floor else "--"),
            *("{ratio:.2f} ({p10:.2f}-{p90:.2f})".format(**row["faster_than"][n]) for n in others),
        ])  # fmt: skip
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# --------------------------------------------------------------------------------------------- main


def export_graphs(checkpoint: Path, size: tuple[int, int], folder: Path) -> list[tuple[str, Path]]:
    """(name, file) of each of GRAPHS, made by export.py in a process of its own: this one, which
    is timed, has neither TensorFlow nor PyTorch in it. Raises UserError."""
    made = []
    for name, flags in GRAPHS.items():
        out = folder / f"{name}.tflite"
        command = [
            sys.executable, ROOT / "export.py", "--checkpoint", checkpoint.resolve(), "--out", out,
            "--input_size", f"{size[0]}x{size[1]}", "--pictures", "0", "--runs", "1", *flags,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(done.stderr.strip().splitlines()[-1])
        made.append((name, out))
    return made


def named_file(text: str) -> tuple[str, Path]:
    """An argparse type: "NAME=FILE" -> (NAME, FILE); a bare FILE is named by its stem."""
    name, separator, file = text.partition("=")
    path = Path(file if separator else text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{path}: no such file")
    return (name if separator else path.name.removesuffix(".tflite")), path


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bench_device.py",
        description="Run times of .tflite files, interleaved in one process, beside the arithmetic "
        "floor of this CPU. Prints a markdown table.",
    )
    add = parser.add_argument
    add("files", nargs="*", type=named_file, metavar="NAME=FILE",
        help="files of ours; their input is raw RGB 0..255, float32 or uint8. All must take "
        "pictures of one size")  # fmt: skip
    add("--peer", action="append", default=[], type=named_file, metavar="NAME=FILE",
        help="somebody else's file, fed 0..1 where it takes floats; peer_yolo.py makes one. May be "
        "given again")  # fmt: skip
    add("--checkpoint", type=Path, metavar="FILE",
        help="a trained student: export.py makes three files of it, the first rows: plain, the "
        "straightforward conversion; merged, Eq. 3-6; fast, its default")  # fmt: skip
    add("--input_size", type=parse_size, default=(480, 640), metavar="HxW",
        help="size of the pictures of --checkpoint's files (default 480x640)")  # fmt: skip
    add("--macs", type=positive, metavar="M",
        help="millions of multiply-accumulates that the floor of our rows counts, e.g. 26.735 for "
        "the paper's network, so that arithmetic spent on a resize does not raise it (default: "
        "what each file does; the least of them with --checkpoint)")  # fmt: skip
    add("--rounds", type=count, default=30, metavar="N",
        help="turns of each file, after one that is thrown away (default 30)")  # fmt: skip
    add("--runs", type=count, default=20, metavar="N",
        help="timed invocations per turn (default 20)")  # fmt: skip
    add("--peer_runs", type=count, default=2, metavar="N",
        help="the same for peers, which take hundreds of times as long (default 2)")  # fmt: skip
    add("--threads", type=count, default=1, metavar="N",
        help="LiteRT's threads; the floor stays that of one core (default 1)")  # fmt: skip
    add("--json", type=Path, metavar="FILE",
        help="also write everything there, operations by type included")  # fmt: skip
    return parser


def collect(args: argparse.Namespace, folder: Path) -> tuple[list[Row], int | None]:
    """-> (rows, MACs of the floor of ours where they are not the file's own)."""
    made = export_graphs(args.checkpoint, args.input_size, folder) if args.checkpoint else []
    ours = [Row(name, path.read_bytes(), peer=False) for name, path in [*made, *args.files]]
    rows = ours + [Row(name, path.read_bytes(), peer=True) for name, path in args.peer]
    if not rows:
        raise UserError("no files: name some, or --checkpoint FILE")
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise UserError(f"two rows of one name ({', '.join(names)}): name them apart, NAME=FILE")
    if len({row.size for row in rows}) > 1:
        shown = ", ".join(f"{row.name} {'x'.join(map(str, row.size))}" for row in rows)
        raise UserError(f"pictures of unequal size ({shown}): export them for one --input_size")
    least = min(row.macs for row in ours) if made else None
    return rows, round(1e6 * args.macs) if args.macs else least


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows, macs = collect(args, Path(folder))
        try:
            peak = Peak(Path(folder))
        except UserError as error:
            peak = None
            notice(f"{error}; no floor")
        start = machine(Path("/"))
        time_in_turn(rows, peak, args)
    gops = max(peak.gops.values()) if peak else None
    found = report(rows, gops, macs)
    about = {
        "litert": metadata.version("ai-edge-litert"), "threads": args.threads, "host": start,
        "rounds": args.rounds, "runs": args.runs, "peer_runs": args.peer_runs,
        "peak_gops": peak and peak.gops, "rows": found,
    }  # fmt: skip
    if args.json:
        write_json(args.json, about)
    print(table(found))
    print(f"\n{start['cpu']}, threads {args.threads}, LiteRT {about['litert']}, {args.rounds} "
          f"rounds of {args.runs} runs ({args.peer_runs} of a peer's) in turn")  # fmt: skip
    if peak:
        shown = ", ".join(f"{rate:.0f} in vectors of {w}" for w, rate in peak.gops.items())
        print(f"peak of one core, fp32: {gops:.0f} Gop/s ({shown})")
    for doubt in doubts(start, []):
        notice(doubt)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "bench_device.py"))
