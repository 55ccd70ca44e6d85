"""Sec. 3.2: what is drawn, R^2 crop, batches; Fig. 4; by kernels, by PyTorch, by processes."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import cv2
import litedepth_kernels
import numpy as np
import pytest
import torch
import twin
from conftest import lines_of, write
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import data
import losses
from plumbing.batches import Reading, open_reader, upload
from plumbing.files import UserError
from plumbing.pairs import DataError, Pair, Source, list_pairs, read_pair

SIZE, NET = (96, 128), (64, 96)  # of the tiny pictures, and of a network for them
K0 = (110.0, 110.0, 60.0, 50.0)
CROP = data.Crop(crops=((48, 64), (64, 96), (96, 128)), crop_batch="pad")
STILL = {"rotate_prob": 0.0, "flip_prob": 0.0}
COLOURLESS = replace(CROP, gamma=(1, 1), brightness=(1, 1), channel_gain=(1, 1))
PLAIN = replace(COLOURLESS, crops=(), **STILL)  # the whole picture as it is
CHANNELS = ("depth_low", *data.GRADIENTS, *data.CELLS)


class Eye(nn.Module):
    """All of a network that a Loader looks at; its images are 0..255, the padding 0."""

    def __init__(self, size=NET, mean=(0.0,) * 3, std=(1.0,) * 3) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))


def loader_of(pairs: list[Pair], teacher=None, share=(0, 1), **changes) -> data.Loader:
    """A Loader without a pack, for the tiny pictures."""
    source = Source(
        data=str(changes.pop("root", ".")), image_size=changes.pop("image_size", SIZE),
        intrinsics=K0, depth_scale=changes.pop("depth_scale", 1000.0),
    )  # fmt: skip
    reading = Reading(
        changes.pop("threads", 2), changes.pop("cache", "none"), changes.pop("ram_cache", 0.0),
        changes.pop("skip_bad", False), changes.pop("extra_share", 0.0),
    )  # fmt: skip
    own = changes.pop("own", None)
    network = Eye(**{k: changes.pop(k) for k in ("size", "mean", "std") if k in changes})
    batch_size, seed = changes.pop("batch_size", 4), changes.pop("seed", 0)
    crop = replace(changes.pop("crop", CROP), **changes)
    reader = open_reader(pairs, source, reading, teacher)
    reader.own = own
    return data.Loader(reader, network, crop, losses.Loss(), batch_size, seed, share)


@pytest.fixture
def make_loader():
    """make_loader(pairs, **changes): a Loader for the tiny pictures, closed after the test."""
    made = []

    def make(pairs: list[Pair], **changes) -> data.Loader:
        made.append(loader_of(pairs, **changes))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


@pytest.fixture(scope="module")
def pairs(rgbd):
    return list_pairs(rgbd, "train")


def centre_of(weight: np.ndarray) -> np.ndarray:
    """(x, y) centroid."""
    v, u = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([(weight * u).sum(), (weight * v).sum()]) / weight.sum()


def copies(batches) -> list[dict[str, torch.Tensor]]:
    """What belongs to samples; a batch's triplets belong to its step."""
    return [{k: v.clone() for k, v in b.items() if k != "triplets"} for b in batches]


def joined(batches: list[dict]) -> dict[str, torch.Tensor]:
    return {k: torch.cat([b[k] for b in batches]) for k in batches[0]}


def assert_same(one: dict, two: dict) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]), name


# Sec. 3.2: what is drawn -------------------------------------------------------------------------


def each(d: data.Views) -> list[data.Views]:
    """Its samples, one by one."""
    return [data.Views(tuple(crop.tolist()), affine, lut) for crop, affine, lut in zip(*d)]


def draws(count: int, size=SIZE, **changes) -> list[data.Views]:
    return each(data.draw(1, 2, range(count), size, replace(CROP, **changes)))


def chi_square(values, kinds) -> float:
    """Of a uniform distribution over `kinds`, per degree of freedom: about 1."""
    counts = np.array([sum(v == k for v in values) for k in kinds])
    assert counts.sum() == len(values)
    expected = len(values) / len(kinds)
    return float(((counts - expected) ** 2 / expected).sum() / max(len(kinds) - 1, 1))


def test_sec32_crop_sizes_are_uniform():
    crops = ((240, 384), (384, 512), (480, 640))
    some = draws(1500, (480, 640), crops=crops)
    assert chi_square([d.crop for d in some], crops) < 4.6  # p = 0.01


def test_sec32_crop_places_are_uniform_and_reach_both_ends():
    some = draws(1500, crops=((92, 121),), rotate_prob=0.0, flip_prob=0.0)
    for axis, last in ((0, 7), (1, 4)):  # left 0..7, top 0..4
        at = [d.affine[axis, 2] for d in some]
        assert chi_square(at, range(last + 1)) < 3
    assert all((d.affine[:, :2] == np.eye(2)).all() for d in some)
    flipped = draws(500, crops=((92, 121),), rotate_prob=0.0, flip_prob=1.0)
    right = {127 - d.affine[0, 2] for d in flipped}  # of the mirrored picture, from its left
    assert right == set(range(8))


def test_sec32_one_crop_size_and_none():
    assert {d.crop for d in draws(50, crops=((64, 96),))} == {(64, 96)}
    for d in draws(50, crops=(), rotate_prob=0.0, flip_prob=0.0):
        assert d.crop == SIZE and (d.affine == np.eye(2, 3)).all()
    for d in each(data.draw(1, 2, [3, 5], SIZE, PLAIN)):
        assert d.crop == SIZE and (d.affine == np.eye(2, 3)).all()
        assert (d.lut == np.arange(256)).all() and d.lut.dtype == np.float32


