"""The export's report card: what is in a file, how far it is from PyTorch, how fast it is."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from plumbing.device import run_times
from plumbing.files import UserError, notice, progress
from plumbing.flags import count, flag, nonnegative, positive, whole
from plumbing.pairs import WAYS, DataError, Pair, Source, list_pairs, read_pair, resolve, spread
from plumbing.runtime import Predictor, interpreter


@dataclass(frozen=True)
class Comparison:
    """report card"""

    data: str | None = flag(
        None, "data set to compare on and to take int8's ranges from (default: that of the "
        "checkpoint's run, where its args.json names it)", metavar="ROOT|synthetic:N|rooms:N",
    )  # fmt: skip
    split: str | None = flag(
        None, "which pictures of --data to compare on (default: the --val_split of the "
        "checkpoint's run, or val)",
    )  # fmt: skip
    pictures: int | None = flag(
        None, "compare on N of them, spread evenly; 0 = only on six test pictures, which are "
        "compared always (default: all)", whole, metavar="N",
    )  # fmt: skip
    train_split: str | None = flag(
        None, "where int8's ranges come from (default: the --split of the checkpoint's run, or "
        "train)", metavar="SPLIT",
    )  # fmt: skip
    range_pictures: int = flag(
        100, "how many pictures int8's ranges are taken from, spread evenly", count, metavar="N"
    )
    depth_scale: float | None = flag(
        None, "units of the depth files per metre (default: the run's, or 1000)", positive,
        metavar="S",
    )  # fmt: skip
    max_depth: float | None = flag(
        None, "metres at which a depth is cut before it is scored (default: the run's, or 40)",
        positive, metavar="M",
    )  # fmt: skip
    depth_orientation: str | None = flag(
        None, "of depth maps that fit their turned picture both ways (default: the run's, or "
        "stored)", choices=WAYS,
    )  # fmt: skip

    def of(self, checkpoint: Path) -> Comparison:
        """With all filled in that the args.json beside the checkpoint says of its run. Raises
        DataError where --data cannot be compared on; the run's own is then left out."""
        try:
            ran = json.loads(checkpoint.with_name("args.json").read_text())
        except (OSError, ValueError):
            ran = {}
        if ran.get("val_split") == "none":  # the run looked at none; there may be one all the same
            del ran["val_split"]
        filled = replace(
            self, data=self.data or ran.get("data"),
            split=self.split or ran.get("val_split") or "val",
            train_split=self.train_split or ran.get("split") or "train",
            depth_scale=self.depth_scale or ran.get("depth_scale") or 1000.0,
            max_depth=self.max_depth or ran.get("max_depth") or 40.0,
            depth_orientation=self.depth_orientation or ran.get("depth_orientation"),
        )  # fmt: skip
        try:
            if (filled.data or "").startswith("rooms:"):  # of the size that the run has rendered
                folder = ran.get("furniture") and Path(ran["furniture"])
                size = ran.get("image_size") or Source.image_size
                scale = filled.depth_scale
                rendered = Source(filled.data, folder, image_size=size, depth_scale=scale)
                filled = replace(filled, data=str(resolve(rendered)))
            filled.pairs(filled.split, self.pictures)
        except UserError as error:
            if self.data:
                raise
            notice(f"{error}; only the test pictures are compared")
            return replace(filled, data=None)
        return filled

    def pairs(self, split: str, number: int | None) -> list[Pair]:
        """So many of a split, spread evenly; None: all. Raises DataError."""
        if not self.data or number == 0:
            return []
        way = self.depth_orientation or "stored"
        root = resolve(Source(self.data, depth_scale=self.depth_scale))
        pairs = list_pairs(root, split, orientation=way)
        return spread(pairs, number or len(pairs))

    def read(self, split: str, number: int | None, size: tuple[int, int]) -> Iterator[tuple]:
        """RGB u8 (H, W, 3) and metres (H, W) of each of `pairs`; what cannot be read is named and
        left out."""
        pairs, known = self.pairs(split, number), {}
        for pair in progress(pairs, len(pairs), split):
            try:
                sample = read_pair(pair, size, None, known)
                yield sample.rgb, sample.depth / np.float32(self.depth_scale)
            except DataError as error:
                notice(f"left out: {error}")


