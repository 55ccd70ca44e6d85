"""The kernels of csrc/ over shapes, memory layouts, numbers, threads and instruction sets: what
hypothesis finds must equal the Python twin bit for bit, write nothing beyond its outputs, and be
refused in the twin's own words where it is no valid call.

LITEDEPTH_EXAMPLES: cases a test, 150 if not given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import litedepth_kernels
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import data
import losses

EXAMPLES = int(os.environ.get("LITEDEPTH_EXAMPLES", "150"))
searched = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
ISAS = ["baseline", "avx2", "avx512"]
ISAS = ISAS[: ISAS.index(litedepth_kernels.isa()) + 1]
TINY, LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
ODD = [0, -0.0, -1, math.nan, -math.nan, math.inf, -math.inf, 1e-45, -1e-45, 1e-39, TINY, LARGEST]
FAR = [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e19, 2.0**31, -(2.0**31), 65536, 5e-324, -0.0]
MODES = ["cell", "nearest", "bilinear"]
MAPS = ["low", "grad_x", "grad_y", "M_x", "M_y", "cell_n", "cell_mean", "cell_M2"]
OUTPUTS = {
    "r2_crop": ["image", "metres"],
    "masked_gradient": ["grad_x", "grad_y", "M_x", "M_y"],
    "gt_down": ["low"],
    "robust_cells": ["rho", "slope", "count"],
    "r2_batch": ["image", "metres", *MAPS],
}
TWINS = [name for name in OUTPUTS if name != "robust_cells"]  # its twin is not the same bits
TABLES = [
    data.log_table(1000.0, 1e-3),
    np.arange(65536, dtype=np.float32)[::-1],
    np.repeat(data.log_table(0.37, 0.0), 2)[::2],
    np.broadcast_to(np.float32(-3e38), 65536),
    np.frombuffer(b"\0" + data.log_table(256.0, 1e-3).tobytes(), np.uint8)[1:].view(np.float32),
]


@pytest.fixture(autouse=True, scope="module")
def same_isa():
    """Puts the instruction set back."""
    before = litedepth_kernels.isa()
    yield
    litedepth_kernels.set_isa(before)


# ------------------------------------------------------------------------------- memory layouts


class Axis(NamedTuple):
    """How an axis lies in memory. step: elements of what is inside of it from one to the next, 0
    for all in one place; pad: bytes more. alone: the stride where the axis has one element."""

    step: int
    pad: int
    flipped: bool
    alone: int | None


class Layout(NamedTuple):
    """A view into a buffer: axes, their order from the innermost, bytes before and after."""

    axes: tuple[Axis, ...]
    order: tuple[int, ...]
    before: int
    after: int
    frozen: bool


@st.composite
def layouts(draw: Callable, ndim: int, itemsize: int, written: bool, repeats: bool) -> Layout:
    """Any layout of an input; for what is written, one whose rows are contiguous and aligned.
    repeats: several elements may be one in memory."""
    unit = itemsize if written else 1
    order = draw(st.permutations(range(ndim - 1 if written else ndim)))
    alone = st.sampled_from([None, 0, 2**62, -(2**63), -2 * itemsize])
    if draw(st.booleans()):
        axes = [Axis(1, 0, False, None)] * ndim
    else:
        steps = st.integers(0 if repeats else 1, 3)
        pads = st.sampled_from([0, 0, 1, 2, 5]).map(lambda n: n * unit)
        axes = [draw(st.builds(Axis, steps, pads, st.booleans(), alone)) for _ in range(ndim)]
    if written:
        axes[-1], order = Axis(1, 0, False, axes[-1].alone), [ndim - 1, *order]
    edges = st.sampled_from([0, 0, 1, 3, 8, 17])
    before, after = draw(edges) * unit, draw(edges) * unit
    return Layout(tuple(axes), tuple(order), before, after, not written and draw(st.booleans()))


class Placed:
    """The numbers of an array in a layout of their own, in memory that is rubbish elsewhere."""

    def __init__(self, a: np.ndarray, layout: Layout) -> None:
        strides, reach, start = [0] * a.ndim, a.itemsize, layout.before
        for k in layout.order:
            axis, n = layout.axes[k], a.shape[k]
            stride = reach * axis.step + (axis.pad if axis.step else 0)
            if n > 1:
                reach += stride * (n - 1)
                start += stride * (n - 1) if axis.flipped else 0
            strides[k] = -stride if axis.flipped else stride
            if n == 1 and axis.alone is not None:
                strides[k] = axis.alone
        size = layout.before + reach + layout.after
        self.memory = np.resize(np.array([0xA5, 0x7F, 0xC0, 0xFF, 1], np.uint8), size)
        self.array = np.ndarray(a.shape, a.dtype, self.memory, start, strides)
        self.array[...] = a
        mine = np.zeros(size, bool)
        np.ndarray((*a.shape, a.itemsize), bool, mine, start, [*strides, 1])[...] = True
        self.others, self.was = ~mine, self.memory.copy()
        self.array.flags.writeable = not layout.frozen

    def is_untouched(self) -> bool:
        return self.memory.tobytes() == self.was.tobytes()

    def is_whole_around(self) -> bool:
        return np.array_equal(self.memory[self.others], self.was[self.others])


# --------------------------------------------------------------------------------- valid calls

sides = st.integers(-4, 40).map(lambda n: max(n, 1))
widths = sides | st.sampled_from([64, 97, 131, 260])  # of pictures, which go by runs and blocks
seeds = st.integers(0, 2**32 - 1)
shares = st.sampled_from([0.0, 0.1, 0.5, 1.0])
scales = st.sampled_from([1000.0, 5000.0, 256.0, 0.37, 1e-35, TINY, LARGEST]) | st.floats(
    TINY, LARGEST
)


def some(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> np.ndarray:
    """Float32 depths and the like, a share of them odd: holes, limits, what is no number."""
    a = rng.uniform(0.1, 40, shape).astype(np.float32)
    chosen = rng.random(shape) < share
    a[chosen] = rng.choice(np.array(ODD, np.float32), chosen.sum())
    return a


@st.composite
def affines(draw: Callable, size: tuple[int, int]) -> np.ndarray:
    """Maps into a picture of this size: straight, turned by a little or by anything, flipped, onto
    pixels' borders, and some with numbers far away."""
    kind = draw(st.sampled_from(["straight", "turned", "turned", "any", "far"]))
    small = st.sampled_from([2.0**-4, 2.0**-7, 0.1, 0.025, 1e-5, 4e-9, 1e-12]) | st.floats(0, 0.12)
    ways = st.sampled_from([1, 1, -1])
    affine = np.zeros((2, 3))
    for k in range(2):
        way, slope = draw(ways), draw(small)
        affine[k, k] = way * (1.0 if kind == "straight" else 1 + draw(ways) * slope)
        if kind != "straight":
            affine[k, 1 - k] = draw(ways) * (slope if draw(st.booleans()) else draw(small))
        if kind == "any":
            affine[k, :2] = draw(st.floats(-3, 3)), draw(st.floats(-3, 3))
        at = st.sampled_from([0.0, 0.0, 0.5, -0.5, 0.5 - 1e-10]) | st.floats(-5, 5)
        affine[k, 2] = draw(at | st.floats(-45, 45)) + (size[1 - k] - 1 if way < 0 else 0)
    if kind == "far":
        affine.flat[draw(st.integers(0, 5))] = draw(st.sampled_from(FAR))
    return affine