def test_sec32_flip_and_rotation_probability_and_range():
    for probability in (0.0, 0.3, 1.0):
        flips = [d.affine[0, 0] < 0 for d in draws(800, flip_prob=probability)]
        assert abs(np.mean(flips) - probability) < 0.05
        turned = [d.affine[1, 0] != 0 for d in draws(800, rotate_prob=probability)]
        assert abs(np.mean(turned) - probability) < 0.05
    some = draws(800, rotate_prob=1.0, max_angle=2.5)
    angles = np.degrees([math.atan2(d.affine[0, 1], d.affine[1, 1]) for d in some])
    assert -2.5 <= angles.min() < -2.45 and 2.45 < angles.max() <= 2.5
    quarters = np.histogram(angles, np.linspace(-2.5, 2.5, 5))[0]
    assert np.abs(quarters - 200).max() < 45
    assert all(d.affine[1, 0] == 0 for d in draws(50, rotate_prob=1.0, max_angle=0.0))
    both = np.array([[d.affine[0, 0] < 0, d.affine[1, 0] != 0] for d in draws(2000)])
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.08  # one does not decide the other


def cropped(rgb: np.ndarray, depth: np.ndarray, d: data.Views) -> tuple[np.ndarray, np.ndarray]:
    """One sample by data.crop_image and data.crop_depth: image (3, *SIZE), metres SIZE."""
    views = data.Views(torch.tensor([d.crop]), *(torch.from_numpy(x)[None] for x in d[1:]))
    image = data.crop_image(torch.from_numpy(rgb)[None], views, SIZE, SIZE)
    metres = data.crop_depth(torch.from_numpy(depth.astype(np.int32))[None], views, SIZE) / 1000
    return image[0].numpy(), metres[0, 0].numpy()


def released_order(picture: np.ndarray, d: data.Views, flags: int) -> np.ndarray:
    """The draw carried out by OpenCV step by step: rotate, flip, crop, with black beyond.

    cv2.getRotationMatrix2D maps source to canvas, anticlockwise; the draw's angle is clockwise.
    """
    h, w = picture.shape[:2]
    centre = ((w - 1) / 2, (h - 1) / 2)
    flipped = d.affine[0, 0] < 0
    angle = math.degrees(math.atan2(d.affine[0, 1], d.affine[1, 1]))
    M = cv2.getRotationMatrix2D(centre, -angle, 1.0)
    left, top = M[:, :2] @ d.affine[:, 2] + M[:, 2]  # where the canvas' corner is, before the flip
    left = w - 1 - left if flipped else left
    assert abs(left - round(left)) < 1e-9 and abs(top - round(top)) < 1e-9
    top, left = round(top), round(left)
    assert 0 <= top <= h - d.crop[0] and 0 <= left <= w - d.crop[1]
    turned = cv2.warpAffine(picture, M, (w, h), flags=flags)
    turned = turned[:, ::-1] if flipped else turned
    return turned[top : top + d.crop[0], left : left + d.crop[1]]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("max_angle", [2.5, 30.0])
def test_sec32_content_equals_opencvs_step_by_step(pairs, flip, max_angle):
    """The readable form; that the kernels equal it is a test of its own."""
    sample = read_pair(pairs[0], SIZE, K0, {})
    changes = {"rotate_prob": 1.0, "max_angle": max_angle, "flip_prob": flip}
    for d in draws(6, **changes, gamma=(1, 1), brightness=(1, 1), channel_gain=(1, 1)):
        image, metres = cropped(sample.rgb, sample.depth, d)
        h, w = d.crop
        rgb = released_order(sample.rgb, d, cv2.INTER_LINEAR).transpose(2, 0, 1)
        assert np.abs(image[:, :h, :w] - rgb).max() < 6  # OpenCV rounds positions to 1/32
        assert np.abs(image[:, :h, :w] - rgb).mean() < 0.6
        depth = released_order(sample.depth, d, cv2.INTER_NEAREST)
        assert (np.round(1000 * metres[:h, :w]) == depth).mean() > 0.97


def test_sec32_colour_tables():
    off = {"gamma": (1.0, 1.0), "brightness": (1.0, 1.0), "channel_gain": (1.0, 1.0)}

    def tables(**changes) -> np.ndarray:
        some = np.stack([d.lut for d in draws(800, **{**off, **changes})])
        assert some.dtype == np.float32 and some.min() >= 0 and some.max() <= 255
        assert (some[..., 0] == 0).all() and (np.diff(some) >= 0).all()
        return some

    assert (tables() == np.arange(256)).all()
    # the released jitter: 128 becomes 79 .. 208
    gamma = tables(gamma=(0.9, 1.1))
    assert gamma[..., 128].min() == pytest.approx(128**0.9, rel=0.01)
    assert gamma[..., 128].max() == pytest.approx(128**1.1, rel=0.01)
    assert (gamma[:, 0] == gamma[:, 1]).all() and (gamma[:, 0] == gamma[:, 2]).all()
    assert (gamma == 255).any()  # cut, not wrapped
    mild = tables(gamma=(0.9, 1.1), gamma_unit=True)
    assert np.allclose(mild[..., 255], 255)
    assert mild[..., 128].min() == pytest.approx(255 * (128 / 255) ** 1.1, rel=0.002)
    assert mild[..., 128].max() == pytest.approx(255 * (128 / 255) ** 0.9, rel=0.002)
    common = tables(brightness=(0.75, 1.25))[..., 100] / 100
    assert (common[:, 0] == common[:, 1]).all() and (common[:, 0] == common[:, 2]).all()
    assert common.min() == pytest.approx(0.75, abs=0.01) and common.min() >= 0.7499
    assert common.max() == pytest.approx(1.25, abs=0.01) and common.mean() == pytest.approx(1, 0.02)
    own = tables(channel_gain=(0.9, 1.1))[..., 100] / 100
    assert own.min() == pytest.approx(0.9, abs=0.01) and own.max() == pytest.approx(1.1, abs=0.01)
    assert np.abs(np.corrcoef(own.T) - np.eye(3)).max() < 0.15
    assert own.min() >= 0.8999 and own.max() <= 1.1001
    # all at once: power first, then both gains
    for d in draws(40):
        power = np.log(d.lut[:, 40] / d.lut[:, 20]) / np.log(2)
        assert np.allclose(power, power[0], atol=1e-4) and 0.9 <= power[0] <= 1.1
        gain = d.lut[:, 20] / 20 ** power[0]
        assert (0.75 * 0.9 - 1e-3 <= gain).all() and (gain <= 1.25 * 1.1 + 1e-3).all()