@dataclass(frozen=True)
class Limits:
    """tolerances"""

    tolerance: float = flag(
        1e-4, "fp32 and onnx: largest absolute error allowed, in metres; times the largest depth "
        "where that exceeds 1 m (default 1e-4; float rounding gives about 1e-5)", nonnegative,
        metavar="M",
    )  # fmt: skip
    tolerance_fp16: float = flag(
        5e-3, "the same for fp16 (default 5e-3: weights of 11 bits give about 1e-3)", nonnegative,
        metavar="M",
    )  # fmt: skip
    tolerance_int8: float = flag(
        0.05, "int8 and int8-dynamic: largest mean absolute error allowed, over the mean depth, on "
        "--data (on the test pictures without it)", nonnegative, metavar="R",
    )  # fmt: skip
    tolerance_si_rmse: float = flag(
        0.02, "and by how much their si-RMSE may exceed PyTorch's (default 0.02, that is 2 %%)",
        nonnegative, metavar="R",
    )  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """run times on this host"""

    threads: int = flag(
        1, "CPU threads; 0 = all usable cores. predict.py --benchmark compares them all", whole,
        metavar="N",
    )  # fmt: skip
    runs: int = flag(50, "timed invocations; more on a busy host", count, metavar="N")
    warmup: int = flag(10, "invocations before timing starts", whole, metavar="N")
    C: float = flag(
        0.01, "constant of Eq. 14's Score; its run time is this host's (default 0.01, as in "
        "Table 3)", positive,
    )  # fmt: skip


