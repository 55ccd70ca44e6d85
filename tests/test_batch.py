"""Sec. 3.2 and Eq. 7's cells for a batch: csrc's r2_batch == its twin == the per-sample kernels.

The cells are also held to sums that share no code or order with them; the pool to threads, forks
and exits.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from types import ModuleType

import litedepth_kernels
import numpy as np
import pytest
from test_kernels import LAYOUTS, affine_map, assert_same_bits, holes, laid_out, sample

import data

both = pytest.mark.parametrize("kernels", [litedepth_kernels, data], ids=["cpp", "python"])
LOW = ("low", "grad_x", "grad_y", "M_x", "M_y", "cell_n", "cell_mean", "cell_M2")
LOGS = data.log_table(1000.0, 1e-3)
ISAS = ["baseline", "avx2", "avx512"]


@pytest.fixture
def any_isa():
    """Puts the instruction set back."""
    before = litedepth_kernels.isa()
    yield
    litedepth_kernels.set_isa(before)


def arguments(
    B: int = 3, size: tuple[int, int] = (37, 53), canvas: tuple[int, int] = (37, 53),
    net: tuple[int, int] = (11, 17), low: tuple[int, int] = (5, 7), mode: str = "cell",
    seed: int = 0, degrees: float = 0.0, flip: bool = False, crop: tuple[int, int] | None = None,
    at: tuple[float, float] = (0, 0), threads: int = 1,
) -> dict:  # fmt: skip
    """Arguments of r2_batch, all samples by the same map; outputs full of rubbish."""
    rng = np.random.default_rng(seed)
    pairs = [sample(*size, seed + b) for b in range(B)]
    out = {name: np.full((B, 1, *low), np.nan, np.float32) for name in LOW}
    out |= {name: np.full((B, 1, *low), True) for name in ("M_x", "M_y")}
    return {
        "rgb": [rgb for rgb, _ in pairs],
        "depth": [depth for _, depth in pairs],
        "affine": np.stack([affine_map(*size, degrees, flip, at)] * B),
        "crop": np.array([crop or canvas] * B, np.int64),
        "lut": rng.random((B, 3, 256), np.float32),
        "pad": np.array([-1, -2, -3], np.float32),
        "depth_scale": 1000.0,
        "logs": LOGS,
        "mode": mode,
        "threads": threads,
        "image": np.full((B, 3, *net), np.nan, np.float32),
        "metres": np.full((B, 1, *canvas), np.nan, np.float32),
    } | out


def outputs(args: dict) -> dict[str, np.ndarray]:
    return {name: args[name] for name in ("image", "metres", *LOW) if args[name] is not None}


def run(kernels: ModuleType, args: dict, **changes) -> dict[str, np.ndarray]:
    """r2_batch on copies of the outputs, which are returned."""
    args = args | {name: a.copy() for name, a in outputs(args).items()} | changes
    assert kernels.r2_batch(**args) is None
    return outputs(args)


def assert_agree(args: dict, **changes) -> dict[str, np.ndarray]:
    cpp, twin = (run(kernels, args, **changes) for kernels in (litedepth_kernels, data))
    assert cpp.keys() == twin.keys()
    for name, a in cpp.items():
        assert_same_bits(a, twin[name])
        assert not np.isnan(a).any(), name
    return cpp


# Eq. 7: cells ----------------------------------------------------------------------------------


def test_eq7_log_table_is_the_logarithm_of_metres_plus_eps() -> None:
    logs = data.log_table(1000.0, 1e-3)
    assert logs.dtype == np.float32 and logs.shape == (65536,) and logs[0] == 0
    for k in (1, 7, 999, 1000, 1001, 40000, 65535):
        assert logs[k] == np.float32(math.log(float(np.float32(k) / np.float32(1000)) + 1e-3))
    assert data.log_table(5000.0, 0.0)[5000] == 0
    for eps in (-2e-3, math.inf, math.nan):
        with pytest.raises(ValueError, match="^eps: "):
            data.log_table(1000.0, eps)
    with pytest.raises(ValueError, match="^depth_scale: expected a positive float32, got "):
        data.log_table(0.0, 1e-3)


@both
def test_eq7_cells_by_hand(kernels: ModuleType) -> None:
    """A row of two cells: floor(u * 2 / 5) puts three columns into the first, two in the other."""
    args = arguments(B=1, size=(2, 5), canvas=(2, 5), net=(1, 1), low=(1, 2))
    args["depth"] = [np.array([[1, 2, 0, 0, 0], [2, 0, 4, 0, 0]], np.uint16)]
    args |= {"logs": np.arange(65536, dtype=np.float32), "depth_scale": 1.0}
    out = run(kernels, args)
    np.testing.assert_array_equal(out["cell_n"][0, 0], [[4, 0]])
    np.testing.assert_array_equal(out["cell_mean"][0, 0], [[9 / 4, 0]])
    np.testing.assert_array_equal(out["cell_M2"][0, 0], [[25 - 81 / 4, 0]])
    np.testing.assert_array_equal(out["low"][0, 0], [[9 / 4, 0]])


@both
@pytest.mark.parametrize("low", [(32, 40), (30, 37), (1, 1), (96, 128)])
def test_eq7_cells_equal_plain_sums(kernels: ModuleType, low: tuple[int, int]) -> None:
    H, W, (h, w) = 96, 128, low
    args = arguments(B=1, size=(H, W), canvas=(H, W), low=low, crop=(70, 101))
    out = run(kernels, args)
    d = out["metres"][0, 0].astype(np.float64)
    rows, cols = np.arange(H) * h // H, np.arange(W) * w // W
    n, mean, M2 = (np.zeros(low) for _ in range(3))
    for i in range(h):
        for j in range(w):
            mine = d[np.ix_(rows == i, cols == j)]
            x = np.log(mine[mine > 0] + 1e-3)
            n[i, j] = x.size
            mean[i, j] = x.mean() if x.size else 0
            M2[i, j] = x.var() * x.size if x.size else 0
    assert 0 < n.sum() < 70 * 101
    np.testing.assert_array_equal(out["cell_n"][0, 0], n)
    np.testing.assert_allclose(out["cell_mean"][0, 0], mean, rtol=1e-6, atol=1e-7)
    # logs are rounded to float32: 24 bits of numbers up to 11
    np.testing.assert_allclose(out["cell_M2"][0, 0], M2, rtol=1e-6, atol=1e-6)


# The whole batch -------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 1.7, -2.5])
@pytest.mark.parametrize("crop", [(240, 384), (384, 512), (480, 640)])
def test_batch_equals_twin_at_the_papers_sizes(
    crop: tuple[int, int], degrees: float, flip: bool
) -> None:
    at = (480 - crop[0], (640 - crop[1]) // 2)
    assert_agree(arguments(
        B=1, size=(480, 640), canvas=(480, 640), net=(128, 160), low=(32, 40), crop=crop,
        degrees=degrees, flip=flip, at=at,
    ))  # fmt: skip


def test_batch_equals_twin_on_odd_sizes_and_maps() -> None:
    rng = np.random.default_rng(3)
    for seed in range(120):
        H, W, Hc, Wc, hn, wn = (int(n) for n in rng.integers(1, 80, 6))
        crop = int(rng.integers(1, Hc + 1)), int(rng.integers(1, Wc + 1))
        low = int(rng.integers(1, Hc + 1)), int(rng.integers(1, Wc + 1))
        turn = rng.choice([0.0, rng.uniform(-3, 3), rng.uniform(-180, 180)])
        args = arguments(
            2, (H, W), (Hc, Wc), (hn, wn), low, ["cell", "nearest", "bilinear"][seed % 3], seed,
            turn, seed % 2 == 1, crop, rng.integers(-20, 20, 2), int(rng.integers(1, 4)),
        )  # fmt: skip
        args["affine"][1, :, :2] *= rng.choice([1, rng.uniform(0.9, 1.1), rng.uniform(0.3, 3)])
        assert_agree(args)


@pytest.mark.parametrize("flip", [False, True])
def test_batch_equals_twin_where_positions_are_near_ties(flip: bool) -> None:
    """Slopes of whole fractions and offsets of halves put many positions on a pixel's border, where
    another order of operations would choose the other pixel."""
    rng = np.random.default_rng(4)
    for slope in (2.0**-4, 2.0**-7, 0.1, 0.025, 1e-5, 1e-8, 4e-9, 1e-12, 1e-17, 0.0):
        args = arguments(4, (60, 300), (50, 290), (3, 5), (4, 6))
        for b, (sx, sy) in enumerate([(1, 1), (1, -1), (-1, 1), (-1, -1)]):
            offset = rng.choice([0.0, 0.5, -0.5, 0.1, 1e-9, 0.5 - 1e-10], 2)
            affine = np.array([[1 + sx * slope, -sy * slope, 3], [sy * slope, 1 - sx * slope, 4]])
            if flip:
                affine[:, 2] += 289 * affine[:, 0]
                affine[:, 0] *= -1
            args["affine"][b] = affine
            args["affine"][b, :, 2] += offset
        assert_agree(args)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300, -1e10, 65536.0, 1e19])
def test_batch_positions_without_a_source_are_black_and_holes(bad: float) -> None:
    for degrees in (0.0, 2.0):
        args = arguments(6, degrees=degrees)
        for k in range(6):
            args["affine"][k].flat[k] = bad
        out = assert_agree(args)
        if not math.isfinite(bad):
            assert not out["cell_n"][[2, 5]].any() and not out["metres"][[2, 5]].any()


@pytest.mark.parametrize("mode", ["cell", "nearest", "bilinear"])
@pytest.mark.parametrize("scale", [1000.0, 5000.0, 256.0, 0.37, 1e-35, 1e38, 1e-37])
def test_batch_equals_the_kernels_of_one_sample(mode: str, scale: float) -> None:
    args = arguments(4, degrees=2.0, mode=mode, threads=2, crop=(30, 47)) | {"depth_scale": scale}
    args["depth"][1][:] = 0
    args["depth"][2][:] = 65535
    out = run(litedepth_kernels, args)
    for b in range(4):
        image, metres = np.zeros_like(out["image"][b]), np.zeros_like(out["metres"][b, 0])
        litedepth_kernels.r2_crop(
            args["rgb"][b], args["depth"][b], args["affine"][b], (30, 47), args["lut"][b],
            args["pad"], scale, image, metres,
        )  # fmt: skip
        maps = [np.zeros_like(out[name][b, 0]) for name in LOW[:5]]
        litedepth_kernels.gt_down(metres, maps[0], mode)
        litedepth_kernels.masked_gradient(*maps)
        assert_same_bits(out["image"][b], image)
        assert_same_bits(out["metres"][b, 0], metres)
        for name, a in zip(LOW, maps):
            assert_same_bits(out[name][b, 0], a)


def test_batch_of_large_cells_has_the_means_of_gt_down() -> None:
    """More pixels to a cell than a double surely adds without rounding: these are added plainly."""
    args = arguments(1, (300, 310), (300, 310), (2, 2), (2, 1)) | {"depth_scale": 999.7}
    assert_agree(args)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("degrees", [0.0, 180.0, 2.0])
@pytest.mark.parametrize("flip", [False, True])
def test_batch_takes_any_strides(layout: str, degrees: float, flip: bool) -> None:
    args = arguments(2, (37, 153), (37, 153), degrees=degrees, flip=flip)
    for name in ("rgb", "depth"):
        args[name] = [laid_out(a, layout) for a in args[name]]
    for name in ("affine", "crop", "lut"):
        args[name] = laid_out(args[name], "plain" if layout == "flipped" else layout)
    args["pad"], args["logs"] = args["pad"][::-1], np.repeat(LOGS, 2)[::2]
    assert_agree(args)


@pytest.mark.parametrize("degrees", [0.0, 2.5])
def test_batch_reads_mapped_files_to_their_last_byte(tmp_path, degrees: float) -> None:
    """A map ends with its page here: one byte more would be a bus error."""
    rgb, depth = sample(64, 64)  # 12,288 and 8,192 bytes: whole pages
    for name, a in (("rgb", rgb), ("depth", depth)):
        a.tofile(tmp_path / name)
    rgb = np.memmap(tmp_path / "rgb", np.uint8, "r", shape=(64, 64, 3))
    depth = np.memmap(tmp_path / "depth", np.uint16, "r", shape=(64, 64))
    for flip in (False, True):
        args = arguments(1, (64, 64), (64, 64), (32, 32), (8, 8), degrees=degrees, flip=flip)
        assert_agree(args | {"rgb": [rgb], "depth": [depth]})


def test_batch_writes_into_slices_of_larger_buffers() -> None:
    args = arguments(2, degrees=1.0)
    want = run(litedepth_kernels, args)
    for kernels in (litedepth_kernels, data):
        wide = {
            name: np.full((4, a.shape[1], 2 * a.shape[2], a.shape[3] + 3), 7).astype(a.dtype)
            for name, a in outputs(args).items()
        }
        part = {n: a[::-2, :, ::2, 1 : 1 + args[n].shape[3]] for n, a in wide.items()}
        kernels.r2_batch(**args | part)
        for name, a in wide.items():
            np.testing.assert_array_equal(part[name], want[name])
            part[name][:] = 7
            assert (a == np.full(1, 7).astype(a.dtype)).all(), name


def test_batch_without_images_or_depths() -> None:
    args = arguments(4, degrees=1.5, threads=2)
    whole = run(litedepth_kernels, args)
    maps = assert_agree(args | {"rgb": None, "image": None})
    assert "image" not in maps
    for name, a in maps.items():
        assert_same_bits(a, whole[name])
    args["depth"][1] = args["depth"][3] = None
    for images in ({}, {"rgb": None, "image": None}):
        part = assert_agree(args | images)
        for name, a in part.items():
            assert_same_bits(a[[0, 2]], whole[name][[0, 2]])
            if name != "image":
                assert not a[[1, 3]].any()
        if not images:
            assert_same_bits(part["image"], whole["image"])


def test_batch_of_pairs_of_several_sizes() -> None:
    args = arguments(3, crop=(20, 30))
    for b, size in enumerate([(20, 31), (50, 41), (25, 64)]):
        args["rgb"][b], args["depth"][b] = sample(*size, b)
    args["crop"][:] = [(7, 9), (37, 53), (20, 1)]
    assert_agree(args)


# Threads and instruction sets ------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_batch_has_the_same_bits_for_any_threads_and_isa(any_isa, isa: str) -> None:
    if ISAS.index(isa) > ISAS.index(litedepth_kernels.isa()):
        pytest.skip(f"this processor has no {isa}")
    litedepth_kernels.set_isa(isa)
    assert litedepth_kernels.isa() == isa
    for degrees, flip in ((0.0, False), (0.0, True), (2.2, True), (-0.8, False), (77.0, False)):
        args = arguments(
            5, (131, 270), (131, 270), (33, 67), (9, 17), degrees=degrees, flip=flip, at=(0.0, 3.0)
        )
        want = assert_agree(args, threads=1)
        for threads in (2, 5, 64):
            for name, a in run(litedepth_kernels, args, threads=threads).items():
                assert_same_bits(a, want[name])


@pytest.mark.parametrize("isa", ISAS)
def test_masked_gradient_has_the_same_bits_for_any_isa(any_isa, isa: str) -> None:
    if ISAS.index(isa) > ISAS.index(litedepth_kernels.isa()):
        pytest.skip(f"this processor has no {isa}")
    litedepth_kernels.set_isa(isa)
    for size in ((1, 1), (3, 130), (32, 40)):
        out = [[np.ones(size, t) for t in (np.float32,) * 2 + (bool,) * 2] for _ in range(2)]
        for kernels, arrays in zip((litedepth_kernels, data), out):
            kernels.masked_gradient(holes(*size, 5), *arrays)
        for a, b in zip(*out):
            assert_same_bits(a, b)


def test_set_isa_names_what_there_is(any_isa) -> None:
    with pytest.raises(ValueError) as error:
        litedepth_kernels.set_isa("sse9")
    assert str(error.value).startswith("name: this processor runs 'baseline'")
    assert str(error.value).endswith("got 'sse9'")


def test_batch_may_be_called_by_several_threads_at_once() -> None:
    jobs = [arguments(6, degrees=1.0 * k, threads=3, seed=k) for k in range(3)]
    want = [run(litedepth_kernels, args, threads=1) for args in jobs]
    wrong = []

    def work(k: int) -> None:
        for _ in range(15):
            for name, a in run(litedepth_kernels, jobs[k]).items():
                if a.tobytes() != want[k][name].tobytes():
                    wrong.append((k, name))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SCRIPT = """