# Sec. 3.2: one map for picture, depth and intrinsics ----------------------------------------------


@pytest.mark.parametrize("kernels", ["cpp", "torch"])
@pytest.mark.parametrize(
    "size, net, square, crops, count",
    [
        (SIZE, NET, np.s_[24:66, 40:84], ((64, 96), (96, 128)), 60),
        ((480, 640), (128, 160), np.s_[90:310, 200:420], ((384, 512), (480, 640)), 6),
    ],
)
def test_sec32_picture_and_depth_stay_together(
    tmp_path, make_loader, kernels, size, net, square, crops, count
):
    """A red square 7 m away on grey 2 m away: red and 7 m coincide wherever they end up."""
    bgr, depth = np.full((*size, 3), 40, np.uint8), np.full(size, 2000, np.uint16)
    bgr[square], depth[square] = (40, 40, 240), 7000
    files = write(tmp_path / "rgb/a.png", bgr), write(tmp_path / "depth/a.png", depth)
    pair = Pair(*files, "scene", tmp_path)
    loader = make_loader(
        [pair] * count, image_size=size, size=net, batch_size=count // 2, threads=1,
        kernels=kernels, crop=replace(COLOURLESS, crops=crops, max_angle=4.0),
    )  # fmt: skip
    offsets = []
    scale = np.array([net[1] / size[1], net[0] / size[0]])
    for batch in loader.epoch(0):
        assert set(batch["depth"].unique().tolist()) <= {0.0, 2.0, 7.0}
        for image, metres in zip(batch["image"].numpy(), batch["depth"][:, 0].numpy()):
            red = np.clip((image[0] - image[2]) / 200, 0, 1)
            far = (metres == 7).astype(np.float32)
            v = np.round((np.arange(net[0]) + 0.5) / scale[1] - 0.5).astype(int)
            u = np.round((np.arange(net[1]) + 0.5) / scale[0] - 0.5).astype(int)
            seen = far[np.ix_(v, u)]
            inner, outer = (f(seen, np.ones((3, 3))) for f in (cv2.erode, cv2.dilate))
            inside_crop = (image != 0).any(0)
            assert (red >= 0.5)[(inner > 0) & inside_crop].all() and not red[outer == 0].any()
            if far.sum() > 0.98 * depth[square].size:  # the whole square is on the canvas
                offsets.append(centre_of(red) - ((centre_of(far) + 0.5) * scale - 0.5))
    assert len(offsets) > count / 8
    assert np.abs(offsets).max() < 0.35
    assert np.abs(np.mean(offsets, 0)).max() < 0.12  # no half pixel between the two


def test_sec32_holes_are_never_blended(pairs, make_loader):
    loader = make_loader(pairs)
    sources = [set(np.unique(read_pair(p, SIZE, K0, {}).depth).tolist()) for p in pairs]
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            for index, depth in zip(batch["index"], batch["depth"].numpy()):
                raw = np.round(depth * 1000).astype(int)
                assert set(np.unique(raw).tolist()) <= sources[index]
                assert (depth == raw.astype(np.float32) / np.float32(1000)).all()


def test_sec32_crops_sit_in_the_corner_of_a_mean_canvas(pairs, make_loader):
    for crop, (rows, cols) in {(48, 64): (32, 48), (65, 96): (43, 72)}.items():
        augment = replace(CROP, crops=(crop,), rotate_prob=0.0)
        for batch in make_loader(pairs, crop=augment, mean=(10.5, 20.5, 30.5)).epoch(0):
            image, depth = batch["image"], batch["depth"]
            beyond = torch.ones(NET, dtype=torch.bool)
            beyond[:rows, :cols] = False
            assert (image == 0)[:, :, beyond].all()  # the mean colour, by Eq. 1
            assert (image != 0)[:, :, :rows, :cols].float().mean() > 0.95
            assert not depth[:, :, crop[0] :].any() and not depth[:, :, :, crop[1] :].any()
            assert (depth[:, :, : crop[0], : crop[1]] > 0).float().mean() > 0.4
            low = batch["depth_low"]
            assert not low[:, :, math.ceil(crop[0] / 6) :].any()
            assert not low[:, :, :, math.ceil(crop[1] * 24 / 128) :].any()


@pytest.mark.parametrize("kernels", ["cpp", "torch"])
def test_sec32_extent_is_what_the_crop_fills(pairs, make_loader, kernels):
    """Told apart by a mean that no picture can have: black stands for beyond the source."""
    seen = set()
    options = {"mean": (-1.0, -2.0, -3.0), "kernels": kernels}
    crops = ((48, 64), (49, 43), (65, 96), (95, 127), (96, 128))
    for crop in (replace(CROP, crops=crops, max_angle=20.0), PLAIN):
        loader = make_loader(pairs, crop=crop, **options)
        for batch in (b for epoch in range(4) for b in loader.epoch(epoch)):
            for image, (rows, cols) in zip(batch["image"], batch["extent"].tolist()):
                assert (image != 0)[:, :rows, :cols].all()
                image[:, :rows, :cols] = 0
                assert (image == 0).all()
                seen.add((rows, cols))
    assert seen == {(32, 48), (32, 32), (43, 72), (63, 95), (64, 96)}