# --------------------------------------------------------------------------------- what is in it


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keeps back what C++ libraries write to standard error meanwhile, a dozen lines about CUDA and
    oneDNN that read like errors; an exception that leaves shows them after all.

    Python's own sys.stderr goes the same way, so print nothing inside.
    """
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


DELEGATE = "DELEGATE"


def operations(content: bytes) -> tuple[Counter, int, Counter]:
    """(operation type -> count, number of XNNPACK's partitions, operations that it leaves out)."""
    with hushed():  # it announces XNNPACK
        lite = interpreter(content, "the exported file", 1)
    details = lite._get_ops_details()
    kinds, outside = Counter(op["op_name"] for op in details), Counter()
    # Back from the output; a tensor that a partition gives is that partition's: they come last.
    made_by = {t: op for op in details for t in op["outputs"].tolist()}
    tensors = [lite.get_output_details()[0]["index"]]
    while tensors:
        if op := made_by.pop(tensors.pop(), None):
            outside[op["op_name"]] += 1
            tensors += op["inputs"].tolist()
    del outside[DELEGATE]
    return kinds, kinds.pop(DELEGATE, 0), outside


# Operations that TFLite's GPU delegate takes, of those that a graph of ours may hold (its published
# rules; it takes others too). Not GATHER, which those rules allow: LiteRT 2.1.6's cannot start. Not
# CAST, which it takes of floats and int32 only, and bytes are what we cast.
GPU_OPS = frozenset(
    "ADD CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV MUL QUANTIZE RELU RESHAPE "
    "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SUB".split()
)


# --------------------------------------------------------------------------- how far from PyTorch


def pattern_pictures(size: tuple[int, int]) -> list[np.ndarray]:
    """Six (H, W, 3) uint8: noise, smooth, black, white, a bright border, a checkerboard."""
    H, W = size
    v, u = np.mgrid[:H, :W]
    frame = np.full((H, W, 3), 255)
    frame[1:-1, 1:-1] = 0
    pictures = [
        np.random.default_rng(0).integers(0, 256, (H, W, 3)),
        np.stack([256 * v / H, 256 * u / W, 255 - 255 * v / H], 2),
        np.zeros((H, W, 3)), np.full((H, W, 3), 255), frame,
        np.where(((v // 8 + u // 8) % 2)[..., None], (255, 128, 0), (0, 64, 255)),
    ]  # fmt: skip
    return [picture.astype(np.uint8) for picture in pictures]


@dataclass
class Parity:
    """Absolute differences from PyTorch over pictures of one size; metres.

    A signed mean would hide errors that cancel, and a mean those that sit in one border row: the
    largest counts too.
    """

    pictures: int = 0
    max_abs: float = 0.0
    mean_abs: float = 0.0
    depth_max: float = -math.inf  # of the reference
    depth_mean: float = 0.0

    def add(self, reference: np.ndarray, output: np.ndarray) -> None:
        """One picture, (h, w) metres each; a NaN makes both errors NaN."""
        with np.errstate(invalid="ignore"):  # inf - inf
            error = np.abs(output.astype(np.float64) - reference)
        self.pictures += 1
        self.max_abs = float(np.maximum(self.max_abs, error.max()))
        self.mean_abs += (float(error.mean()) - self.mean_abs) / self.pictures
        self.depth_max = max(self.depth_max, float(reference.max()))
        mean = float(reference.mean(dtype=np.float64))
        self.depth_mean += (mean - self.depth_mean) / self.pictures


@dataclass
class Card:
    """A line of the report: one file, measured."""

    format: str
    path: Path
    megabytes: float = 0.0
    operations: dict[str, int] = field(default_factory=dict)
    partitions: int | None = None  # XNNPACK's
    outside_xnnpack: dict[str, int] = field(default_factory=dict)
    gpu: str | None = None  # "yes", or "no: " and what TFLite's delegate does not take
    ms: dict[str, float] = field(default_factory=dict)  # run_times
    tests: Parity = field(default_factory=Parity)  # against PyTorch, on the test pictures
    real: Parity = field(default_factory=Parity)  # and on those of the data set
    metrics: dict[str, float] | None = None
    score: float | None = None
    broken: list[str] = field(default_factory=list)

    def describe(self, content: bytes) -> None:
        """Fills in what the file's bytes tell.

        gpu: by the names of the operations, since TensorFlow's analyzer has no rules left since
        2.18 and calls every file compatible. A driver may still refuse the graph, and only a phone
        can tell how fast it is; tests/bench/gpu_delegate.py runs a file on a delegate.
        """
        self.megabytes = len(content) / 1e6
        if self.format == "onnx":
            import onnx

            nodes = onnx.load_from_string(content).graph.node
            self.operations = dict(Counter(node.op_type for node in nodes).most_common())
            return
        ops, self.partitions, outside = operations(content)
        self.operations, self.outside_xnnpack = dict(ops.most_common()), dict(outside)
        refused = ", ".join(sorted(ops.keys() - GPU_OPS))
        self.gpu = f"no: {refused}" if refused else "yes"

    def time(self, predictor: Predictor, o: Timing) -> None:
        """Fills in `ms`, of the network alone."""
        for _ in range(o.warmup):
            predictor.invoke()
        self.ms = run_times(predictor.invoke, o.runs)

    def judge(self, limits: Limits, pytorch: dict[str, float] | None) -> None:
        """Fills in `broken`: what of its stated tolerance the file breaks, in words.

        fp32, fp16 and onnx are held to the largest error on all pictures. int8 is made for real
        ones and held to its mean error and si-RMSE there. pytorch: PyTorch's metrics.
        """
        if self.format.startswith("int8"):
            parity = self.real if self.real.pictures else self.tests
            limit = limits.tolerance_int8 * parity.depth_mean
            if not parity.mean_abs <= limit < math.inf:  # also for NaN
                self.broken.append(f"mean error {parity.mean_abs:.2e} m > {limit:.2e} m")
            factor = 1 + limits.tolerance_si_rmse
            if pytorch and not self.metrics["si_rmse"] <= factor * pytorch["si_rmse"]:
                self.broken.append(f"si-RMSE {self.metrics['si_rmse']:.4f} > {factor:g} x "
                                   f"{pytorch['si_rmse']:.4f}")  # fmt: skip
            return
        allowed = limits.tolerance_fp16 if self.format == "fp16" else limits.tolerance
        for where, parity in {"test pictures": self.tests, "data": self.real}.items():
            limit = allowed * max(1.0, parity.depth_max)
            if not parity.max_abs <= limit < math.inf:  # also for NaN, and an infinite reference
                self.broken.append(
                    f"max error {parity.max_abs:.2e} m > {limit:.2e} m on the {where}"
                )

    def column(self) -> dict[str, str]:
        """Line of the printed report -> this file's cell; errors on the data set's pictures, and on
        the test pictures where there is none."""
        parity = self.real if self.real.pictures else self.tests
        left = "".join(f" + {n} {name}" for name, n in self.outside_xnnpack.items())
        return {
            "MB": f"{self.megabytes:.3f}",
            "operations": str(sum(self.operations.values())),
            "XNNPACK partitions": "-" if self.partitions is None else f"{self.partitions}{left}",
            "GPU delegate": self.gpu or "-",
            "ms (p90)": f"{self.ms['p50']:.2f} ({self.ms['p90']:.2f})",
            "largest error, m": f"{parity.max_abs:.1e}",
            "mean error, m": f"{parity.mean_abs:.1e}",
            **metric_cells(self.metrics),
            "Score": "-" if self.score is None else f"{self.score:.1f}",
            "tolerance": "BROKEN" if self.broken else "kept",
        }


# ------------------------------------------------------------------------------------- the printed


def metric_cells(metrics: dict[str, float] | None) -> dict[str, str]:
    """The printed report's lines of the metrics; "-" where nothing was measured."""
    if metrics is None:
        return {"si-RMSE": "-", "RMSE, m": "-"}
    return {"si-RMSE": f"{metrics['si_rmse']:.4f}", "RMSE, m": f"{metrics['rmse']:.3f}"}


def card_table(cards: list[Card], pytorch: dict[str, float] | None) -> str:
    """All cards side by side, as a Markdown table; pytorch: its metrics, the first column."""
    columns = [card.column() for card in cards]
    reference = metric_cells(pytorch)
    rows = [["", "PyTorch", *(card.format for card in cards)]]
    rows += [[name, reference.get(name, ""), *(column[name] for column in columns)]
             for name in columns[0]]  # fmt: skip
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    rows.insert(1, ["-" * n for n in widths])
    lines = (" | ".join(f"{cell:<{n}}" for cell, n in zip(row, widths)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def printed(report: dict, cards: list[Card]) -> str:
    """report.json's content for the terminal."""
    layout, on, timing = report["layout"], report["compared"], report["timing"]
    (H, W), (h, w) = layout["input_size"], layout["output_size"]
    calibration, real = report["metadata"]["calibration"], cards[0].real.pictures
    rows = {
        "checkpoint": report["checkpoint"],
        "input": f"1x{H}x{W}x3 {layout['input_type']}, raw RGB 0..255",
        "output": f"1x{h}x{w}x1 float32, {layout['unit']}, {layout['upsample']}",
        "calibration": calibration and
        f"{calibration['scale']:.4g} d {calibration['shift_m']:+.4g} m, in the file and in PyTorch",
        "compared": f"with PyTorch on {cards[0].tests.pictures} test pictures" + (
            f", {real} of {on['data']} {on['split']}; errors in metres, on the latter" if real else
            "; si-RMSE and errors on real pictures: --data ROOT"),
        "timing": f"{timing['runs']} runs after {timing['warmup']} more, without copies in or out, "
        f"threads {timing['threads'] or 'all'} on {report['host']['cpu']}",
    }  # fmt: skip
    rows |= {card.format: card.path for card in cards}
    lines = [f"{name:<14}{text or 'none'}" for name, text in rows.items()]
    return "\n".join([*lines, "", card_table(cards, report["pytorch"])])