import os, sys, threading
sys.path[:0] = {path!r}
from test_batch import arguments, litedepth_kernels, run

args = arguments(8, threads=3)
want = run(litedepth_kernels, args, threads=1)
def same():
    out = run(litedepth_kernels, args)
    return all(a.tobytes() == want[name].tobytes() for name, a in out.items())
assert same()
{body}
print("done")
"""
ENDS = {
    "exit": "",
    "fork": """
def own_threads():
    return not os.path.isdir("/proc/self/task") or len(os.listdir("/proc/self/task")) == 3

for end in (os._exit, sys.exit):  # a child, and its child, run threads of their own
    child = os.fork()
    if child == 0:
        ok = same() and own_threads()
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if same() and own_threads() else 3)
        ok = ok and os.waitpid(grandchild, 0)[1] == 0 and same()
        end(0 if ok else 3)
    assert os.waitpid(child, 0)[1] == 0
assert same()
""",
    "thread": """
threading.Thread(target=lambda: [same() for _ in range(50)]).start()
""",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_pool_survives_forks_and_ends_with_the_interpreter(end: str) -> None:
    script = SCRIPT.format(path=sys.path, body=ENDS[end])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# Errors ----------------------------------------------------------------------------------------

ARRAYS = ("affine", "crop", "lut", "pad", "logs", "image", "metres", *LOW)


@both
@pytest.mark.parametrize("name", ARRAYS)
def test_errors_of_every_array(kernels: ModuleType, name: str) -> None:
    args = arguments(2)
    a = args[name]
    with pytest.raises(TypeError, match=rf"^{name}: expected dtype {a.dtype}, got complex64$"):
        kernels.r2_batch(**args | {name: a.astype(np.complex64)})
    with pytest.raises(ValueError, match=rf"^{name}: expected \d axes, got shape"):
        kernels.r2_batch(**args | {name: a[None]})
    longer = np.concatenate([a, a[:1]])
    with pytest.raises(ValueError) as error:
        kernels.r2_batch(**args | {name: longer})
    assert str(longer.shape if name != "affine" else (2, 2)) in str(error.value) or name == "affine"
    if name in ("image", "metres", *LOW):
        frozen = a.copy()
        frozen.flags.writeable = False
        with pytest.raises(ValueError, match=f"^{name}: the output array is read-only$"):
            kernels.r2_batch(**args | {name: frozen})
        with pytest.raises(ValueError, match=f"^{name}: the rows of an output must be contig"):
            kernels.r2_batch(**args | {name: a[..., ::-1]})


@both
def test_errors_name_the_sample_and_the_sizes(kernels: ModuleType) -> None:
    args = arguments(3)

    def message(kind: type, **changes) -> str:
        with pytest.raises(kind) as error:
            kernels.r2_batch(**args | changes)
        return str(error.value)

    def swap(name: str, b: int, a: object) -> dict:
        return {name: [a if k == b else old for k, old in enumerate(args[name])]}

    rgb, depth = args["rgb"][2], args["depth"][2]
    for name, short in (("rgb", args["rgb"][:2]), ("depth", args["depth"][:2])):
        got = message(ValueError, **{name: short})
        assert got == f"{name}: expected 3 arrays (the length of affine), got 2"
    got = message(ValueError, **swap("depth", 1, depth[:, 1:]))
    assert got == "depth[1]: expected shape (37, 53), got (37, 52)"
    got = message(ValueError, **swap("rgb", 2, rgb[..., :2]))
    assert got == "rgb[2]: expected shape (37, 53, 3), got (37, 53, 2)"
    got = message(ValueError, **swap("rgb", 0, rgb[0]))
    assert got == "rgb[0]: expected 3 axes, got shape (53, 3)"
    got = message(TypeError, **swap("depth", 2, depth.astype(np.int32)))
    assert got == "depth[2]: expected dtype uint16, got int32"
    got = message(TypeError, **swap("depth", 2, [1, 2]))
    assert got == "depth[2]: expected an array, got list"
    got = message(TypeError, **swap("rgb", 1, None))
    assert got == "rgb[1]: expected an array, got NoneType"
    for crop in ((0, 8), (38, 8), (5, 54), (-1, 8), (2**40, 1)):
        got = message(ValueError, crop=np.array([(5, 5), crop, (5, 5)]))
        assert got == f"crop[1]: expected 1..37 by 1..53 (the canvas, metres), got {crop}"
    big = np.zeros((3, 1, 38, 7), np.float32)
    got = message(ValueError, low=big)
    assert got == "low: shape (38, 7) is larger than that of metres, (37, 53)"
    got = message(ValueError, cell_M2=big)
    assert got == "cell_M2: expected shape (3, 1, 5, 7), got (3, 1, 38, 7)"
    got = message(ValueError, mode="area")
    assert got == "mode: expected 'cell', 'nearest' or 'bilinear', got 'area'"
    assert message(ValueError, threads=0) == "threads: expected 1 or more, got 0"
    assert message(ValueError, depth_scale=0.0).startswith("depth_scale: expected a positive float")
    for half in ({"rgb": None}, {"image": None}):
        assert message(ValueError, **half) == "rgb and image: both or neither may be None"


@both
def test_errors_write_nothing(kernels: ModuleType) -> None:
    args = arguments(2)
    args["rgb"][1] = args["rgb"][1][:-1]
    with pytest.raises(ValueError, match=r"^depth\[1\]: expected shape"):
        kernels.r2_batch(**args)
    assert all(np.isnan(a).all() or a.dtype == bool for a in outputs(args).values())