@pytest.mark.parametrize("large", [False, True])
def test_sec32_without_augmentation_the_picture_is_opencvs_resize(
    rgbd, rgbd_large, make_loader, large
):
    size, net = ((480, 640), (128, 160)) if large else (SIZE, NET)
    pairs = list_pairs(rgbd_large if large else rgbd, "train")[:2]
    loader = make_loader(pairs, crop=PLAIN, image_size=size, size=net, batch_size=2)
    (batch,) = loader.epoch(0)
    for i, index in enumerate(batch["index"]):
        sample = read_pair(pairs[index], size, K0, {})
        rgb = sample.rgb.astype(np.float32)  # on bytes OpenCV's weights are coarse
        resized = cv2.resize(rgb, net[::-1], interpolation=cv2.INTER_LINEAR)
        difference = batch["image"][i].permute(1, 2, 0).numpy() - resized
        assert np.abs(difference).max() < 0.501
        metres = sample.depth.astype(np.float32) / np.float32(1000)
        np.testing.assert_array_equal(batch["depth"][i, 0].numpy(), metres)
        np.testing.assert_array_equal(batch["K"][i].numpy(), np.float32(K0))


def test_sec32_intrinsics_follow_the_picture():
    """A ball in the world, seen before and after: the new K projects it where it is seen.

    The world is mirrored by a flip and rolled by a rotation.
    """
    K, (X, Y, Z) = np.array([110.0, 110.0, 60.0, 50.0]), (0.12, -0.1, 2.0)
    u, v = K[:2] * [X / Z, Y / Z] + K[2:]
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    ball = 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 30)
    rgb = np.repeat(ball[..., None], 3, 2).astype(np.uint8)
    changes = {"crops": ((64, 96), (96, 128)), "rotate_prob": 0.7, "max_angle": 25.0}
    seen = 0
    for d in draws(40, **changes, gamma=(1, 1), brightness=(1, 1), channel_gain=(1, 1)):
        image, _ = cropped(rgb, np.ones(SIZE, np.uint16), d)
        fx, fy, cx, cy = data.intrinsics_after(K[None], d.affine[None])[0]
        assert (fx, fy) == (110, 110)
        assert np.allclose(d.affine[:, :2] @ d.affine[:, :2].T, np.eye(2))
        x, y = d.affine[:, :2].T @ [X, Y]  # the point in the mirrored and rolled world
        there = np.array([fx * x / Z + cx, fy * y / Z + cy])
        if 14 < there[0] < d.crop[1] - 14 and 14 < there[1] < d.crop[0] - 14:
            seen += 1
            assert np.abs(centre_of(image[0]) - there).max() < 0.1
    assert seen > 15
    mirror = np.array([[-1.0, 0, 127], [0, 1, 0]])
    shifted = np.array([[1.0, 0, 30], [0, 1, 20]])
    K = np.array([[100.0, 120, 60, 50]] * 2)
    after = data.intrinsics_after(K, np.stack([mirror, shifted]))
    assert after.tolist() == [[100, 120, 67, 50], [100, 120, 30, 30]]


# Sec. 3.2: batches -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(pairs):
    """Epoch 0 of the plain loader, one thread, as one batch of 8."""
    loader = loader_of(pairs, batch_size=8, threads=1)
    batches = copies(loader.epoch(0))
    loader.close()
    return joined(batches)


