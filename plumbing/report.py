"""The export's report card: what is in a file, how it differs from PyTorch, how fast it is."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plumbing.files import UserError


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


def tensorflow_quietly():
    """TensorFlow, quiet and without the GPU (with one it lays the graph out differently)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with hushed():
            import tensorflow as tf
    except ImportError as error:
        raise UserError(f"export needs TensorFlow: pip install tensorflow ({error})") from error
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:  # TensorFlow already runs in this process: its devices are settled
        pass
    return tf


DELEGATE = "DELEGATE"


def interpreter(content: bytes, threads: int):
    """A ready LiteRT interpreter for a TFLite file. Raises UserError when LiteRT is missing."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UserError(
            f"running a TFLite file needs LiteRT: pip install ai-edge-litert==2.1.6 ({error})"
        ) from error
    try:
        with hushed():  # it announces XNNPACK
            runner = Interpreter(model_content=content, num_threads=threads)
            runner.allocate_tensors()
    except RuntimeError as error:
        raise UserError(
            f"LiteRT cannot run it; are --input_size and --output_size too large? {error}".strip()
        ) from error
    return runner


def operations(content: bytes) -> tuple[Counter, int, Counter]:
    """(operation type -> count, number of XNNPACK's partitions, operations that it leaves out)."""
    everything = interpreter(content, 1)._get_ops_details()
    ops = [op for op in everything if op["op_name"] != DELEGATE]
    parts = [op for op in everything if op["op_name"] == DELEGATE]
    maker = {int(t): i for i, op in enumerate(ops) for t in op["outputs"]}
    inside: set[int] = set()
    for part in parts:  # back from its outputs to its inputs
        ends, todo = {int(t) for t in part["inputs"]}, [int(t) for t in part["outputs"]]
        while todo:
            i = maker.get(todo.pop())
            if i is not None and i not in inside:
                inside.add(i)
                todo += [int(t) for t in ops[i]["inputs"] if int(t) not in ends]
    outside = Counter(op["op_name"] for i, op in enumerate(ops) if i not in inside)
    return Counter(op["op_name"] for op in ops), len(parts), outside


# Operations that TFLite's GPU delegate takes, of those that a graph of ours may hold (its published
# rules; it takes others too). Not GATHER, which those rules allow: LiteRT 2.1.6's cannot start.
GPU_OPS = frozenset(
    "ADD CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV MUL QUANTIZE RELU RESHAPE "
    "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SUB".split()
)


def gpu_compatible(content: bytes) -> str:
    """Whether the file's operations are such that TFLite's GPU delegate takes: "yes", or what is
    not. A driver may still refuse the graph, and only a phone can tell how fast it is.

    Two judges: TensorFlow's analyzer, and GPU_OPS, because since TensorFlow 2.18 the analyzer has
    no rules left and calls every file compatible. tests/gpu_delegate.py runs a file on one.
    """
    tf, said = tensorflow_quietly(), io.StringIO()
    with contextlib.redirect_stdout(said):
        tf.lite.experimental.Analyzer.analyze(model_content=content, gpu_compatibility=True)
    mark = "GPU COMPATIBILITY WARNING:"
    refused = [line.split(mark)[1].strip() for line in said.getvalue().splitlines() if mark in line]
    runner = interpreter(content, 1)
    tensors = {t["index"]: t for t in runner.get_tensor_details()}
    for op in runner._get_ops_details():
        source = tensors.get(int(op["inputs"][0]) if len(op["inputs"]) else -1)
        if op["op_name"] == "CAST":  # of floats and int32 only, and bytes are what we cast
            refused.append(f"CAST from {source['dtype'].__name__}")
        elif op["op_name"] not in GPU_OPS | {DELEGATE}:
            refused.append(op["op_name"])
    return "; ".join(dict.fromkeys(refused)) or "yes"


@dataclass
class Parity:
    """Absolute differences from PyTorch over pictures; metres.

    A signed mean would hide errors that cancel, and a mean those that sit in one border row:
    `border` is the largest in the outer ring, `over_1cm` counts pixels.
    """

    pictures: int = 0
    pixels: int = 0
    max_abs: float = 0.0
    mean_abs: float = 0.0
    border: float = 0.0
    over_1cm: int = 0
    depth_min: float = math.inf  # of the reference
    depth_max: float = -math.inf
    depth_mean: float = 0.0

    def add(self, reference: np.ndarray, output: np.ndarray) -> None:
        """One picture, (h, w) metres each; a NaN makes every figure NaN. Raises ValueError for
        unequal shapes."""
        if reference.shape != output.shape:
            raise ValueError(f"reference is {reference.shape}, output {output.shape}")
        with np.errstate(invalid="ignore"):  # inf - inf
            error = np.abs(output.astype(np.float64) - reference)
        ring = max(error[[0, -1]].max(), error[:, [0, -1]].max())
        self.max_abs, self.border = (
            float(np.maximum(*pair)) for pair in ((self.max_abs, error.max()), (self.border, ring))
        )
        self.over_1cm += int(np.count_nonzero(~(error <= 0.01)))
        self.depth_min = min(self.depth_min, float(reference.min()))
        self.depth_max = max(self.depth_max, float(reference.max()))
        self.pictures, self.pixels = self.pictures + 1, self.pixels + error.size
        share = error.size / self.pixels
        self.mean_abs += share * (float(error.mean()) - self.mean_abs)
        self.depth_mean += share * (float(reference.mean(dtype=np.float64)) - self.depth_mean)


def compare(references: Iterable[np.ndarray], outputs: Iterable[np.ndarray]) -> Parity:
    """Both iterables of (h, w) metres. Raises ValueError for no pictures or unequal numbers."""
    parity = Parity()
    for reference, output in zip(references, outputs, strict=True):
        parity.add(reference, output)
    if not parity.pictures:
        raise ValueError("no pictures to compare")
    return parity


@dataclass(frozen=True)
class Limits:
    """Stated tolerances; see the flags."""

    fp32: float  # metres, times the largest depth where that exceeds 1 m
    fp16: float  # the same
    int8: float  # mean error over mean depth
    si_rmse: float  # share by which an int8 file may be worse than PyTorch


def broken(
    precision: str, limits: Limits, tests: Parity, real: Parity | None,
    scores: tuple[float, float] | None,
) -> list[str]:  # fmt: skip
    """What of its stated tolerance a file breaks, in words; an empty list when it keeps it.

    tests, real: on the test pictures and on those of the data set; scores: si-RMSE of (file,
    PyTorch) on the latter. fp32, fp16 and onnx are held to the largest error on all of them. int8
    is made for real pictures and held to its mean error and si-RMSE there.
    """
    out = []
    if precision.startswith("int8"):
        parity = real or tests
        limit = limits.int8 * parity.depth_mean
        if not parity.mean_abs <= limit < math.inf:  # also for NaN
            out.append(f"mean error {parity.mean_abs:.2e} m > {limit:.2e} m")
        if scores and not scores[0] <= (1 + limits.si_rmse) * scores[1]:
            out.append(f"si-RMSE {scores[0]:.4f} > {1 + limits.si_rmse:g} x {scores[1]:.4f}")
        return out
    for where, parity in {"test pictures": tests, "data": real}.items():
        if parity is None:
            continue
        allowed = limits.fp16 if precision == "fp16" else limits.fp32
        limit = allowed * max(1.0, parity.depth_max)
        if not parity.max_abs <= limit < math.inf:  # also for NaN, and a reference that is infinite
            out.append(f"max error {parity.max_abs:.2e} m > {limit:.2e} m on the {where}")
    return out


@dataclass
class Card:
    """A line of the report: one file, measured."""

    format: str
    path: Path
    megabytes: float = 0.0
    operations: dict[str, int] = field(default_factory=dict)
    partitions: int | None = None  # XNNPACK's
    outside_xnnpack: dict[str, int] = field(default_factory=dict)
    gpu: str | None = None
    ms: dict[int, dict[str, float]] = field(default_factory=dict)  # threads -> run_times
    tests: Parity | None = None  # against PyTorch, on the test pictures
    real: Parity | None = None  # and on those of the data set
    metrics: dict[str, float] | None = None
    score: float | None = None
    broken: list[str] = field(default_factory=list)

    def describe(self, content: bytes) -> None:
        """Fills in what the file's bytes tell."""
        self.megabytes = len(content) / 1e6
        if self.format == "onnx":
            import onnx

            nodes = onnx.load_from_string(content).graph.node
            self.operations = dict(Counter(node.op_type for node in nodes).most_common())
            return
        ops, self.partitions, outside = operations(content)
        self.operations, self.outside_xnnpack = dict(ops.most_common()), dict(outside)
        self.gpu = gpu_compatible(content)

    def column(self) -> dict[str, str]:
        """Line of the printed report -> this file's cell; errors on the data set's pictures, and on
        the test pictures where there is none."""
        parity = self.real or self.tests
        left = ", ".join(f"{n} {name}" for name, n in self.outside_xnnpack.items())
        return {
            "MB": f"{self.megabytes:.3f}",
            "operations": str(sum(self.operations.values())),
            "XNNPACK partitions": "-" if self.partitions is None else
            f"{self.partitions}{' + ' if left else ''}{left}",
            "GPU delegate": {None: "-", "yes": "yes"}.get(self.gpu, "no"),
        } | {
            f"ms, {threads} thread{'s' * (threads > 1)} (p90)": f"{t['p50']:.2f} ({t['p90']:.2f})"
            for threads, t in self.ms.items()
        } | {
            "largest error, m": f"{parity.max_abs:.1e}",
            "  outermost pixels": f"{parity.border:.1e}",
            "  test pictures": f"{self.tests.max_abs:.1e}",
            "mean error, m": f"{parity.mean_abs:.1e}",
            "pixels off by > 1 cm": f"{parity.over_1cm / parity.pixels:.2%}",
            **figures(self.metrics),
            "Score": "-" if self.score is None else f"{self.score:.1f}",
            "tolerance": "BROKEN" if self.broken else "kept",
        }  # fmt: skip


def figures(metrics: dict[str, float] | None) -> dict[str, str]:
    """The printed report's lines of the metrics; "-" where nothing was measured."""
    if metrics is None:
        return {"si-RMSE": "-", "RMSE, m": "-"}
    return {"si-RMSE": f"{metrics['si_rmse']:.4f}", "RMSE, m": f"{metrics['rmse']:.3f}"}


def table(cards: list[Card], own: dict[str, float] | None) -> str:
    """All cards side by side, as a Markdown table; own: PyTorch's metrics, the first column."""
    columns = {card.format: card.column() for card in cards}
    pytorch = figures(own)
    rows = [["", "PyTorch", *columns]]
    for name in next(iter(columns.values())):
        cells = [column[name] for column in columns.values()]
        rows.append([name, pytorch.get(name, ""), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(f"{c:<{n}}" for c, n in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (n + 2) for n in widths) + "|", *lines[1:]])