@st.composite
def pictures(draw: Callable, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """rgb and depth, of which a share is holes or the largest number there is."""
    rng = np.random.default_rng(draw(seeds))
    rgb = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    depth = rng.integers(0, 65536, size, dtype=np.uint16)
    depth[rng.random(size) < draw(shares)] = draw(st.sampled_from([0, 65535]))
    return rgb, depth


@st.composite
def crops(draw: Callable, canvas: tuple[int, int]) -> tuple[int, int]:
    """What lies within the canvas, most often up to its edges."""
    return tuple(draw(st.just(n) | st.integers(1, n)) for n in canvas)


@st.composite
def r2_crop(draw: Callable) -> dict[str, Any]:
    rng, canvas = np.random.default_rng(draw(seeds)), (draw(sides), draw(widths))
    size = draw(st.just(canvas) | st.tuples(sides, widths))
    rgb, depth = draw(pictures(size))
    return {
        "rgb": rgb, "depth": depth, "affine": draw(affines(size)), "crop": draw(crops(canvas)),
        "lut": some(rng, (3, 256), draw(shares)), "pad": some(rng, (3,), draw(shares)),
        "depth_scale": draw(scales),
        "image": np.zeros((3, draw(sides), draw(sides)), np.float32),
        "metres": np.zeros(canvas, np.float32),
    }  # fmt: skip


@st.composite
def masked_gradient(draw: Callable) -> dict[str, Any]:
    shape = draw(sides), draw(sides)
    d = some(np.random.default_rng(draw(seeds)), shape, draw(shares))
    out = {name: np.zeros(shape, np.float32) for name in ("grad_x", "grad_y")}
    return {"d": d} | out | {name: np.zeros(shape, bool) for name in ("M_x", "M_y")}


@st.composite
def gt_down(draw: Callable) -> dict[str, Any]:
    shape = draw(sides), draw(sides)
    metres = some(np.random.default_rng(draw(seeds)), shape, draw(shares))
    low = np.zeros(draw(crops(shape)), np.float32)
    return {"metres": metres, "low": low, "mode": draw(st.sampled_from(MODES))}


@st.composite
def robust_cells(draw: Callable) -> dict[str, Any]:
    rng, B = np.random.default_rng(draw(seeds)), draw(st.integers(1, 3))
    d = some(rng, (B, 1, draw(sides), draw(sides)), draw(shares))
    d_hat = some(rng, (B, 1, draw(sides), draw(sides)), draw(st.sampled_from([0.0, 0.0, 0.3])))
    alphas = [1.0, 2.0, 0.0, -2.0, 0.5, 1.7, 1e-13, 2 - 1e-13, -math.inf, math.inf, 1e300]
    return {
        "d_hat": d_hat, "d": d, "alpha": draw(st.sampled_from(alphas)),
        "c": draw(st.sampled_from([2.0, 0.5, 30.0, TINY, LARGEST])),
        "threads": draw(st.integers(1, 4)),
    } | {name: np.zeros(d_hat.shape, np.float32) for name in OUTPUTS["robust_cells"]}  # fmt: skip


@st.composite
def r2_batch(draw: Callable) -> dict[str, Any]:
    rng, B = np.random.default_rng(draw(seeds)), draw(st.integers(1, 4))
    canvas = draw(sides), draw(widths)
    size, low = draw(st.just(canvas) | st.tuples(sides, widths)), draw(crops(canvas))
    pairs = [
        draw(pictures(size if draw(st.booleans()) else (draw(sides), draw(sides))))
        for _ in range(B)
    ]
    depth = [None if draw(st.integers(0, 5)) == 5 else depth for _, depth in pairs]
    seen = draw(st.booleans())
    image = np.zeros((B, 3, draw(sides), draw(sides)), np.float32)
    return {
        "rgb": [rgb for rgb, _ in pairs] if seen else None, "depth": depth,
        "affine": np.stack([draw(affines(rgb.shape[:2])) for rgb, _ in pairs]),
        "crop": np.array([draw(crops(canvas)) for _ in range(B)], np.int64),
        "lut": some(rng, (B, 3, 256), draw(shares)), "pad": some(rng, (3,), draw(shares)),
        "depth_scale": draw(scales), "logs": draw(st.sampled_from(TABLES)),
        "mode": draw(st.sampled_from(MODES)), "threads": draw(st.integers(1, 4)),
        "image": image if seen else None, "metres": np.zeros((B, 1, *canvas), np.float32),
    } | {name: np.zeros((B, 1, *low), bool if name[0] == "M" else np.float32) for name in MAPS}
    # fmt: skip


CASES = {
    "r2_crop": r2_crop(), "masked_gradient": masked_gradient(), "gt_down": gt_down(),
    "robust_cells": robust_cells(), "r2_batch": r2_batch(),
}  # fmt: skip


def laid_out(draw: Callable, kernel: str, case: dict[str, Any]) -> tuple[dict[str, Any], dict]:
    """The case with each array in a layout of its own; all that was placed, by name."""
    placed: dict[str, Placed] = {}

    def place(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [place(f"{name}[{k}]", entry) for k, entry in enumerate(value)]
        if not isinstance(value, np.ndarray) or name == "logs":
            return value
        written = name in OUTPUTS[kernel]
        repeats = not written and name != "crop"  # (h, w) must stay within the canvas
        layout = draw(layouts(value.ndim, value.itemsize, written, repeats))
        placed[name] = Placed(value, layout)
        return placed[name].array

    return {name: place(name, value) for name, value in case.items()}, placed


def copied(value: Any) -> Any:
    """The same numbers in C order: a layout that repeats an element has changed them."""
    if isinstance(value, list):
        return [copied(entry) for entry in value]
    return np.array(value, order="C") if isinstance(value, np.ndarray) else value


def call(kernel: Callable, case: dict[str, Any]) -> tuple[type, str] | None:
    """None, or what the kernel raised and says."""
    try:
        with np.errstate(all="ignore"):  # a twin's metres may overflow
            assert kernel(**case) is None
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    return None


def assert_outputs_are(kernel: str, case: dict[str, Any], want: dict[str, Any]) -> None:
    for name in OUTPUTS[kernel]:
        if case[name] is not None:
            assert case[name].tobytes() == want[name].tobytes(), name


@pytest.mark.parametrize("kernel", OUTPUTS)
@searched
@given(st.data())
def test_any_layout_threads_and_isa_give_the_bits_of_plain_ones(kernel: str, data_) -> None:
    """And they touch no byte that is not theirs. Plain: the twin's, or the baseline's alone."""
    case, placed = laid_out(data_.draw, kernel, data_.draw(CASES[kernel]))
    plain = {name: copied(value) for name, value in case.items()}
    fast = getattr(litedepth_kernels, kernel)
    litedepth_kernels.set_isa(data_.draw(st.sampled_from(ISAS)))
    assert call(fast, case) is None
    for name, place in placed.items():
        assert place.is_whole_around() if name in OUTPUTS[kernel] else place.is_untouched(), name
    if kernel in TWINS:
        assert call(getattr(data, kernel), plain) is None
    else:
        litedepth_kernels.set_isa("baseline")
        assert call(fast, plain | {"threads": 1}) is None
    assert_outputs_are(kernel, case, plain)


@pytest.mark.parametrize("isa", ISAS)
def test_a_batch_that_passes_the_caches_by_writes_the_same_and_no_more(isa: str) -> None:
    """8 MB of metres and more are stored by other instructions, which want whole lines of cache."""
    rng, (Hc, Wc), low = np.random.default_rng(0), (2049, 1027), (7, 9)
    rgb = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    depth = rng.integers(0, 65536, (60, 80), dtype=np.uint16)
    affine = np.array([[[0.08, 0.001, -1], [-0.001, 0.03, 0.3]]])
    case = {
        "rgb": None, "depth": [depth], "affine": affine, "crop": np.array([[2000, 1001]]),
        "lut": np.zeros((1, 3, 256), np.float32), "pad": np.zeros(3, np.float32),
        "depth_scale": 1000.0, "logs": TABLES[0], "mode": "cell", "threads": 1, "image": None,
    }  # fmt: skip
    for name in MAPS:
        case[name] = np.zeros((1, 1, *low), bool if name[0] == "M" else np.float32)
    wide = np.full((Hc, Wc + 3), 7, np.float32)  # rows start anywhere within a line
    metres, image = np.full((Hc, Wc), np.nan, np.float32), np.zeros((3, 1, 1), np.float32)
    litedepth_kernels.set_isa(isa)
    litedepth_kernels.r2_batch(**case, metres=wide[None, None, :, 2:-1])
    litedepth_kernels.r2_crop(
        rgb, depth, affine[0], (2000, 1001), case["lut"][0], case["pad"], 1000.0, image, metres
    )
    assert wide[:, 2:-1].tobytes() == metres.tobytes()
    assert metres.any() and (wide[:, :2] == 7).all() and (wide[:, -1] == 7).all()


@searched
@given(robust_cells(), seeds)
def test_eq10_of_cells_is_the_sum_over_their_pixels_whatever_a_hole_holds(
    case: dict[str, Any], seed: int
) -> None:
    """The twin, pixel by pixel in double. What is compared is relative to the sum of sizes."""
    rng, (d_hat, d) = np.random.default_rng(seed), (case["d_hat"], case["d"])
    assume(math.isfinite(case["alpha"]) and abs(case["alpha"]) < 9 and 0.1 < case["c"] < 99)
    there = np.isfinite(d) & (d > 0) & (d > 1e-3) & (d < 1e3)
    d = np.where(there, d, rng.choice(np.array([0, -1, math.nan, math.inf], np.float32), d.shape))
    d_hat[:] = np.where(np.isfinite(d_hat) & (abs(d_hat) < 1e3), d_hat, 3)
    assert call(litedepth_kernels.robust_cells, case | {"d": d}) is None
    (B, _, h, w), (H, W) = d_hat.shape, d.shape[2:]
    rows, columns = np.arange(H) * h // H, np.arange(W) * w // W
    near = d_hat[:, :, rows][:, :, :, columns].astype(np.float64)
    e = torch.from_numpy(np.where(there, near - np.where(there, d, 0), 0)).requires_grad_()
    rho = losses.rho(e, case["alpha"], case["c"])
    slope = torch.autograd.grad(rho.sum(), e)[0].numpy()
    cell = (np.arange(B)[:, None, None] * h + rows[:, None]) * w + columns
    for name, each in (("rho", rho.detach().numpy()), ("slope", slope), ("count", there * 1.0)):
        weights = (each * there)[:, 0]
        total, size = (
            np.bincount(cell.ravel(), x.ravel(), B * h * w).reshape(d_hat.shape)
            for x in (weights, abs(weights))
        )
        limit = 0 if name == "count" else 2e-6 * size + 1e-14
        assert (abs(case[name] - total) <= limit).all(), name


# ----------------------------------------------------------------------------------- invalid calls


class Fault(NamedTuple):
    """What is wrong with one argument; says: what the message must hold, all of it."""

    name: str
    value: Any
    kind: type
    says: list[str]


def retyped(draw: Callable, a: np.ndarray) -> np.ndarray:
    """As many bytes of another dtype, or the same numbers in the other byte order."""
    swapped = [a.dtype.newbyteorder(">")] if a.dtype.itemsize > 1 else []
    others = [np.float64, np.float16, np.int64, np.int32, np.int16, np.int8, bool, complex, object]
    others = [np.dtype(dtype) for dtype in others if np.dtype(dtype) != a.dtype]
    return np.zeros(a.shape, draw(st.sampled_from(swapped + others)))


def longer_or_shorter(draw: Callable, a: np.ndarray) -> np.ndarray:
    axis, n = draw(st.integers(0, a.ndim - 1)), draw(st.sampled_from([-1, 1, 7]))
    assume(a.shape[axis] + n > 0)
    shape = [m + n * (k == axis) for k, m in enumerate(a.shape)]
    return np.zeros(shape, a.dtype)


def faults_of_array(draw: Callable, name: str, a: np.ndarray, written: bool) -> Fault:
    kinds = ["dtype", "rank", "empty", "huge", "no array", "size"]
    kind = draw(st.sampled_from(kinds + ["frozen", "strided", "unaligned", "repeated"] * written))
    if kind == "dtype":
        bad = retyped(draw, a)
        return Fault(name, bad, TypeError, [f"{name}: expected dtype {a.dtype}, got {bad.dtype}"])
    if kind == "no array":
        bad = draw(st.sampled_from([a.tolist(), None, a.dtype.type(1), "a", memoryview(b"a")]))
        assume(not (bad is None and name.startswith("depth[") or bad is None and name == "image"))
        if isinstance(bad, np.generic):  # a sequence's place may not be taken by a number
            bad = bad.item()
        return Fault(name, bad, TypeError, [f"{name}: expected an array, got {type(bad).__name__}"])
    if kind == "rank":
        bad = a[None] if a.ndim == 1 or draw(st.booleans()) else a[0]
        return Fault(name, bad, ValueError, [f"{name}: expected {a.ndim} axes", str(bad.shape)])
    if kind == "empty":
        axis = draw(st.integers(0, a.ndim - 1))
        bad = a.take([], axis)
        return Fault(name, bad, ValueError, [f"{name}: every side must be in", str(bad.shape)])
    if kind == "huge":
        axis = draw(st.integers(0, a.ndim - 1))
        shape, strides = list(a.shape), list(a.strides)
        shape[axis], strides[axis] = 2**31 + 1, 0
        bad = np.lib.stride_tricks.as_strided(a, shape, strides)
        return Fault(name, bad, ValueError, [f"{name}: every side must be in", str(bad.shape)])
    if kind == "size":
        bad = longer_or_shorter(draw, a)
        return Fault(name, bad, ValueError, [])  # which may be right as well, or another's fault
    if kind == "frozen":
        bad = a.copy()
        bad.flags.writeable = False
        return Fault(name, bad, ValueError, [f"{name}: the output array is read-only"])
    if kind == "strided":
        assume(a.shape[-1] > 1)
        bad = draw(st.sampled_from([np.repeat(a, 2, -1)[..., ::2], a[..., ::-1]]))
        start = f"{name}: the rows of an output must be contiguous, got strides "
    elif kind == "unaligned":
        assume(a.itemsize > 1)
        bad = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
        start = f"{name}: the output array is not aligned, got strides "
    else:
        several = [k for k in range(a.ndim - 1) if a.shape[k] > 1]
        assume(several)
        axis = draw(st.sampled_from(several))
        strides = [s * (k != axis) for k, s in enumerate(a.strides)]
        bad = np.lib.stride_tricks.as_strided(a, a.shape, strides)
        start = f"{name}: the output array overlaps itself, got strides "
    return Fault(name, bad, ValueError, [start, str(bad.strides), str(bad.shape)])


def faults_of_number(draw: Callable, name: str, case: dict[str, Any]) -> Fault:
    if name == "crop":
        (h, w), (Hc, Wc) = case["crop"], case["metres"].shape
        worse = [(0, w), (h, 0), (Hc + 1, w), (h, Wc + 1), (-h, w), (h, 2**40)]
        bad = draw(st.sampled_from(worse))
        return Fault(name, bad, ValueError, [f"crop: expected 1..{Hc} by 1..{Wc}", f"got {bad}"])
    if name == "mode":
        bad = draw(st.sampled_from(["", "area", "Cell"]))
        return Fault(name, bad, ValueError, ["mode: expected 'cell', 'nearest'", f"'{bad}'"])
    if name == "threads":
        bad = draw(st.integers(-(2**31), 0))
        return Fault(name, bad, ValueError, [f"threads: expected 1 or more, got {bad}"])
    bad = math.nan
    if name != "alpha":
        bad = draw(st.sampled_from([0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 1e39, 1e-39]))
    what = "a number" if name == "alpha" else "a positive float32"
    return Fault(name, bad, ValueError, [f"{name}: expected {what}, got "])


def faults_of_list(draw: Callable, name: str, arrays: list) -> Fault:
    kind = draw(st.sampled_from(["entry", "length", "no list"]))
    if kind == "no list":
        bad = draw(st.sampled_from([3, 2.5, object()] + [None] * (name == "depth")))
        says = f"{name}: expected a list of arrays, got {type(bad).__name__}"
        return Fault(name, bad, TypeError, [says])
    if kind == "length":
        bad = draw(st.sampled_from([arrays[:-1], arrays + arrays[:1], []]))
        says = f"{name}: expected {len(arrays)} arrays (the length of affine), got {len(bad)}"
        return Fault(name, bad, ValueError, [says])
    b = draw(st.integers(0, len(arrays) - 1))
    assume(arrays[b] is not None)
    fault = faults_of_array(draw, f"{name}[{b}]", arrays[b], False)
    bad = [fault.value if k == b else a for k, a in enumerate(arrays)]
    return Fault(name, bad, fault.kind, fault.says)


def faults(draw: Callable, kernel: str, case: dict[str, Any]) -> Fault:
    name = draw(st.sampled_from([name for name, value in case.items() if value is not None]))
    value = case[name]
    if isinstance(value, list):
        return faults_of_list(draw, name, value)
    if not isinstance(value, np.ndarray):
        return faults_of_number(draw, name, case)
    if name == "crop":
        canvas, b = case["metres"].shape[2:], draw(st.integers(0, len(value) - 1))
        bad = value.copy()
        bad[b] = draw(st.sampled_from([(0, 1), (1, canvas[1] + 1), (-5, 1), (1, 2**40)]))
        says = f"crop[{b}]: expected 1..{canvas[0]} by 1..{canvas[1]} (the canvas, metres), got "
        if draw(st.booleans()):
            return Fault(name, bad, ValueError, [says + str(tuple(bad[b].tolist()))])
    return faults_of_array(draw, name, value, name in OUTPUTS[kernel])


@pytest.mark.parametrize("kernel", OUTPUTS)
@searched
@given(st.data())
def test_an_invalid_call_is_refused_in_the_twins_words_and_writes_nothing(
    kernel: str, data_
) -> None:
    case = data_.draw(CASES[kernel])
    fault = faults(data_.draw, kernel, case)
    outputs = [case[name] for name in OUTPUTS[kernel] if case[name] is not None]
    for out in outputs:
        out[...] = 7
    bad = case | {fault.name: fault.value}
    got = call(getattr(litedepth_kernels, kernel), bad)
    if kernel in TWINS:
        assert got == call(getattr(data, kernel), bad)
    if fault.says:
        assert got is not None and got[0] is fault.kind
        assert all(text in got[1] for text in fault.says), got
        assert got[1].startswith(fault.says[0])
    if got is not None:
        assert all((out == out.dtype.type(7)).all() for out in outputs)


@pytest.mark.parametrize("kernel", OUTPUTS)
@searched
@given(st.data())
def test_an_output_in_the_memory_of_another_argument_is_refused(kernel: str, data_) -> None:
    """By one byte or all; rows that lie between each other's rows are no overlap."""
    case = data_.draw(CASES[kernel])
    names = [name for name in OUTPUTS[kernel] if case[name] is not None]
    name = data_.draw(st.sampled_from(names))
    others = {k: a for k, a in case.items() if isinstance(a, np.ndarray) and k != name}
    others.pop("logs", None)  # too large to move
    lists = {k: v for k, v in case.items() if isinstance(v, list)}
    others |= {f"{k}[{b}]": a for k, v in lists.items() for b, a in enumerate(v) if a is not None}
    other, out = data_.draw(st.sampled_from(sorted(others))), case[name]
    a = others[other]
    # Both in one buffer, the second one from a place within the first one on, or right behind it.
    first, second = (a, out) if data_.draw(st.booleans()) else (out, a)
    unit = max(a.itemsize, out.itemsize)
    behind = -(-first.nbytes // unit) * unit
    at = data_.draw(st.integers(0, behind // unit)) * unit
    buffer = np.zeros((behind + second.nbytes) // 8 + 1, np.float64).view(np.uint8)
    views = []
    for start, x in ((0, first), (at, second)):
        views.append(buffer[start : start + x.nbytes].view(x.dtype).reshape(x.shape))
    shares = at < first.nbytes
    new = dict(zip((other, name) if first is a else (name, other), views))
    if not shares or first is out:
        new[other][...] = a
    for k, v in lists.items():
        new[k] = [new.pop(f"{k}[{b}]", x) for b, x in enumerate(v)]
    bad = case | new
    if other == "crop" and shares:
        bad["crop"][...] = 1
    before = buffer.tobytes()
    got = call(getattr(litedepth_kernels, kernel), bad)
    if kernel in TWINS:
        assert got == call(getattr(data, kernel), bad)
    if not shares:
        assert got is None
        return
    assert got is not None and got[0] is ValueError and buffer.tobytes() == before
    written = {name, other} if other in names else {name}
    sizes = {name: out.shape, other: a.shape}
    assert any(
        got[1] == f"{x}: the output of shape {sizes[x]} shares memory with {y} of shape {sizes[y]}"
        for x, y in ((name, other), (other, name))
        if x in written
    ), got


@pytest.mark.parametrize("kernels", [litedepth_kernels, data], ids=["cpp", "python"])
def test_outputs_may_lie_between_each_others_rows(kernels) -> None:
    d = np.arange(1, 31, dtype=np.float32).reshape(5, 6)
    plain = [np.zeros((5, 6), dtype) for dtype in (np.float32, np.float32, bool, bool)]
    kernels.masked_gradient(d, *plain)
    maps, masks = np.zeros((5, 2, 6), np.float32), np.zeros((5, 2, 6), bool)
    woven = [maps[:, 0], maps[:, 1], masks[:, 0], masks[:, 1]]
    kernels.masked_gradient(d, *woven)
    for a, b in zip(plain, woven):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kernels", [litedepth_kernels, data], ids=["cpp", "python"])
@pytest.mark.parametrize("stride", [0, 4, 20, -20])
def test_an_output_that_overlaps_itself_is_refused(kernels, stride: int) -> None:
    """One row for all, and rows of 24 bytes that begin within each other."""
    low = np.lib.stride_tricks.as_strided(np.zeros(60, np.float32)[20:], (5, 6), (stride, 4))
    with pytest.raises(ValueError) as error:
        kernels.gt_down(np.ones((5, 6), np.float32), low, "cell")
    says = f"low: the output array overlaps itself, got strides ({stride}, 4) of shape (5, 6)"
    assert str(error.value) == says and not low.any()