def test_sec32_a_batch_is_as_documented(reference, pairs):
    n, (H, W), (h, w) = len(pairs), SIZE, NET
    low = (n, 1, h // 4, w // 4)
    assert {k: (tuple(v.shape), v.dtype) for k, v in reference.items()} == {
        "image": ((n, 3, h, w), torch.float32), "depth": ((n, 1, H, W), torch.float32),
        "depth_low": (low, torch.float32), "grad_x": (low, torch.float32),
        "grad_y": (low, torch.float32), "M_x": (low, torch.bool), "M_y": (low, torch.bool),
        "K": ((n, 4), torch.float32), "index": ((n,), torch.int64),
        "extent": ((n, 2), torch.int64), "cell_n": (low, torch.float32),
        "cell_mean": (low, torch.float32), "cell_M2": (low, torch.float32),
    }  # fmt: skip
    assert sorted(reference["index"].tolist()) == list(range(n))
    assert reference["image"].min() >= 0 and reference["image"].max() <= 255
    affine = data.draw(0, 0, reference["index"].tolist(), SIZE, CROP).affine
    K = data.intrinsics_after(np.array([K0] * n), affine)
    assert np.allclose(reference["K"].numpy(), K, rtol=1e-6)
    assert len(reference["K"].unique(dim=0)) > 4
    assert 0.6 < reference["depth"][reference["depth"] > 0].min()
    assert reference["depth"].max() < 40


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_sec32_samples_do_not_depend_on_threads_or_batch_size(
    pairs, make_loader, reference, threads, batch_size
):
    loader = make_loader(pairs, threads=threads, batch_size=batch_size, ram_cache=1.0)
    batches = copies(loader.epoch(0))
    assert len(batches) == len(loader) == 8 // batch_size
    assert_same(joined(batches), reference)


@pytest.mark.parametrize("own, share, drawn", [(4, 0.5, 4), (2, 0.5, 2), (2, 0.75, 6), (4, 0.7, 9)])
def test_an_epoch_is_all_own_pairs_and_a_share_of_others(make_loader, pairs, own, share, drawn):
    loader = make_loader(pairs, own=own, extra_share=share, batch_size=1)
    seen = np.array([loader.order(epoch)[:, 0] for epoch in range(40)])
    assert len(loader) == seen.shape[1] == own + drawn
    counts = np.array([np.bincount(row, minlength=8) for row in seen])
    assert (counts[:, :own] == 1).all() and (counts[:, own:].sum(1) == drawn).all()
    assert (np.ptp(counts[:, own:], axis=1) <= 1).all()  # none twice before all were there
    assert (counts[:, own:].sum(0) > 0).all()
    first = np.mean(seen[:, 0] < own)  # shuffled
    assert 0 < first < 1


def test_sec32_samples_are_keyed_by_seed_epoch_and_index(pairs, make_loader, reference):
    by_index = reference["index"].argsort()
    for changes, epoch in (({"seed": 1}, 0), ({}, 1)):
        other = joined(copies(make_loader(pairs, **changes).epoch(epoch)))
        again = joined(copies(make_loader(pairs, **changes).epoch(epoch)))
        assert_same(other, again)
        assert other["index"].tolist() != reference["index"].tolist()
        at = other["index"].argsort()
        assert not any(
            torch.equal(other["image"][a], reference["image"][b]) for a, b in zip(at, by_index)
        )
    keys = [(0, 0, [0]), (0, 0, [1]), (0, 1, [0]), (1, 0, [0]), (0, 1, [1])]
    assert len({data.draw(*k, SIZE, CROP).lut.tobytes() for k in keys}) == len(keys)


@pytest.mark.parametrize("start", [1, 3, 4, 8])
def test_sec32_a_resumed_epoch_is_the_tail_of_the_whole(pairs, make_loader, start):
    loader = make_loader(pairs, batch_size=1)
    whole, tail = copies(loader.epoch(5)), copies(loader.epoch(5, start))
    assert len(tail) == 8 - start
    for one, two in zip(whole[start:], tail):
        assert_same(one, two)


@pytest.mark.parametrize("batch_size", [4, 3])
def test_sec32_the_shares_of_two_processes_make_the_batches_of_one(pairs, make_loader, batch_size):
    whole = copies(make_loader(pairs, batch_size=batch_size).epoch(0))
    ranks = [make_loader(pairs, batch_size=batch_size, share=(r, 2)) for r in (0, 1)]
    shares = [copies(loader.epoch(0)) for loader in ranks]
    assert [len(s) for s in shares] == [len(whole)] * 2
    for one, *two in zip(whole, *shares):
        assert_same(one, joined(two))
    with pytest.raises(DataError, match="a batch of 1 cannot be shared by 2 processes"):
        make_loader(pairs, batch_size=1, share=(0, 2))


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_sec32_the_order_covers_every_pair_at_most_once(pairs, make_loader, batch_size):
    loader = make_loader(pairs, batch_size=batch_size)
    left_out = set()
    for epoch in range(20):
        order = loader.order(epoch)
        assert order.shape == (8 // batch_size, batch_size)
        assert len(set(order.ravel())) == order.size
        left_out |= set(range(8)) - set(order.ravel().tolist())
    assert left_out == (set(range(8)) if batch_size == 3 else set())  # not always the same ones
    firsts = {tuple(loader.order(e)[0]) for e in range(20)}
    assert len(firsts) > 10


def test_fig4_by_hand():
    """Holes of every kind; the last column and row have no neighbour."""
    nan, inf = math.nan, math.inf
    d = torch.tensor([[[[1.0, 3.0, 0.0], [2.0, nan, 6.0], [inf, 5.0, -1.0]]]])
    grad_x, grad_y, M_x, M_y = data.masked_gradient(d)
    assert M_x[0, 0].tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert M_y[0, 0].tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert grad_x[0, 0].tolist() == [[2, 0, 0], [0] * 3, [0] * 3]
    assert grad_y[0, 0].tolist() == [[1, 0, 0], [0] * 3, [0] * 3]


def test_sec33_low_depth_is_the_mean_of_a_cells_valid_pixels(reference):
    low = reference["depth_low"]
    assert 0.2 < (low > 0).float().mean() < 0.95 and reference["M_x"].any()
    for depth, given in zip(reference["depth"][:, 0].numpy(), low[:, 0].numpy()):
        v, u = np.arange(96) * 16 // 96, np.arange(128) * 24 // 128
        for i, j in ((0, 0), (3, 7), (7, 11), (15, 23)):
            cell = depth[np.ix_(v == i, u == j)]
            valid = cell[cell > 0]
            assert given[i, j] == pytest.approx(valid.mean() if valid.size else 0, rel=1e-5)


def assert_equal_forms(one: dict, two: dict) -> None:
    """Bits; of the cells' mean and M2, whose logarithms are rounded elsewhere, 1e-6."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        near = 2e-6 if name.endswith(("cell_mean", "cell_M2")) else 0.0
        torch.testing.assert_close(two[name], value, rtol=near, atol=near, msg=name)


@pytest.mark.parametrize("crop_batch", ["pad", "size"])
@pytest.mark.parametrize("mode", ["cell", "nearest", "bilinear"])
def test_sec32_pytorch_and_cpp_make_the_same_batches(pairs, places, make_loader, mode, crop_batch):
    """Image, depths, gradients and masks to the bit, in float64; a teacher's too."""
    how = {"gt_down": mode, "crop_batch": crop_batch, "teacher": [places, None] * 4}
    for turned in (2.5, 40.0):
        one, two = (
            copies(make_loader(pairs, kernels=k, max_angle=turned, **how).epoch(0))
            for k in ("cpp", "torch")
        )
        for a, b in zip(one, two, strict=True):
            assert_equal_forms(a, b)


@pytest.mark.parametrize("canvas, size", [((97, 131), (28, 36)), ((64, 90), (32, 32))])
@pytest.mark.parametrize("mode, depth_scale", [("cell", 1000), ("nearest", 256), ("bilinear", 7.3)])
def test_the_readable_form_is_the_slow_twins(canvas, size, mode, depth_scale):
    """Sizes that nothing divides, crops of one pixel, quarter turns, views that see nothing of the
    source, and depths of all 16 bits."""
    rng, (H, W) = np.random.default_rng(0), (97, 131)
    turns = [(0, False), (0, True), (2.5, False), (-2.1, True), (37, True), (180, False)]
    turns += [(-90, False)]
    crops = [(97, 131), (60, 80), (33, 45), (64, 90), (96, 131), (1, 1), (64, 5)]
    affine = []
    for angle, flip in turns:
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn = np.array([[c, s], [-s, c]]) @ np.diag([-1.0 if flip else 1.0, 1.0])
        middle = np.array([(W - 1) / 2, (H - 1) / 2])
        affine.append(np.concatenate([turn, (middle - turn @ (middle - 2))[:, None]], 1))
    affine[-1][0, 2] += 3 * W
    affine, B = np.array(affine), len(affine)
    crop = np.minimum(np.array(crops), canvas)
    rgb = rng.integers(0, 256, (B, H, W, 3)).astype(np.uint8)
    depth = rng.integers(1, 65536, (B, H, W)).astype(np.uint16)
    depth[rng.random(depth.shape) < 0.3] = 0
    lut = np.sort(rng.uniform(0, 255, (B, 3, 256)), -1).astype(np.float32)
    low = size[0] // 4, size[1] // 4
    slow = {"image": np.empty((B, 3, *size), np.float32)}
    slow["depth"] = np.empty((B, 1, *canvas), np.float32)
    slow |= {k: np.empty((B, 1, *low), bool if k[:2] == "M_" else np.float32) for k in CHANNELS}
    logs = data.log_table(depth_scale, 1e-3)
    twin.r2_batch(list(rgb), list(depth), affine, crop, lut, depth_scale, logs, mode, 1, slow)
    views = data.Views(*(torch.from_numpy(x) for x in (crop, affine, lut)))
    recipe = data.Recipe([], None, views, None, None, canvas, size, None)
    tensors = torch.from_numpy(rgb), torch.from_numpy(depth.astype(np.int32)), None
    made = data.r2_batch(*tensors, recipe, depth_scale, 1e-3, mode)
    assert_equal_forms({k: torch.from_numpy(v) for k, v in slow.items()}, made)
    assert made["image"].is_contiguous(memory_format=torch.channels_last)


def test_nothing_waits_for_the_device(pairs, make_loader):
    """The readable form on the meta device, which has no values to look at."""
    loader = make_loader(pairs, kernels="torch")
    recipe = loader.recipe(0, 0)
    views = data.Views(*(torch.from_numpy(x).to("meta") for x in recipe.views))
    rgb = torch.empty((4, *SIZE, 3), dtype=torch.uint8, device="meta")
    depth = torch.empty((4, *SIZE), dtype=torch.int32, device="meta")
    for mode in ("cell", "nearest", "bilinear"):
        recipe = recipe._replace(views=views)
        out = data.r2_batch(rgb, depth, depth, recipe, 1000.0, 1e-3, mode)
        assert {t.device.type for t in out.values()} == {"meta"}


def test_a_resident_set_gives_the_loaders_batches(pairs, rgbd, places, make_loader):
    """--data_device, on the CPU here: the packed set as tensors, and `r2_batch` of them."""
    how = {"cache": "auto", "root": rgbd, "teacher": [places, None] * 4, "crop_batch": "size"}
    plain, resident = make_loader(pairs, **how), make_loader(pairs, **how)
    resident.resident = upload(resident.reader.pack, torch.device("cpu"))
    for a, b in zip(copies(plain.epoch(1)), copies(resident.epoch(1)), strict=True):
        assert_equal_forms(a, b)
    with pytest.raises(UserError, match="not with --cache none"):
        upload(make_loader(pairs).reader.pack, torch.device("cpu"))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_sec32_a_batch_stays_until_the_next_is_asked_for(pairs, make_loader, batch_size):
    loader = make_loader(pairs, batch_size=batch_size, threads=4, ram_cache=1.0)
    copies(loader.epoch(0))  # everything is decoded: from here on threads run far ahead
    kept = []
    for batch in loader.epoch(0):
        kept.append({k: v.clone() for k, v in batch.items()})
        time.sleep(0.01)
        assert_same(batch, kept[-1])
    assert_same(joined(copies(kept)), joined(copies(make_loader(pairs, threads=1).epoch(0))))


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_sec32_leaving_an_epoch_early_is_safe(pairs, make_loader, taken, monkeypatch):
    """Samples still under way must not land in the buffers of the next epoch."""
    fast, late = litedepth_kernels.r2_batch, {"s": 0.0}

    def slow(*args):
        time.sleep(late["s"] * np.random.default_rng(int(args[2].sum() * 99) % 1000).random())
        fast(*args)

    monkeypatch.setattr(litedepth_kernels, "r2_batch", slow)
    loader = make_loader(pairs, batch_size=1, threads=3, ram_cache=1.0)
    expected = copies(loader.epoch(1))
    for _ in range(3):
        late["s"] = 0.06
        epoch = loader.epoch(0)
        for _ in range(taken):
            next(epoch)
        epoch.close()
        late["s"] = 0.0
        for one, two in zip(copies(loader.epoch(1)), expected, strict=True):
            assert_same(one, two)


def test_sec32_a_batch_shrinks_to_a_small_set(pairs, make_loader, capsys):
    loader = make_loader(pairs, batch_size=32)
    assert lines_of(capsys.readouterr().err) == [
        "note: batch size 8, not 32: there are no more pairs"
    ]
    assert loader.batch_size == 8 and len(loader) == 1
    (batch,) = loader.epoch(0)
    assert len(batch["image"]) == 8
    make_loader(pairs, batch_size=32, share=(1, 2))
    make_loader(pairs, batch_size=8)
    assert capsys.readouterr().err == ""


# Sec. 3.2: one crop size per batch ----------------------------------------------------------------

SIZES = ((48, 80), (72, 96), (96, 128))  # of 96x128; NET is 64x96
MANY = replace(CROP, crops=SIZES)


def test_sec32_network_size_is_the_crops_share_in_32s():
    full = (480, 640), (128, 160)
    by_hand = {
        (480, 640): (128, 160), (384, 512): (96, 128), (360, 512): (96, 128), (240, 384): (64, 96),
        (144, 256): (32, 64), (120, 128): (32, 32), (420, 480): (128, 128), (418, 479): (96, 128),
    }  # fmt: skip
    for crop, size in by_hand.items():
        assert data.network_size(crop, *full) == size, crop


def test_sec32_one_size_per_batch_leaves_nothing_to_pad(pairs, make_loader):
    loader = make_loader(pairs, crop=MANY, crop_batch="size", batch_size=2, mean=(-1.0,) * 3)
    seen = []
    for epoch in range(30):
        for batch in loader.epoch(epoch):
            canvas, size = tuple(batch["depth"].shape[2:]), tuple(batch["image"].shape[2:])
            assert canvas in SIZES and size == data.network_size(canvas, SIZE, NET)
            assert batch["extent"].tolist() == [list(size)] * 2
            assert (batch["image"] != 0).all()  # black is 1, the padding would be 0
            for name in CHANNELS:
                assert batch[name].shape == (2, 1, size[0] // 4, size[1] // 4)
                assert batch[name].is_contiguous()
            assert batch["triplets"].shape[1] == int(0.15 * size[0] * size[1] / 16)
            seen.append(canvas)
    assert chi_square(seen, SIZES) < 4.6  # p = 0.01
    assert len(set(zip(seen[::4], seen[1::4]))) > 3  # an epoch's batches differ


def test_sec32_one_size_per_batch_is_the_same_for_all(pairs, make_loader):
    """Threads, slots, resumed epochs and processes: the size hangs on the batch's number."""
    options = {"crop": MANY, "crop_batch": "size", "batch_size": 2}
    whole = copies(make_loader(pairs, **options).epoch(3))
    assert len({b["depth"].shape for b in whole}) > 1
    for one, two in zip(whole, copies(make_loader(pairs, **options, threads=5).epoch(3))):
        assert_same(one, two)
    for one, two in zip(whole[2:], copies(make_loader(pairs, **options).epoch(3, 2)), strict=True):
        assert_same(one, two)
    ranks = [copies(make_loader(pairs, **options, share=(r, 2)).epoch(3)) for r in (0, 1)]
    for one, *two in zip(whole, *ranks, strict=True):
        assert_same(one, joined(two))


def test_sec32_one_size_per_batch_crops_and_resizes_as_opencv_does(pairs, make_loader):
    still = replace(COLOURLESS, crops=((72, 96),), rotate_prob=0.0, flip_prob=0.0)
    loader = make_loader(pairs, crop=still, crop_batch="size")
    for batch in loader.epoch(0):
        drawn = data.draw(0, 0, batch["index"].tolist(), SIZE, still, (72, 96))
        for i, index in enumerate(batch["index"].tolist()):
            sample = read_pair(pairs[index], SIZE, K0, {})
            left, top = drawn.affine[i, :, 2].astype(int)
            inside = np.s_[top : top + 72, left : left + 96]
            np.testing.assert_array_equal(
                batch["depth"][i, 0].numpy(), sample.depth[inside] / np.float32(1000)
            )
            rgb = sample.rgb[inside].astype(np.float32)
            net = data.network_size((72, 96), SIZE, NET)
            rgb = cv2.resize(rgb, net[::-1], interpolation=cv2.INTER_LINEAR)
            image = batch["image"][i].permute(1, 2, 0).numpy()
            # taps one pixel beyond the crop are the picture's, where OpenCV repeats the edge
            assert np.abs(image - rgb)[2:-2, 2:-2].max() < 0.501
            K = np.array(K0) - [0, 0, left, top]
            np.testing.assert_allclose(batch["K"][i].numpy(), K, rtol=1e-6)


def test_sec32_without_crops_there_is_one_size(pairs, make_loader):
    one, two = (
        copies(make_loader(pairs, crops=(), crop_batch=how).epoch(0)) for how in ("pad", "size")
    )
    assert_same(joined(one), joined(two))


def test_eq9_triplets_of_a_batch_are_those_of_its_step(pairs, make_loader):
    loader = make_loader(pairs, batch_size=2, seed=7)
    made = [b["triplets"].clone() for epoch in (0, 1) for b in loader.epoch(epoch)]
    made.append(next(iter(loader.epoch(2, 3)))["triplets"])
    pixels = NET[0] * NET[1] // 16
    for step, triplets in zip((*range(8), 11), made, strict=True):
        assert torch.equal(triplets, losses.draw_triplets(7, step, pixels, int(0.15 * pixels)))


@pytest.mark.parametrize("cache", ["none", "auto"])
@pytest.mark.parametrize("how", ["pad", "size"])
def test_a_batch_costs_no_page_faults_once_warm(tmp_path, make_rgbd, make_loader, cache, how):
    """Fresh memory for a batch would be thousands of faults: 39 MB are 9,600 pages."""
    resource = pytest.importorskip("resource")
    root = make_rgbd(tmp_path, train=4, val=1, size=(480, 640))
    loader = make_loader(
        list_pairs(root, "train") * 4, image_size=(480, 640), size=(128, 160), batch_size=4,
        crop=replace(CROP, crops=((240, 384), (384, 512), (480, 640))), crop_batch=how,
        cache=cache, root=root, ram_cache=1.0,
    )  # fmt: skip
    for epoch in range(4):
        for _ in loader.epoch(epoch):
            pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for epoch in range(4, 9):
        for _ in loader.epoch(epoch):
            pass
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults / 20 < 20, faults


def test_the_loaders_thread_leaves_pytorchs_threads_alone(pairs, make_loader):
    """Operations there would get threads of their own beside the network's: see BatchMemory."""
    loader = make_loader(pairs, batch_size=2, ram_cache=1.0)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    make = loader._by_kernels

    def watched(*args):
        with Watch():
            return make(*args)

    loader._by_kernels = watched
    for epoch in range(2):
        for _ in loader.epoch(epoch):
            pass
    views = {"view", "slice", "detach", "alias", "lift_fresh"}
    assert seen and {name.split(".")[1] for name in seen} <= views


# depths of another model, in the holes -----------------------------------------------------------

KEYS = ("depth", *CHANNELS)
PLACES = (1 + np.arange(SIZE[0] * SIZE[1]).reshape(SIZE)).astype(np.uint16)  # tells each pixel
TURNED = replace(CROP, max_angle=10.0)


def with_truth(root: Path, pairs: list[Pair], make) -> list[Pair]:
    """The pairs with other depth pictures: make(truth)."""
    return [
        p._replace(depth=write(
            root / f"{p.rgb.stem}.png", make(cv2.imread(str(p.depth), cv2.IMREAD_UNCHANGED))
        ))
        for p in pairs
    ]  # fmt: skip


def of_teacher(batch: dict) -> dict:
    return {k: batch[f"teacher_{k}"] for k in KEYS}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("teacher") / "places.png", PLACES)


@pytest.mark.parametrize("kernels", ["cpp", "torch"])
def test_teacher_stands_exactly_in_the_holes_of_the_truth(
    tmp_path, pairs, places, make_loader, kernels
):
    """Against a loader whose truth is the teacher's map: all of it, then with the truth cut out."""
    options = {"crop": TURNED, "kernels": kernels, "threads": 3}
    taught = make_loader(pairs, teacher=[places] * 8, **options)
    whole = make_loader(with_truth(tmp_path / "w", pairs, lambda d: PLACES), **options)
    holed = make_loader(
        with_truth(tmp_path / "h", pairs, lambda d: np.where(d, 0, PLACES).astype("u2")),
        **options,
    )
    crops, turned = set(), 0
    for epoch in range(3):
        batches = [joined(copies(loader.epoch(epoch))) for loader in (taught, whole, holed)]
        one, two, three = batches
        assert not ((one["teacher_depth"] > 0) & (one["depth"] > 0)).any()
        assert torch.equal(one["teacher_depth"], two["depth"].where(one["depth"] == 0, 0))
        assert (one["teacher_depth"] > 0).float().mean() > 0.05
        assert_same(of_teacher(one), {k: three[k] for k in KEYS})
        for k in ("image", "extent", "K", "index"):
            assert torch.equal(one[k], three[k])
        crops |= {tuple(e) for e in one["extent"].tolist()}
        turned += sum(
            a[1, 0] != 0 for a in data.draw(0, epoch, one["index"].tolist(), SIZE, TURNED).affine
        )
    assert len(crops) == 3 and turned > 5


@pytest.mark.parametrize("mode", ["cell", "nearest", "bilinear"])
def test_teacher_leaves_the_plain_keys_bit_identical(pairs, places, make_loader, mode):
    plain = joined(copies(make_loader(pairs, gt_down=mode).epoch(0)))
    teacher = [places, None] * 4
    taught = joined(copies(make_loader(pairs, gt_down=mode, teacher=teacher).epoch(0)))
    assert taught.keys() - plain.keys() == {f"teacher_{k}" for k in KEYS}
    assert_same({k: taught[k] for k in plain}, plain)
    for k in KEYS:
        made = taught[f"teacher_{k}"]
        assert made.shape == plain[k].shape and made.dtype == plain[k].dtype


def test_teacher_batches_do_not_depend_on_threads_cache_or_slots(pairs, places, make_loader):
    """One map in two is missing: its slot holds nothing of the batches before."""
    teacher = [places if k % 3 else None for k in range(8)]
    expected = [
        joined(copies(make_loader(pairs, teacher=teacher, threads=1, batch_size=8).epoch(e)))
        for e in range(4)
    ]
    for threads, ram_cache, batch_size in ((3, 0.0, 1), (3, 1.0, 2), (1, 1.0, 4)):
        loader = make_loader(
            pairs, teacher=teacher, threads=threads, ram_cache=ram_cache, batch_size=batch_size
        )
        for epoch, one in enumerate(expected):
            assert_same(joined(copies(loader.epoch(epoch))), one)
    for batch in expected:
        has = torch.tensor([teacher[i] is not None for i in batch["index"]])
        assert (batch["teacher_depth"] > 0).flatten(1).any(1).equal(has)
        assert not any(batch[f"teacher_{k}"][~has].any() for k in KEYS)
