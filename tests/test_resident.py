"""resident.py on CPU tensors, against the twins of data.py, data.Loader and plain numpy."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import rgbd_picture
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
import losses
import model
import resident
import train
from plumbing.batches import open_reader
from plumbing.pairs import DataError, Pair, list_pairs

# source, canvas, size: the prediction's size (a quarter of it) divides the canvas, or it does not;
# the canvas is the source's, or smaller
SIZES = [
    ((96, 128), (96, 128), (32, 64)),
    ((97, 131), (97, 131), (28, 36)),
    ((96, 128), (64, 90), (32, 32)),
]
MODES = ("cell", "nearest", "bilinear")
EPS = 1e-3


class Case(NamedTuple):
    """A small set and a batch's draws: rotation, flip, crops, holes, depths of all 16 bits."""

    rgb: np.ndarray
    depth: np.ndarray
    index: np.ndarray
    affine: np.ndarray
    crop: np.ndarray
    lut: np.ndarray
    pad: np.ndarray

    def tensors(
        self, depth_scale: float = 1000.0, device: str = "cpu", dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """The tensors r2_batch takes, without a teacher."""
        arrays = [self.rgb, self.depth.view(np.int16), *self[2:], data.log_table(depth_scale, EPS)]
        tensors = [torch.from_numpy(array).to(device) for array in arrays]
        tensors[3] = tensors[3].to(dtype)
        return *tensors[:2], None, *tensors[2:]


def make_case(source: tuple[int, int], canvas: tuple[int, int], seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    (H, W), (Hc, Wc) = source, canvas
    rgb = rng.integers(0, 256, (3, H, W, 3)).astype(np.uint8)
    depth = rng.integers(1, 65536, (3, H, W)).astype(np.uint16)
    depth[rng.random(depth.shape) < 0.3] = 0
    depth[1, : H // 2] = 0
    affines, crops = [], []
    for angle, flip, h, w in [
        (0, False, Hc, Wc), (0, True, Hc - 9, Wc - 14), (2.5, False, Hc // 2, Wc // 2 + 1),
        (-2.1, True, Hc, Wc), (37, True, Hc - 1, Wc), (180, False, 1, 1), (-90, False, Hc, 5),
    ]:  # fmt: skip
        t = math.radians(angle)
        turn = np.array([[math.cos(t), math.sin(t)], [-math.sin(t), math.cos(t)]])
        turn = turn @ np.diag([-1.0 if flip else 1.0, 1.0])
        middle = np.array([(W - 1) / 2, (H - 1) / 2])
        shift = middle - turn @ (middle - rng.integers(0, 3, 2))
        affines.append(np.concatenate([turn, shift[:, None]], 1))
        crops.append((h, w))
    affines[-1][0, 2] += 3 * W  # nothing of the source is seen
    for wrong in (np.nan, 1e300):
        affines.append(affines[0] * wrong)
        crops.append((Hc, Wc))
    n = len(crops)
    lut = np.sort(rng.uniform(0, 255, (n, 3, 256)), -1).astype(np.float32)
    pad = np.array([123.5, 116.25, 103.0], np.float32)
    index = rng.integers(0, 3, n)
    return Case(rgb, depth, index, np.array(affines), np.array(crops), lut, pad)


def twins(case: Case, canvas, size, mode: str, depth_scale: float) -> dict[str, np.ndarray]:
    """The batch by data.r2_batch, the Python twin of the kernel."""
    n, low = len(case.index), (size[0] // 4, size[1] // 4)
    out = {"image": np.empty((n, 3, *size), np.float32)}
    out["depth"] = np.empty((n, 1, *canvas), np.float32)
    for name in (*data.LOW, *data.CELLS):
        out[name] = np.empty((n, 1, *low), bool if name.startswith("M_") else np.float32)
    rgb, depth = ([array[i] for i in case.index] for array in (case.rgb, case.depth))
    data.r2_batch(
        rgb, depth, case.affine, case.crop, case.lut, case.pad, depth_scale,
        data.log_table(depth_scale, EPS), mode, 1, *out.values(),
    )  # fmt: skip
    return out


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bits; of the cells' mean and M2, whose sums run in another order, all but the last two."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        near = {"rtol": 0.0, "atol": 0.0}
        if name.endswith(("cell_mean", "cell_M2")):
            near = {"rtol": 2**-22, "atol": 1e-11}  # 1e-11: M2 of a cell of equal depths
        torch.testing.assert_close(
            got[name], value, **near, msg=lambda text, name=name: f"{name}: {text}"
        )


# ------------------------------------------------------------------------------------- Sec. 3.2


@pytest.mark.parametrize("source, canvas, size", SIZES)
@pytest.mark.parametrize("mode, depth_scale", [("cell", 1000), ("nearest", 256), ("bilinear", 7.3)])
def test_float64_has_the_bits_of_the_twins(source, canvas, size, mode, depth_scale):
    case = make_case(source, canvas)
    got = resident.r2_batch(
        *case.tensors(depth_scale), depth_scale=depth_scale, canvas=canvas, size=size, mode=mode
    )
    expected = twins(case, canvas, size, mode, depth_scale)
    assert_same(got, {name: torch.from_numpy(value) for name, value in expected.items()})
    assert got["image"].is_contiguous(memory_format=torch.channels_last)
    assert 0.2 < got["M_x"][0].float().mean() if mode == "cell" else got["M_x"].any()
    assert (got["depth"] > 40000 / depth_scale).any()  # beyond int16


def test_float32_differs_at_ties_only():
    """The released sizes, where a float32 position is wrong by up to 6e-5 pixels."""
    source, canvas, size = (480, 640), (480, 640), (128, 160)
    case = make_case(source, canvas)
    how = {"depth_scale": 1000.0, "canvas": canvas, "size": size, "mode": "nearest"}
    exact = resident.r2_batch(*case.tensors(), **how)
    got = resident.r2_batch(*case.tensors(dtype=torch.float32), **how)
    grey = (torch.from_numpy(case.lut)[..., 1:] - torch.from_numpy(case.lut)[..., :-1]).max()
    off = (got["image"] - exact["image"]).abs()
    assert off.max() <= grey + 1e-3 and (off > 0).float().mean() < 1e-3
    assert (got["depth"] != exact["depth"]).float().mean() < 1e-4
    assert torch.equal(got["image"][:2], exact["image"][:2])  # no rotation: no tie is moved
    assert torch.equal(got["depth"][:2], exact["depth"][:2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "big, small", [((30, 40), (3, 5)), ((31, 43), (7, 9)), ((9, 7), (9, 7)), ((5, 6), (1, 1))]
)
def test_gt_down(big, small, mode):
    rng = np.random.default_rng(1)
    metres = rng.uniform(0.1, 60, (2, 1, *big)).astype(np.float32)
    metres[rng.random(metres.shape) < 0.4] = 0
    metres[1, :, : big[0] // 2] = 0
    got = resident.gt_down(torch.from_numpy(metres), small, mode).numpy()
    for d, low in zip(metres[:, 0], got[:, 0]):
        expected = np.empty(small, np.float32)
        data.gt_down(d, expected, mode)
        np.testing.assert_array_equal(low, expected)


def test_gt_down_names_an_unknown_mode():
    with pytest.raises(ValueError, match="'cell', 'nearest' or 'bilinear', got 'area'"):
        resident.gt_down(torch.ones(1, 1, 8, 8), (2, 2), "area")


def test_cell_statistics_by_hand():
    """Cells of unequal sizes, one of holes, one of a single depth; then random ones by numpy."""
    logs = data.log_table(1000.0, EPS)
    raw = np.array([[1000, 0, 0, 0, 0], [3000, 0, 0, 65535, 0]], np.int32)
    n, mean, M2 = resident.cell_statistics(
        torch.from_numpy(raw)[None, None], torch.from_numpy(logs), (1, 3)
    )  # columns 0 1 | 2 3 | 4
    low, high = math.log(1.001), math.log(3.001)
    assert n.flatten().tolist() == [2, 1, 0]
    expected = [(low + high) / 2, math.log(65.536), 0]
    assert mean.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert M2.flatten().tolist() == pytest.approx([(high - low) ** 2 / 2, 0, 0], rel=1e-6)

    rng = np.random.default_rng(2)
    raw = rng.integers(1, 65536, (2, 1, 13, 22), np.int32) * (rng.random((2, 1, 13, 22)) < 0.6)
    got = resident.cell_statistics(torch.from_numpy(raw), torch.from_numpy(logs), (5, 9))
    row, column = np.arange(13) * 5 // 13, np.arange(22) * 9 // 22
    for b, i, j in np.ndindex(2, 5, 9):
        d = raw[b, 0][np.ix_(row == i, column == j)]
        x = np.log(d[d > 0] / 1000 + EPS)
        expected = len(x), *((x.mean(), x.var() * len(x)) if len(x) else (0, 0))
        assert [float(t[b, 0, i, j]) for t in got] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_teacher_has_the_maps_of_its_own_depth():
    source, canvas, size = SIZES[1]
    case = make_case(source, canvas)
    other = make_case(source, canvas, seed=5).depth
    how = {"depth_scale": 1000.0, "canvas": canvas, "size": size, "mode": "cell"}
    rgb, depth, _, *rest = case.tensors()
    teacher = torch.from_numpy(other.view(np.int16))
    got = resident.r2_batch(rgb, depth, teacher, *rest, **how)
    alone = resident.r2_batch(rgb, teacher, None, *rest, **how)
    names = ("depth", *data.LOW, *data.CELLS)
    assert got.keys() == {"image", *names, *(f"teacher_{k}" for k in names)}
    for name in names:
        assert torch.equal(got[f"teacher_{name}"], alone[name]), name
    assert not torch.equal(got["depth"], got["teacher_depth"])


# ---------------------------------------------------------------------------- nothing waits


class Recorder(TorchDispatchMode):
    """Notes every operation, those that need a tensor's values on the host or carry them to
    another device, and the devices of all results."""

    SYNCS = {
        "_local_scalar_dense", "item", "nonzero", "nonzero_static", "masked_select", "unique",
        "_unique2", "is_nonzero", "equal", "repeat_interleave", "bincount",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.bad, self.devices = set(), set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        self.seen.add(name)
        by_mask = name.startswith(("index", "_index")) and any(
            t is not None and t.dtype in (torch.bool, torch.uint8)
            for a in args[1:] if isinstance(a, (list, tuple)) for t in a
        )  # fmt: skip
        if name in self.SYNCS or by_mask:
            self.bad.add(name)
        out = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_") and args[name == "copy_"].device != out.device:
            self.bad.add(name)
        self.devices |= {t.device.type for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source, canvas, size", SIZES[:2])
def test_nothing_waits_for_the_device(source, canvas, size, mode):
    """No operation needs a value on the host (the meta device has none), and no tensor is made on
    the host to be copied."""
    case = make_case(source, canvas)
    how = {"depth_scale": 1000.0, "canvas": canvas, "size": size, "mode": mode}
    with Recorder() as calls:
        real = resident.r2_batch(*case.tensors(), **how)
    assert "index" in calls.seen and not calls.bad
    with Recorder() as calls:  # the recorder sees what it is to see
        real["depth"][real["depth"] > 0].sum().item()
    assert {"index", "_local_scalar_dense"} <= calls.bad
    tensors = case.tensors(device="meta")
    with Recorder() as calls:
        shapes = {k: v.shape for k, v in resident.r2_batch(*tensors, **how).items()}
    assert calls.devices == {"meta"} and shapes == {k: v.shape for k, v in real.items()}


def test_one_graph():
    """torch.compile finds nothing to leave the graph for, and the traced graph is right."""
    source, canvas, size = SIZES[1]
    case = make_case(source, canvas)
    how = {"depth_scale": 1000.0, "canvas": canvas, "size": size, "mode": "cell"}
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.compile(resident.r2_batch, backend="eager", fullgraph=True, dynamic=False)
        got = traced(*case.tensors(), **how)
    for name, value in resident.r2_batch(*case.tensors(), **how).items():
        assert torch.equal(got[name], value), name


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@cuda
def test_on_a_gpu():
    source, canvas, size = SIZES[1]
    case = make_case(source, canvas)
    how = {"depth_scale": 1000.0, "canvas": canvas, "size": size, "mode": "cell"}
    tensors = case.tensors(device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = resident.r2_batch(*tensors, **how)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same({k: v.cpu() for k, v in got.items()}, resident.r2_batch(*case.tensors(), **how))


# ------------------------------------------------------------------------------ the resident set


def test_resident_keeps_every_bit(tmp_path, monkeypatch):
    case = make_case((96, 128), (96, 128))
    monkeypatch.setattr(resident.Resident, "CHUNK", 2 * case.depth[0].nbytes)  # 2 + 1 depths
    maps = {}
    for name, array in (("rgb", case.rgb), ("depth", case.depth), ("teacher", case.depth[::-1])):
        np.save(tmp_path / f"{name}.npy", array)
        maps[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    cpu = torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch's about arrays that cannot be written
        whole = resident.Resident(**maps, device=cpu)
    assert len(whole) == 3
    np.testing.assert_array_equal(whole.rgb.numpy(), case.rgb)
    np.testing.assert_array_equal(whole.depth.numpy().view(np.uint16), case.depth)
    np.testing.assert_array_equal(whole.teacher.numpy().view(np.uint16), case.depth[::-1])
    assert resident.Resident(case.rgb, case.depth, None, cpu).teacher is None
    with pytest.raises(ValueError, match="equally many"):
        resident.Resident(case.rgb, case.depth[:2], None, cpu)


def test_room():
    resident.check_room(10.6e9, free=15e9, whole=16e9)
    with pytest.raises(
        DataError, match=r"takes 10\.6 GB.*11\.5 of.*16\.0 GB.*--data_device cpu"
    ):
        resident.check_room(10.6e9, free=11.5e9, whole=16e9)


# --------------------------------------------------------------------------------------- batches


def test_parcel():
    """Any dtypes and sizes, one after another, in memory that grows and is used again; it is
    written only after what was there has been copied."""
    parcel = resident.Parcel(torch.device("cpu"))
    rng = np.random.default_rng(0)
    kept = []
    for n in (1, 7, 3):
        arrays = {
            "a": rng.integers(0, 9, n).astype(np.uint8), "b": rng.normal(size=(n, 3)),
            "c": rng.normal(size=(2, n)).astype(np.float32), "d": rng.integers(0, 1 << 40, n),
        }  # fmt: skip
        kept.append((arrays, parcel.send(parcel.fill(arrays))))
    for arrays, tensors in kept:
        for name, array in arrays.items():
            np.testing.assert_array_equal(tensors[name].numpy(), array)
            assert tensors[name].numpy().dtype == array.dtype

    class Event:
        waited = 0

        def synchronize(self):
            self.waited += 1
            assert parcel._memory.numpy()[0] == arrays["a"][0]  # not written yet

    parcel._free = Event()
    parcel.fill({"a": np.array([99], np.uint8)})
    assert parcel._free.waited == 1


AUGMENT = data.Augment(
    ((48, 64), (64, 96), (96, 128)), 0.5, 2.5, 0.5, (0.9, 1.1), False, (0.75, 1.25), (0.9, 1.1)
)
NETWORK = (64, 96)  # its prediction, 16x24, divides 96x128 in one direction only


def make_planner(
    pairs: list[Pair], cache: Path | str, maps: list[Path | None] | None = None, **changes
) -> data.Loader:
    """A Loader over a pack of the tiny pictures."""
    reader = open_reader(
        pairs, cache=str(cache), root=pairs[0].folder, name="train", image_size=(96, 128),
        intrinsics=(110.0, 110.0, 60.0, 50.0), depth_scale=1000.0, threads=1, ram_cache=0.0,
        teacher=maps, quiet=True,
    )  # fmt: skip
    settings = {
        "batch_size": 3, "seed": 7, "augment": AUGMENT, "crop_batch": "pad",
        "image_size": (96, 128), "size": NETWORK, "mean": (127.5, 120.0, 110.0),
        "std": (60.0, 61.0, 62.0), "depth_scale": 1000.0, "silog_eps": 1e-3, "vnl_share": 0.15,
        "gt_down": "cell", "kernels": data.kernels("cpp"), "threads": 1,
    }  # fmt: skip
    return data.Loader(reader, **settings | changes)


def make_loader(planner: data.Loader, device: str = "cpu", **other) -> resident.ResidentLoader:
    """As train.train does."""
    whole = resident.upload(planner.reader, torch.device(device))
    return resident.ResidentLoader(planner, whole, **other)


def copies(batches: Iterable[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{name: value.clone() for name, value in batch.items()} for batch in batches]


def assert_all(got: list[dict], expected: list[dict]) -> None:
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected):
        assert_same(mine, theirs)


@pytest.fixture
def plan_for(rgbd, tmp_path):
    """plan_for(...): a planner, see make_planner, closed after the test."""
    made = []

    def make(pairs: list[Pair] | None = None, **changes) -> data.Loader:
        made.append(make_planner(pairs or list_pairs(rgbd, "train"), tmp_path, **changes))
        return made[-1]

    yield make
    for planner in made:
        planner.close()


@pytest.fixture
def planner(plan_for):
    return plan_for()


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> list[Path | None]:
    """A teacher's depth for the 8 pairs, but for two of them."""
    folder, out = tmp_path_factory.mktemp("maps"), []
    for k in range(8):
        path = folder / f"{k}.npy"
        np.save(path, rgbd_picture(50 + k)[1])
        out.append(None if k in (1, 6) else path)
    return out


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("crop_batch", ["pad", "size"])
def test_batches_are_those_of_the_loader(plan_for, maps, crop_batch, taught):
    planner = plan_for(maps=maps if taught else None, crop_batch=crop_batch)
    loader = make_loader(planner)
    assert (len(loader), loader.batch_size, len(loader.pairs)) == (2, 3, 8)
    sizes, seen, without = set(), 0, 0
    for epoch in range(4):
        expected = copies(planner.epoch(epoch))
        assert_all(list(loader.epoch(epoch)), expected)  # not cloned: these stay valid
        for batch in expected:
            sizes.add(tuple(batch["depth"].shape[-2:]))
            seen += len(batch["index"])
            if taught:
                without += int((batch["teacher_cell_n"].sum((1, 2, 3)) == 0).sum())
                assert (batch["teacher_depth"] > 0).any()
    assert len(sizes) == (3 if crop_batch == "size" else 1) and bool(without) == taught
    assert without < seen / 2
    assert_all(copies(loader.epoch(3, 1)), expected[1:])  # resumed
    assert not copies(loader.epoch(3, 2))


@pytest.mark.parametrize("gt_down", ["nearest", "bilinear"])
def test_batches_follow_the_flags(plan_for, gt_down):
    planner = plan_for(gt_down=gt_down, silog_eps=0.1, vnl_share=0.5)
    assert_all(list(make_loader(planner).epoch(0)), copies(planner.epoch(0)))


def test_a_pair_that_cannot_be_read_is_replaced_as_by_the_loader(tmp_path, make_rgbd, plan_for):
    root = make_rgbd(tmp_path / "set")
    broken = root / "train/depth/sample_4.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    planner = plan_for(list_pairs(root, "train"), batch_size=8)
    expected = copies(planner.epoch(0))
    assert sorted(expected[0]["index"].tolist()) == [0, 1, 2, 3, 5, 5, 6, 7]
    loader = make_loader(planner)
    assert_all(list(loader.epoch(0)), expected)
    assert len(loader.failed) == 1


def test_ranks_share_every_batch(plan_for, planner):
    whole = copies(planner.epoch(3))
    parts = [copies(make_loader(plan_for(rank=r, world=2)).epoch(3)) for r in range(2)]
    assert [len(p[0]["index"]) for p in parts] == [1, 2]
    assert all(torch.equal(a["triplets"], b["triplets"]) for a, b in zip(*parts))
    joined = [
        {k: a[k] if k == "triplets" else torch.cat([a[k], b[k]]) for k in a} for a, b in zip(*parts)
    ]
    assert_all(joined, whole)


def test_leaving_early_and_deterministic(plan_for):
    """More batches than the ring has parcels; a generator that is dropped leaves no trace."""
    loader = make_loader(plan_for(batch_size=1))
    expected = copies(loader.epoch(0))
    assert len(expected) == 8 > loader.AHEAD + 1
    left = loader.epoch(5)
    next(left)
    left.close()
    for mine, theirs in zip(loader.epoch(0), expected):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_triplets_are_those_of_the_loss(planner):
    loader = make_loader(planner)
    batches = [b for epoch in (0, 1) for b in loader.epoch(epoch)]
    for step, batch in enumerate(batches):
        expected = losses.draw_triplets(7, step, 16 * 24, 57)
        assert torch.equal(batch["triplets"], expected)


def test_plan_that_fails_is_heard_of(planner, monkeypatch):
    loader = make_loader(planner)

    def broken(*_):
        raise DataError("no pair can be read")

    monkeypatch.setattr(planner, "plan", broken)
    with pytest.raises(DataError, match="no pair can be read"):
        next(loader.epoch(0))


def test_close_ends_the_planner_too(planner):
    loader = make_loader(planner)
    loader.close()
    for closed in (loader, planner):
        with pytest.raises(RuntimeError, match="after shutdown"):
            next(closed.epoch(0))


def test_another_set_is_refused(planner):
    case = make_case((96, 128), (96, 128))
    whole = resident.Resident(case.rgb, case.depth, None, torch.device("cpu"))
    with pytest.raises(ValueError, match="3 resident pairs for 8 planned"):
        resident.ResidentLoader(planner, whole)


def test_without_a_pack_nothing_is_uploaded(rgbd):
    planner = make_planner(list_pairs(rgbd, "train"), "none")
    with pytest.raises(DataError, match="packed cache: not with --cache none"):
        make_loader(planner)
    planner.close()


def test_same_interface_as_the_loader():
    """What train.fit calls of a loader."""
    for name in ("__len__", "epoch", "close"):
        mine, theirs = (
            inspect.signature(getattr(kind, name)).parameters.keys()
            for kind in (resident.ResidentLoader, data.Loader)
        )
        assert mine == theirs


# -------------------------------------------------------------------------------------- training


def make_objective() -> train.Supervised:
    """The student under CellLoss(kernel="torch"), as on a GPU or with --compile."""
    torch.manual_seed(0)
    network = model.create("student", size=NETWORK, decoder="mix", upsample="nearest")
    network.to(memory_format=torch.channels_last)
    loss = train.build_loss(train.parse(["--compile"]), torch.device("cpu"))
    assert isinstance(loss, losses.CellLoss) and loss.robust["kernel"] == "torch"
    return train.Supervised(network, loss).train()


@pytest.mark.parametrize("crop_batch", ["pad", "size"])
def test_training_is_that_of_the_loader(plan_for, crop_batch):
    """train.fit on either: the same losses and gradients in all four steps."""
    planner, logs = plan_for(crop_batch=crop_batch), []
    for loader in (planner, make_loader(planner)):
        objective = make_objective()
        logs.append(train.fit(
            objective, torch.optim.Adam(objective.parameters(), eps=1e-3, fused=True), loader,
            network=objective.network, schedule=lambda *_: 1e-3, epochs=2, clip=35.0,
            device=torch.device("cpu"), amp=False, out=None, validate=None, val_every=1,
            max_skipped=10, save_minutes=0,
        ))  # fmt: skip
    for row, other in zip(*logs):
        assert math.isfinite(row["loss"])
        for name in row.keys() - {"images_per_s"}:
            assert other[name] == pytest.approx(row[name], rel=1e-5), name
    assert logs[0][0]["loss"] != logs[0][1]["loss"]


def backward(objective: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A step of train.fit but for the optimizer -> loss, gradient norm."""
    loss, _ = objective(batch)
    objective.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach(), nn.utils.clip_grad_norm_(objective.parameters(), 35.0)


def test_no_step_waits_for_the_device(plan_for, maps, monkeypatch):
    """r2_batch, network, Eq. 11, backward and clipping ask for no value of a tensor; on the meta
    device, which has none, they run too, and copy nothing from the host."""
    planner, objective = plan_for(maps=maps), make_objective()
    made = make_loader(planner).epoch(0)
    with Recorder() as calls:
        backward(objective, next(made))
    made.close()
    assert {"index", "convolution_backward", "sort"} <= calls.seen and not calls.bad
    batch = next(iter(make_loader(planner, "meta").epoch(0)))
    assert {value.device.type for value in batch.values()} == {"meta"}
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta knows none
    objective.to("meta")
    with Recorder() as calls:
        backward(objective, batch)
    assert "convolution_backward" in calls.seen and not calls.bad
    with Recorder() as calls:  # the recorder sees what it is to see
        batch["depth"] + torch.ones(3, 1, 1, 1).to("meta")
    assert calls.bad == {"_to_copy"}


def compiled(objective: nn.Module, backend: str) -> CompileCounterWithBackend:
    """Compiles it in place, as --compile does but without making machine code, and counts."""
    counter = CompileCounterWithBackend(backend)
    objective.compile(backend=counter, fullgraph=True, dynamic=False)
    return counter


@pytest.mark.filterwarnings("ignore")
def test_compile(planner):
    """--compile: one graph without a break, whose loss and gradients are those without it. The
    network is in double: normalised by few values, float32 moves gradients by 1e-4."""
    objective, traced = make_objective().double(), make_objective().double()
    torch.compiler.reset()
    counter = compiled(traced, "aot_eager")
    for batch in make_loader(planner).epoch(0):
        batch = batch | {"image": batch["image"].double()}
        for got, expected in zip(backward(traced, batch), backward(objective, batch)):
            torch.testing.assert_close(got, expected, rtol=1e-7, atol=0)
        for mine, theirs in zip(traced.parameters(), objective.parameters()):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-11)
    for mine, theirs in zip(traced.buffers(), objective.buffers()):  # of the norms
        torch.testing.assert_close(mine, theirs)
    assert counter.frame_count == 1


class Small(nn.Module):
    """What Supervised asks of a network, in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 5, stride=4, padding=2)

    def features(self, image: Tensor, normalized: bool) -> tuple[Tensor, None]:
        return self.conv(image).exp(), None

    def enlarge(self, d_hat: Tensor, size: tuple[int, int]) -> Tensor:
        raise AssertionError("CellLoss does not enlarge")


@pytest.mark.filterwarnings("ignore")
def test_each_canvas_is_compiled_once(plan_for):
    """--compile with --crop_batch size: a graph for each size, and none when it comes again."""
    torch.manual_seed(0)
    network, loss = Small(), make_objective().loss
    objective, traced = train.Supervised(network, loss), train.Supervised(network, loss)
    loader = make_loader(plan_for(crop_batch="size"))
    torch.compiler.reset()
    counter, seen = compiled(traced, "eager"), []
    for batch in (b for epoch in range(4) for b in loader.epoch(epoch)):
        seen.append(batch["depth"].shape)
        got, expected = (each(batch)[0] for each in (traced, objective))
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
        assert counter.frame_count == len(set(seen))
    assert len(set(seen)) == 3 < len(seen)
