"""Sec. 3.1 and 4.2: the network, Eq. 1-6, checkpoints and public weights (model.py,
plumbing/checkpoints.py, weights.py)."""

from __future__ import annotations

import argparse
import collections
import functools
import gzip
import hashlib
import http.server
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import model as M
from model import LiteDepth
from plumbing import flags, weights
from plumbing.checkpoints import CHECKPOINT_FORMAT, CheckpointError, read_checkpoint
from plumbing.files import UserError

FIXTURES = Path(__file__).parent / "fixtures"
# The encoder's blocks: stage, index, stride, cin, mid, cout.
BLOCKS = (
    (1, 0, 2, 16, 72, 24), (1, 1, 1, 24, 88, 24),
    (2, 0, 2, 24, 96, 40), (2, 1, 1, 40, 240, 40), (2, 2, 1, 40, 240, 40),
    (3, 0, 1, 40, 120, 48), (3, 1, 1, 48, 144, 48),
    (4, 0, 2, 48, 288, 96), (4, 1, 1, 96, 576, 96), (4, 2, 1, 96, 576, 96),
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These networks are too small for two, and a busy machine makes two much slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No test reaches the network or the user's cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    published = (tmp_path / "nowhere" / "weights.pth").as_uri(), 10.0
    monkeypatch.setattr(LiteDepth, "published", published)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def shake(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random BatchNorm statistics and scales, as after training; eval mode."""
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0.0, 0.3, generator=g)
            m.running_var.uniform_(0.5, 2.0, generator=g)
            nn.init.uniform_(m.weight, 0.7, 1.5, generator=g)
            nn.init.normal_(m.bias, 0.0, 0.2, generator=g)
            m.num_batches_tracked.fill_(seed)
    return net.eval()


def network(seed: int = 0, **model_args) -> LiteDepth:
    torch.manual_seed(seed)
    return shake(LiteDepth(**model_args), seed)


def pictures(n: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    """Smooth random RGB in 0..255, raised to full contrast so that borders differ from the mean."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, h // 8 + 2, w // 8 + 2, generator=g) * 255
    return F.interpolate(x, size=(h, w), mode="bicubic").clamp(0, 255)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> bool:
    """Largest difference, relative to the range of `want`."""
    return float((got - want).abs().max()) <= tolerance * float(want.max() - want.min())


def macs(net: LiteDepth) -> dict[str, int]:
    """Multiply-accumulates of the convolutions that run, counted on their real outputs."""
    total = {"encoder": 0, "decoder": 0}

    def hook(part):
        def add(conv, _, y):
            total[part] += y[0].numel() * conv.weight[0].numel()

        return add

    hooks = [
        m.register_forward_hook(hook(name.split(".")[0]))
        for name, m in net.named_modules()
        if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        net.network(torch.zeros(1, 3, *net.size))
    for h in hooks:
        h.remove()
    return total


# --------------------------------------------------------------------------------- Sec. 3.1, size


def test_sec31_numbers():
    net = LiteDepth().eval()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (count(net), count(net.encoder), count(net.decoder)) == (387_953, 372_440, 15_513)
    assert sum(isinstance(m, nn.Conv2d) for m in net.decoder.modules()) == 5  # "only five"
    assert len(norms) == 33 and all(m.eps == 1e-3 and m.momentum == 0.1 for m in norms)
    assert macs(net) == {"encoder": 19_577_600, "decoder": 7_157_760}
    assert sum(macs(net).values()) == 26_735_360
    # Folding a norm turns its scale and shift into the convolution's bias: the paper's "1.4MB".
    folded = count(net) - sum(m.num_features for m in norms)
    assert folded == 382_473 and round(4 * folded / 2**20, 1) == 1.5  # 1.459 MiB


@pytest.mark.parametrize(
    "kind, params, kernels, decoder_macs",
    [
        ("mix", 15_513, [1, 1, 1, 3, 1], 7_157_760),
        ("3x3", 96_921, [3, 3, 3, 3, 1], 11_089_920),
        ("1x1", 10_905, [1, 1, 1, 1, 1], 1_259_520),
    ],
)
def test_table3_decoders(kind, params, kernels, decoder_macs):
    net = LiteDepth(decoder=kind).eval()
    convs = [m for m in net.decoder.modules() if isinstance(m, nn.Conv2d)]
    assert count(net.decoder) == params
    assert [c.kernel_size[0] for c in convs] == kernels
    assert macs(net)["decoder"] == decoder_macs


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"size": (100, 160)}, "multiples of 32.*100x160"),
        ({"size": (0, 160)}, "multiples of 32"),
        ({"size": (-32, 160)}, "multiples of 32"),
    ],
)
def test_sec31_bad_arguments(bad, message):
    with pytest.raises(ValueError, match=message):
        LiteDepth(**bad)


def test_sec31_initialisation():
    torch.manual_seed(0)
    net = LiteDepth()
    for name, m in net.decoder.named_children():
        k = m.kernel_size[0] ** 2
        bound = math.sqrt(6.0 / (k * (m.in_channels + m.out_channels)))  # Xavier, uniform
        assert 0.8 * bound < float(m.weight.detach().abs().max()) <= bound, name
        # Zero, but 1 m where depth comes out: the last ReLU starts alive.
        assert torch.equal(m.bias, torch.full_like(m.bias, 1.0 if name == "depth" else 0.0)), name
    for name, m in net.encoder.named_modules():
        if isinstance(m, nn.Conv2d):
            assert m.bias is None, name
            std = math.sqrt(2.0 / (m.weight[0, 0].numel() * m.out_channels / m.groups))
            assert m.weight.std().item() == pytest.approx(std, rel=0.25), name
            assert abs(m.weight.mean().item()) < 4 * std / math.sqrt(m.weight.numel()), name


def test_sec31_every_parameter_learns():
    net = network().train()
    net(pictures(2, 128, 160)).log().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name


# ------------------------------------------------------------------------------ Sec. 3.1, padding


SAME_STRIDE_2 = {5: (1, 1), 6: (0, 1), 7: (1, 1), 8: (0, 1)}  # pixels before and after


@pytest.mark.parametrize("stride, fill", [(1, None), (2, None), (2, (3.0, -2.0))])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("h, w", [(6, 8), (5, 7), (6, 7), (5, 8)])
def test_conv_same_by_hand(h, w, fill, groups, stride):
    torch.manual_seed(h * w)
    conv = M.ConvSame(2, 4, stride, groups=groups)
    conv.fill = None if fill is None else torch.tensor(fill)
    x = torch.randn(2, 2, h, w)
    top, left = (SAME_STRIDE_2[n][0] if stride == 2 else 1 for n in (h, w))
    W = conv.weight.detach().numpy().astype(float)
    want = np.zeros((2, 4, math.ceil(h / stride), math.ceil(w / stride)))
    for n, o, v, u in np.ndindex(*want.shape):
        for i, j, k in np.ndindex(*W.shape[1:]):
            c = i + o // (4 // groups) * (2 // groups)
            y, z = v * stride - top + j, u * stride - left + k
            inside = 0 <= y < h and 0 <= z < w
            pixel = float(x[n, c, y, z]) if inside else fill[c] if fill else 0.0
            want[n, o, v, u] += W[o, i, j, k] * pixel
    got = conv(x).detach().numpy()
    assert got.shape == want.shape and np.abs(got - want).max() < 1e-5


# ------------------------------------------------------------------------------ Sec. 3.1, encoder


def encoder_twin(w: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """The encoder once more, written from its table alone; `w` is a timm state dict."""

    def conv(x, key, stride=1):
        weight = w[f"{key}.weight"]
        if weight.shape[-1] == 3:
            pad = [(int(stride == 1 or n % 2 == 1), 1) for n in x.shape[-2:]]
            x = F.pad(x, (*pad[1], *pad[0]))
        return F.conv2d(x, weight, None, stride, groups=x.shape[1] // weight.shape[1])

    def norm(x, key):
        m, v, g, b = (w[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        m, v, g, b = (t.view(1, -1, 1, 1) for t in (m, v, g, b))
        return (x - m) / (v + 1e-3).sqrt() * g + b

    x = norm(conv(x, "conv_stem", 2), "bn1").relu()
    x = norm(conv(x, "blocks.0.0.conv_dw", 2), "blocks.0.0.bn1").relu()
    ends = {0: norm(conv(x, "blocks.0.0.conv_pw"), "blocks.0.0.bn2")}
    x = ends[0]
    for stage, index, stride, cin, mid, cout in BLOCKS:
        key = f"blocks.{stage}.{index}"
        assert w[f"{key}.conv_pw.weight"].shape[:2] == (mid, cin)
        y = norm(conv(x, f"{key}.conv_pw"), f"{key}.bn1").relu()
        y = norm(conv(y, f"{key}.conv_dw", stride), f"{key}.bn2").relu()
        y = norm(conv(y, f"{key}.conv_pwl"), f"{key}.bn3")
        x = ends[stage] = x + y if (stride, cin) == (1, cout) else y
    return [ends[s] for s in (0, 1, 3, 4)]  # linear block ends: no activation on a tap


@pytest.mark.parametrize("h, w", [(128, 160), (97, 131)])
@torch.no_grad()
def test_sec31_encoder_by_hand(h, w):
    net = network()
    x = torch.randn(2, 3, h, w)
    for got, want in zip(net.encoder(x), encoder_twin(net.encoder.state_dict(), x)):
        assert close(got, want, 1e-5)


@pytest.fixture(scope="module")
def timm():
    """The optional oracle. torchvision for CUDA lacks two operators beside a CPU torch."""
    try:
        pytest.importorskip("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        stubs = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            stubs.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("timm")


@torch.no_grad()
def test_sec31_encoder_equals_timm(timm, tmp_path):
    """The same random weights, through a file in timm's layout, give timm's taps."""
    torch.manual_seed(0)
    name = "tf_mobilenetv3_small_minimal_100"
    theirs = shake(timm.create_model(name, pretrained=False), 1)
    assert {"classifier.weight", "conv_head.bias"} <= theirs.state_dict().keys()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = LiteDepth().eval()
    text = M.load_pretrained(ours, str(tmp_path / "timm.pth"))
    assert text == "encoder from timm.pth"
    taps: list[torch.Tensor] = []
    for stage in (0, 1, 3, 4):
        theirs.blocks[stage].register_forward_hook(lambda m, x, y: taps.append(y))
    features = timm.create_model(name, pretrained=False, features_only=True).eval()
    features.load_state_dict(theirs.state_dict(), strict=False)
    for h, w in ((128, 160), (480, 640), (97, 131), (65, 34)):
        x = torch.randn(2, 3, h, w)
        taps.clear()
        theirs(x)
        got = ours.encoder(x)
        worst = max(float((a - b).abs().max()) for a, b in zip(got, taps))
        print(f"{h}x{w}: max abs error against timm {worst:.2e}")
        assert len(taps) == 4 and worst <= 1e-5
        for a, b in zip(got[:3], features(x)[1:4]):  # its fifth is the layer of Sec. 3.1, removed
            assert float((a - b).abs().max()) <= 1e-5


# ------------------------------------------------------------------------------ Sec. 3.1, decoder


@pytest.mark.parametrize("kind", ["mix", "3x3", "1x1"])
@torch.no_grad()
def test_sec31_decoder_by_hand(kind):
    net = network(decoder=kind)
    for p in net.decoder.parameters():
        p += 0.1 * torch.randn_like(p)
    taps = net.encoder(torch.randn(2, 3, 128, 160))
    net.decoder.depth.bias += 99
    # half of the map is below 0, and cut off
    net.decoder.depth.bias -= net.decoder(taps)[0].median()
    x = None
    for name, skip in zip(("fuse4", "fuse3", "fuse2", "fuse1"), reversed(taps)):
        conv = getattr(net.decoder, name)
        if x is not None:  # [deep, shallow], at the shallow one's resolution
            size = skip.shape[2:]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
            skip = torch.cat((x, skip), 1)
        x = F.conv2d(skip, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2).relu()
    d_hat = F.conv2d(x, net.decoder.depth.weight, net.decoder.depth.bias).relu()
    assert d_hat.std() > 0.01 and 0.1 < (d_hat == 0).float().mean() < 0.9
    assert close(net.decoder(taps)[0], d_hat, 1e-5)


# ------------------------------------------------------------------------------- Sec. 3.1, resize


@pytest.mark.parametrize("h, w", [(480, 640), (479, 333), (100, 90)])
def test_input_resize_is_half_pixel(h, w):
    x = pictures(1, h, w)
    want = cv2.resize(x[0].permute(1, 2, 0).numpy(), (160, 128), interpolation=cv2.INTER_LINEAR)
    got = M.upsample(x, (128, 160), "bilinear")[0].permute(1, 2, 0).numpy()
    assert np.abs(got - want).max() < 1e-3


@pytest.mark.parametrize(
    "h, H",
    [(32, 480), (40, 640), (32, 479), (25, 1299), (32, 82), (40, 188), (32, 16), (7, 5), (1, 9),
     (32, 32 * 41), (40, 40 * 47)],  # ratios at which a float scale slips
)  # fmt: skip
def test_nearest_is_integer_floor(h, H):
    x = torch.arange(2.0 * h).view(2, 1, h, 1)
    rows = torch.tensor([v * h // H for v in range(H)])
    want = x.expand(-1, -1, -1, 3)[:, :, rows]
    assert torch.equal(M.upsample(x.expand(-1, -1, -1, 3), (H, 3), "nearest"), want)
    across = x.transpose(2, 3).expand(-1, -1, 3, -1)
    assert torch.equal(M.upsample(across, (3, H), "nearest"), want.transpose(2, 3))


@torch.no_grad()
def test_forward_is_blocks_of_15_by_16():
    net, x = network(), pictures(2, 480, 640)
    y = net(x)
    assert y.shape == (2, 1, 480, 640)
    blocks = y.view(2, 32, 15, 40, 16)
    assert torch.equal(blocks, blocks[:, :, :1, :, :1].expand_as(blocks))
    small = F.interpolate(x, size=(128, 160), mode="bilinear", align_corners=False)
    d_hat, _ = net.decoder(net.encoder((small - 127.5) / 127.5))
    assert d_hat.std() > 0.01 and close(blocks[:, :, 0, :, 0], d_hat[:, 0], 1e-5)
    assert torch.equal(net(x[1:]), y[1:]) or close(net(x[1:]), y[1:], 1e-5)


@torch.no_grad()
def test_forward_bilinear():
    x = pictures(1, 96, 130)
    net = network(upsample="bilinear")
    d_hat = net.network(M.upsample(x, (128, 160), "bilinear"))
    want = F.interpolate(d_hat, size=(96, 130), mode="bilinear", align_corners=False)
    assert torch.equal(net(x), want)


# ----------------------------------------------------------------------------- Sec. 3.1, Eq. 1-6


def colours(seed: int) -> dict[str, tuple[float, ...]]:
    g = torch.Generator().manual_seed(seed)
    m, s = 60 + 140 * torch.rand(3, generator=g), 20 + 80 * torch.rand(3, generator=g)
    return {"mean": tuple(m.tolist()), "std": tuple(s.tolist())}


def stem(net: LiteDepth, x: torch.Tensor) -> torch.Tensor:
    return net.encoder.conv_stem(x if net.merged else net.normalize(x))


def test_eq1_normalisation():
    net = LiteDepth(mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 4.0))
    I_n = net.normalize(torch.tensor([[12.0, 12.0], [0.0, 40.0], [31.0, 30.0]]).view(1, 3, 1, 2))
    assert torch.equal(I_n.view(3, 2), torch.tensor([[2.0, 2.0], [-10.0, 10.0], [0.25, 0.0]]))


def test_eq3_eq4_by_hand():
    net = network(**colours(3))
    m, s = net.model_args["mean"], net.model_args["std"]
    W = net.encoder.conv_stem.weight.tolist()
    merged = M.merge_normalization(net).encoder.conv_stem
    for i in range(16):
        b_i = 0.0
        for d, j, k in np.ndindex(3, 3, 3):
            b_i -= m[d] / s[d] * W[i][d][j][k]
            want = W[i][d][j][k] / s[d]
            assert merged.weight[i, d, j, k].item() == pytest.approx(want, rel=1e-6)
        assert merged.bias[i].item() == pytest.approx(b_i, rel=1e-6, abs=1e-6)
    assert merged.fill.tolist() == m


@pytest.mark.parametrize("seed", [None, 1])
@torch.no_grad()
def test_eq6_merged_network_is_the_same(seed):
    net = network(seed or 0, **({} if seed is None else colours(seed)))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    merged = M.merge_normalization(net)
    x = pictures(2, 128, 160, seed or 0)
    for got, want in zip(merged.encoder(x), net.encoder(net.normalize(x))):
        assert close(got, want, 1e-4)  # taps, borders included
    d_hat = net.network(x)
    assert d_hat.std() > 0.01 and close(merged.network(x), d_hat, 1e-4)
    picture = pictures(1, 240, 200)
    assert close(merged(picture), net(picture), 1e-4)
    # A copy: the network that trains is left alone.
    assert not net.merged and net.encoder.conv_stem.fill is None
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert count(merged) == count(net) + 16


@torch.no_grad()
def test_eq6_needs_the_mean_at_the_border():
    """PAPER: with zeros around the picture, Eq. 6 is wrong in the last row and column only."""
    net = network(**colours(5))
    merged = M.merge_normalization(net)
    x = pictures(1, 128, 160)
    want = stem(net, x)
    scale = want.max() - want.min()
    assert ((stem(merged, x) - want).abs().max() / scale) < 1e-5
    merged.encoder.conv_stem.fill = None  # zero padding, as Eq. 6 is printed
    error = (stem(merged, x) - want).abs() / scale
    assert error[..., :-1, :-1].max() < 1e-5
    assert error[..., -1, :].max() > 0.1 and error[..., :, -1].max() > 0.1


@torch.no_grad()
def test_eq6_merged_network_can_be_saved(tmp_path):
    net = network(decoder="1x1", size=(64, 96), **colours(4))
    merged = M.merge_normalization(net)
    M.save(tmp_path / "merged.pt", merged)
    again = M.load(tmp_path / "merged.pt")
    x = pictures(1, 90, 100)
    assert again.merged and again.model_args == merged.model_args
    assert again.model_args == {**net.model_args, "merged": True}
    assert torch.equal(again.encoder.conv_stem.fill, net.mean)
    assert torch.equal(again(x), merged(x)) and close(again(x), net(x), 1e-4)


def test_eq6_merges_a_student_once():
    merged = M.merge_normalization(LiteDepth().train())
    assert all(m.training for m in merged.modules())
    for net in (merged, M.create("swin_nano", size=(32, 32))):
        with pytest.raises(ValueError, match="only a student.*only once"):
            M.merge_normalization(net)


@pytest.mark.parametrize("scale, shift", [(1.3, 0.2), (0.6, -0.1), (1000.0, 0.0)])
@torch.no_grad()
def test_calibrated_copy(scale, shift):
    """d' = max(0, scale d_hat + shift) wherever the network says anything; merged or not."""
    net = network(1, **colours(2))
    net.decoder.depth.weight.mul_(3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = pictures(2, 120, 200)
    raw = net(x)
    said = raw > 0
    want = (scale * raw.double() + shift).clamp(min=0)
    assert 0.05 < said.double().mean() <= 1 and raw.max() > 1
    calibrated = M.calibrate(net, scale, shift)
    assert (calibrated(x) - want)[said].abs().max() <= 1e-6 * scale * raw.max()
    merged = M.merge_normalization(calibrated)(x)
    assert torch.equal(M.calibrate(M.merge_normalization(net), scale, shift)(x), merged)
    assert close(merged, calibrated(x), 1e-4)
    assert same_tensors(net.state_dict(), before) and calibrated.model_args == net.model_args


@pytest.mark.parametrize("scale, shift", [(0, 0), (-1, 0), (math.nan, 0), (1, math.inf)])
def test_calibration_that_cannot_be(scale, shift):
    with pytest.raises(ValueError, match="scale > 0"):
        M.calibrate(LiteDepth(), scale, shift)


# ------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """One ordinary checkpoint; tests that damage it take a copy."""
    path = tmp_path_factory.mktemp("saved") / "last.pt"
    M.save(path, network(), epoch=3)
    return path


def flip(source: Path, target: Path, offset: int, bit: int = 0x01) -> Path:
    content = bytearray(source.read_bytes())
    content[offset] ^= bit
    target.write_bytes(content)
    return target


def same_tensors(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@torch.no_grad()
def test_checkpoint_round_trip(tmp_path):
    net = network(
        7, size=(64, 96), decoder="3x3", upsample="bilinear", mean=(1.0, 2.0, 3.0),
        std=(4.0, 5.0, 6.0),
    ).train()  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters())
    with torch.enable_grad():
        net(pictures(2, 64, 96)).mean().backward()
    optimizer.step()
    M.save(tmp_path / "last.pt", net, epoch=3, optimizer=optimizer.state_dict())
    again = M.load(tmp_path / "last.pt")
    assert same_tensors(again.state_dict(), net.state_dict())
    assert again.model_args == net.model_args
    assert not any(m.training for m in again.modules())
    assert torch.equal(again(pictures(1, 70, 80)), net.eval()(pictures(1, 70, 80)))
    content = read_checkpoint(tmp_path / "last.pt")
    assert content["epoch"] == 3
    want = optimizer.state_dict()
    assert content["optimizer"]["param_groups"] == want["param_groups"]
    assert all(same_tensors(content["optimizer"]["state"][k], v) for k, v in want["state"].items())
    assert os.listdir(tmp_path) == ["last.pt"]


def test_checkpoint_of_d2e3144(tmp_path):
    """Files of before the house was rebuilt: the depths that they gave then."""
    path = tmp_path / "last.pt"
    path.write_bytes(gzip.decompress((FIXTURES / "last.pt.gz").read_bytes()))
    run, size, about = M.runner(path, 1, "cpu")
    v, u = np.mgrid[:480, :640]
    rgb = np.stack([(v + u) % 256, 2 * v % 256, 3 * u % 256], 2).astype(np.float32)
    want = [9.15543, 18.55123, 22.8933, 19.41358, 12.01239, 27.83259, 32.01267, 26.40643]
    assert run(rgb)[::240, ::160].flatten().tolist() == pytest.approx(want, abs=2e-4)
    assert (size, about) == ((480, 640), "PyTorch, cpu, threads 1")
    assert read_checkpoint(path, training=True)["epoch"] >= 1


@torch.no_grad()
def test_runner(tmp_path, saved):
    run, size, about = M.runner(saved, None, "auto")
    assert size == (480, 640) and about.startswith("PyTorch, c")  # a file that does not say
    x = pictures(1, 90, 70)
    depth = run(x[0].permute(1, 2, 0).numpy())
    assert depth.dtype == np.float32 and depth.shape == (90, 70)
    assert close(torch.from_numpy(depth), network()(x)[0, 0], 1e-3 if "cuda" in about else 1e-6)
    M.save(tmp_path / "small.pt", network(), image_size=[96, 128])
    assert M.runner(tmp_path / "small.pt", 1, "cpu")[1] == (96, 128)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cpu"):
            M.runner(saved, None, "cuda")


@pytest.mark.parametrize("name", ["format", "model_args", "model"])
def test_checkpoint_state_cannot_replace_the_network(tmp_path, name):
    with pytest.raises(TypeError, match=name):
        M.save(tmp_path / "last.pt", LiteDepth(), epoch=3, **{name: {}})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("older", [False, True])
def test_checkpoint_full_disk(tmp_path, saved, older):
    """A limit on the size of files, which the system tells as it does a full disk."""
    path = tmp_path / "last.pt"
    if older:
        shutil.copy(saved, path)
    left = "older and whole" if older else "none yet"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for room in (10_000, 1_000_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
        try:
            told = rf"last\.pt: cannot be written \(File too large\); .*{left}.*Make room"
            with pytest.raises(OSError, match=told):
                M.save(path, network(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["last.pt"] * older  # no half file
    if older:
        assert path.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize(
    "state, told", [({"best": np.float64(0.3)}, "best is a float64"),
                    ({"flags": {"out": Path("x")}}, "out is a PosixPath"),
                    ({"sums": {np.int64(1): 2.0}}, "a name in sums is a int64")],
)  # fmt: skip
def test_checkpoint_that_could_not_be_read_is_not_written(tmp_path, saved, state, told):
    path = Path(shutil.copy(saved, tmp_path / "last.pt"))
    with pytest.raises(ValueError, match=f"plain values, but {told}"):
        M.save(path, network(1), **state)
    assert path.read_bytes() == saved.read_bytes()
    torch.save(state, path)
    with pytest.raises(CheckpointError):  # so it is
        read_checkpoint(path)


def test_checkpoint_flipped_byte_anywhere(tmp_path, saved):
    """Headers, tensors, directory, padding: an error of ours, or nothing lost. Never another
    network."""
    want, size = M.load(saved).state_dict(), saved.stat().st_size
    noticed = 0
    for offset in [*range(0, 200, 12), *range(size - 200, size, 9), *range(999, size, 90_021)]:
        bad = flip(saved, tmp_path / "bad.pt", offset)
        try:
            assert same_tensors(M.load(bad).state_dict(), want), offset
        except CheckpointError as error:
            assert re.search(r"bad\.pt: .*damaged.*copy it anew", str(error))
            noticed += 1
    assert noticed > 20
    bad = flip(saved, tmp_path / "bad.pt", size // 2)
    with pytest.raises(CheckpointError, match="wrong checksum"):
        M.load(bad)
    content = torch.load(bad, weights_only=True)  # why we look: if this fails, our look can go
    assert not same_tensors(content["model"], want)


def test_checkpoint_flipped_folder_bit(tmp_path, saved):
    """No checksum covers the archive's directory; torch does not fill a tensor that is a folder."""
    entry = saved.read_bytes().rfind(b"/data/")  # the last name of the directory
    entry = saved.read_bytes().rfind(b"PK\x01\x02", 0, entry)
    bad = flip(saved, tmp_path / "bad.pt", entry + 38, 0x10)  # external attributes
    with pytest.raises(CheckpointError, match="damaged"):
        M.load(bad)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_checkpoint_cut_file(tmp_path, saved, part):
    content = saved.read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(part * len(content))])
    told = r"cut\.pt: not a readable.*cut short.*copy it anew"
    with pytest.raises(CheckpointError, match=told) as caught:
        M.load(tmp_path / "cut.pt")
    assert "\n" not in str(caught.value)


def test_checkpoint_missing_file(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointError, match="no such checkpoint file"):
            M.load(path)
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        M.load_pretrained(LiteDepth(), str(tmp_path / "none.pt"))


class Payload:
    def __init__(self, command: object, call: Callable = os.system) -> None:
        self.made = call, (command,)

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("kind", ["archive", "old", "pickle"])
def test_checkpoint_code_is_refused(tmp_path, kind):
    """Never run, and torch's advice on how to run it after all is not passed on."""
    mark, path = tmp_path / "executed", tmp_path / "evil.pt"
    content = {"format": CHECKPOINT_FORMAT, "model": {}, "x": Payload(f"mkdir {mark}")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")
    for read in (read_checkpoint, M.load, lambda p: M.load_pretrained(LiteDepth(), str(p))):
        with pytest.raises(CheckpointError, match=r"evil\.pt: .*never run") as caught:
            read(path)
        assert "safe_globals" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not mark.exists()
    if kind != "pickle":
        torch.load(path, weights_only=False)
        assert mark.exists()  # the payload was live


@pytest.mark.parametrize(
    "foreign", [{"state_dict": {}}, {"format": "other-9", "model": {}}, [1, 2], torch.zeros(3)]
)
def test_checkpoint_foreign(tmp_path, foreign):
    torch.save(foreign, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=r"foreign\.pt: not a LiteDepth.*--pretrained"):
        M.load(tmp_path / "foreign.pt")


def test_checkpoint_names_the_keys(tmp_path, saved):
    content = read_checkpoint(saved)
    del content["model"]["encoder.bn1.bias"]
    content["model"]["decoder.depth.bias"] = torch.zeros(2)
    content["model"]["decoder.extra"] = torch.zeros(1)
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt: does not fit") as caught:
        M.load(tmp_path / "odd.pt")
    for piece in ("Missing.*encoder.bn1.bias", "Unexpected.*decoder.extra",
                  r"decoder.depth.bias.*\[2\].*\[1\]"):  # fmt: skip
        assert caught.match(piece)
    content["model"] = {}
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"Missing.*conv_stem") as caught:
        M.load(tmp_path / "odd.pt")
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


ABSENT = object()


@pytest.mark.parametrize(
    "name, value",
    [("model", ABSENT), ("model_args", ABSENT), ("epoch", "3"), ("batch", 1.5),
     ("step", torch.tensor(1)), ("flags", [1]), ("sums", None), ("optimizer", []),
     ("image_size", "64x96"), ("image_size", [64]), ("image_size", [64.5, 96]),
     ("image_size", [0, 96]), ("image_size", [64, 10**9]), ("model", None), ("model", {"a": 1.0}),
     ("model", {1: torch.zeros(1)}), ("model_args", None), ("model_args", {"decoder": "5x5"}),
     ("model_args", {"size": [100, 100]}), ("model_args", {"size": 64}),
     ("model_args", {"mean": ["a", 1, 1]}),
     ("model_args", {"model": "swin_xxl"}), ("model_args", {"model": {}}),
     ("model_args", {"model": "swin_nano", "window": 10**9}),
     ("model_args", {"model": "swin_nano", "window": "7"}), ("model_args", {"colour": 1})],
)  # fmt: skip
def test_checkpoint_of_wrong_types_and_numbers(tmp_path, saved, name, value):
    content = read_checkpoint(saved) | {name: value}
    torch.save({k: v for k, v in content.items() if v is not ABSENT}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt: ") as caught:
        M.load(tmp_path / "odd.pt")
    assert len(str(caught.value)) < 700


def test_checkpoint_without_training_state(saved):
    with pytest.raises(
        CheckpointError, match=r"last\.pt.*no training.*flags, objective.*--pretrained .*last\.pt"
    ):
        read_checkpoint(saved, training=True)


# ------------------------------------------------------------------- Sec. 4.2, pretrained encoder


def timm_layout(seed: int) -> dict[str, torch.Tensor]:
    weights = {k: v.clone() for k, v in network(seed).encoder.state_dict().items()}
    removed = ("blocks.5.0.conv.weight", "blocks.5.0.bn1.bias", "conv_head.bias", "classifier.bias")
    return weights | {k: torch.zeros(9) for k in removed}


@pytest.fixture
def public(tmp_path, monkeypatch) -> Path:
    """A file with its own SHA-256 in its name, behind the published address; not yet cached."""
    torch.save(timm_layout(5), tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    path = (tmp_path / "weights.pth").rename(tmp_path / f"small-{digest[:8]}.pth")
    monkeypatch.setattr(LiteDepth, "published", (path.as_uri(), 10.0))
    return path


def holds(net: LiteDepth, seed: int) -> bool:
    return same_tensors(net.encoder.state_dict(), network(seed).encoder.state_dict())


@pytest.mark.parametrize(
    "wrapper, prefix, old_format",
    [(None, "", True), ("state_dict", "module.", False), ("model", "", False),
     ("state_dict", "_orig_mod.module.", True), (None, "model.encoder.", False),
     ("ema_weights", "backbone.", False)],
)
def test_pretrained_timm_file(tmp_path, wrapper, prefix, old_format):
    weights = {prefix + k: v for k, v in timm_layout(5).items()}
    content = {wrapper: weights, "epoch": 1} if wrapper else weights
    path = tmp_path / "timm.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    net = network(1)
    assert M.load_pretrained(net, str(path)) == "encoder from timm.pth"
    assert holds(net, 5)
    assert same_tensors(net.decoder.state_dict(), network(1).decoder.state_dict())


def test_pretrained_safetensors(tmp_path, server):
    """By its content; from a server as well. Made by hand: a length, a header, the tensors."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for k, v in timm_layout(5).items():
        kind, raw = {8: "I64", 4: "F32"}[v.element_size()], v.numpy().tobytes()
        header["model." + k] = {"dtype": kind, "shape": [*v.shape], "data_offsets": [
            len(data), len(data) + len(raw)]}  # fmt: skip
        data += raw
    head = json.dumps(header).encode()
    whole = struct.pack("<Q", len(head)) + head + data
    for name in ("model.safetensors", "model.pth"):
        (tmp_path / name).write_bytes(whole)
        for source in (str(tmp_path / name), f"{server}/{name}?download=true"):
            net = network(1)
            assert M.load_pretrained(net, source).endswith(name) and holds(net, 5)
    with pytest.raises(CheckpointError, match=r"model\.pth: not a LiteDepth.*--pretrained"):
        M.load(tmp_path / "model.pth")
    for size in (9, 200, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors: not a readable.*damaged"):
            M.load_pretrained(LiteDepth(), str(tmp_path / "cut.safetensors"))


class Config(dict):
    pass


FOREIGN = {
    "arguments": lambda mark: argparse.Namespace(lr=0.1, out=Path("runs")),
    "numpy": lambda mark: [np.float64(0.3), np.zeros(3), np.random.default_rng(0)],
    "library": lambda mark: [slice(1, 2), range(3), functools.partial(print, 1), F.relu],
    "code": lambda mark: [Payload(f"__import__('os').mkdir({str(mark)!r})", eval),
                          Payload(["mkdir", str(mark)], subprocess.call)],
}  # fmt: skip


@pytest.mark.parametrize("old_format", [True, False])
@pytest.mark.parametrize("kind", FOREIGN)
def test_pretrained_beside_foreign_objects(tmp_path, kind, old_format):
    """The weights are read, what else there is does nothing; in a checkpoint of ours it is none."""
    mark, path = tmp_path / "executed", tmp_path / "foreign.pth"
    content = {"args": FOREIGN[kind](mark), "state_dict": timm_layout(5)}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    net, allowed = network(1), set(torch.serialization.get_safe_globals())
    assert M.load_pretrained(net, str(path)) == "encoder from foreign.pth"
    assert holds(net, 5) and not mark.exists()
    assert set(torch.serialization.get_safe_globals()) == allowed
    with pytest.raises(CheckpointError, match=r"foreign\.pth: not a LiteDepth checkpoint"):
        read_checkpoint(path)
    M.save(path, network(1))
    torch.save(torch.load(path) | content, path)
    for read in (read_checkpoint, lambda p: M.load_pretrained(LiteDepth(), str(p))):
        with pytest.raises(CheckpointError, match=r"foreign\.pth: holds code .*never run"):
            read(path)
    assert not mark.exists()


def test_pretrained_branches_of_a_file(tmp_path, capsys):
    """A detector's backbone, averaged weights beside the others, a file that holds itself."""
    path, ours, other = tmp_path / "big.pth", timm_layout(5), timm_layout(6)
    looped = {"net": ours}
    looped["self"] = looped
    for content in (
        {"model": {f"backbone.{k}": v for k, v in ours.items()} | {"head.bias": torch.zeros(2)}},
        {"state_dict": other, "state_dict_ema": ours, "optimizer": {"state": {0: torch.zeros(3)}}},
        {"student": {f"module.{k}": v for k, v in other.items()}, "teacher": ours},
        looped,
    ):
        torch.save(content, path)
        net = network(1)
        assert M.load_pretrained(net, str(path)) == "encoder from big.pth" and holds(net, 5)
    told = capsys.readouterr().err.splitlines()
    assert ["alike, of which state_dict_ema.*" in told[0], "teacher.*" in told[1]] == [True, True]
    assert len(told) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pretrained_of_another_architecture_or_kind(tmp_path):
    """What is in the file is named."""
    path = tmp_path / "resnet50.pth"

    def refused() -> str:
        with pytest.raises(CheckpointError, match=r"resnet50\.pth: ") as caught:
            M.load_pretrained(LiteDepth(), str(path))
        assert len(str(caught.value)) < 800 and "\n" not in str(caught.value)
        return str(caught.value)

    names = ["conv1.weight", "bn1.weight", "bn1.bias", *(f"layer1.{i}.bn1.bias" for i in range(3))]
    torch.save({k: torch.zeros(64, 3) for k in names}, path)
    told = r"6 tensors \(conv1\.weight, bn1.*does not fit this network.*Missing.*conv_stem"
    assert re.search(told, refused())
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), path)
    assert "TorchScript" in refused() and "state_dict()" in refused()
    whole, items = torch.nn.Linear(1, 1), collections.defaultdict(list, a=[1])
    for content in (whole, {"model": whole}, {"model": timm_layout(5), "items": Config(items)}):
        for new_format in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=new_format)
            assert "weights" in refused() and "state_dict()" in refused()
    torch.save(items, path)
    assert "state_dict()" in refused()
    torch.save(timm_layout(5), path, pickle_protocol=4)
    assert "state_dict()" in refused()


def test_pretrained_file_without_counters(tmp_path):
    weights = {k: v for k, v in timm_layout(5).items() if "num_batches" not in k}
    torch.save(weights, tmp_path / "old.pth")
    net = network(1)
    M.load_pretrained(net, str(tmp_path / "old.pth"))
    own = net.encoder.state_dict()
    assert all(torch.equal(own[k], weights.get(k, torch.tensor(1))) for k in own)


def test_pretrained_own_checkpoint(saved):
    net = network(1)
    assert M.load_pretrained(net, str(saved)) == "whole network from last.pt"
    assert same_tensors(net.state_dict(), M.load(saved).state_dict())
    with pytest.raises(CheckpointError, match=r"last\.pt.*decoder\.fuse4\.weight"):
        M.load_pretrained(LiteDepth(decoder="3x3"), str(saved))


def test_pretrained_wrong_file(tmp_path):
    path = tmp_path / "wrong.pth"
    path.write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"wrong\.pth: not a readable weights file"):
        M.load_pretrained(LiteDepth(), str(path))
    for content in ([1, 2], {"a": 1}, {"state_dict": {"a": "b"}}, torch.zeros(2)):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"wrong\.pth: holds no dictionary of weights"):
            M.load_pretrained(LiteDepth(), str(path))
    content = {**timm_layout(5), "features.0.weight": torch.zeros(1)}
    del content["blocks.4.2.bn3.weight"]
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"wrong\.pth.*blocks\.4\.2\.bn3\.weight.*features\.0\.weight"
    ):
        M.load_pretrained(LiteDepth(), str(path))


def test_pretrained_unreachable_network():
    net = network(1)
    assert M.load_pretrained(net, "none") == "none: from scratch"
    assert same_tensors(net.state_dict(), network(1).state_dict())
    with pytest.raises(CheckpointError, match="could not download.*--pretrained"):
        M.load_pretrained(net, "imagenet")


def test_pretrained_auto_starts_from_the_repositorys_weights(tmp_path, monkeypatch):
    """All of them where the network is the same, else the encoder; the network is never asked."""
    monkeypatch.setattr(weights, "fetch", None)
    monkeypatch.setattr(M, "SHIPPED", tmp_path / "litedepth.tflite")
    net = network(1)
    assert M.load_pretrained(net, "auto").startswith("none: from scratch")  # there are none
    M.save(tmp_path / "litedepth.pt", shake(network(7), 8))
    shipped = M.load(tmp_path / "litedepth.pt")
    assert M.load_pretrained(net, "auto").startswith("whole network from weights/litedepth.pt")
    assert same_tensors(net.state_dict(), shipped.state_dict())
    for other in ({"decoder": "3x3"}, {"mean": (1.0, 2.0, 3.0)}):
        net, before = LiteDepth(**other), LiteDepth(**other)
        before.load_state_dict(net.state_dict())
        assert M.load_pretrained(net, "auto").startswith("encoder from weights/litedepth.pt")
        assert same_tensors(net.encoder.state_dict(), shipped.encoder.state_dict())
        assert same_tensors(net.decoder.state_dict(), before.decoder.state_dict())
        assert torch.equal(net.mean, before.mean)


def test_pretrained_download_then_cache(tmp_path, public, source="imagenet"):
    net, loaded = network(1), f"encoder from {public.name}"
    assert M.load_pretrained(net, source) == loaded and holds(net, 5)
    assert os.listdir(tmp_path / "hub" / "checkpoints") == [public.name]
    public.unlink()  # from now on only the cache has it
    net = network(1)
    assert M.load_pretrained(net, source) == loaded and holds(net, 5)


@pytest.fixture
def server(tmp_path):
    """The folder tmp_path over HTTP on this machine: its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_pretrained_url_is_cached_by_its_address(tmp_path, server):
    """Any server may have a best.pth; one that was downloaded serves until it is deleted."""
    for folder, seed, held in (("a", 5, 5), ("b", 6, 6), ("a", 7, 5)):
        path = tmp_path / folder / "best.pth"
        path.parent.mkdir(exist_ok=True)
        torch.save(timm_layout(seed), path)
        net = network(1)
        M.load_pretrained(net, f"{server}/{folder}/best.pth")
        assert holds(net, held)
    for cached in (tmp_path / "hub" / "checkpoints").iterdir():
        cached.unlink()  # as the help advises
    M.load_pretrained(net, f"{server}/a/best.pth")
    assert holds(net, 7)


@pytest.mark.parametrize("cached", [False, True])
def test_pretrained_wrong_hash(tmp_path, monkeypatch, public, cached):
    """A page to log in, or a download that went wrong: told, and not kept."""
    wrong, cache = public.with_name("small-0123abcd.pth"), tmp_path / "hub" / "checkpoints"
    public.rename(wrong)
    monkeypatch.setattr(LiteDepth, "published", (wrong.as_uri(), 10.0))
    if cached:
        cache.mkdir(parents=True)
        shutil.copy(wrong, cache)
    with pytest.raises(CheckpointError, match="SHA-256.*0123abcd"):
        M.load_pretrained(LiteDepth(), "imagenet")
    assert not os.listdir(cache)


@pytest.mark.parametrize("call", ["mkdir", "write_bytes", "is_file", "read_bytes"])
def test_pretrained_unusable_cache(tmp_path, monkeypatch, public, call):
    """A full disk, a folder of another user's."""
    if call == "read_bytes":
        weights.fetch(public.as_uri(), 5.0)

    def refuse(path, *args, **kwargs):
        if call == "write_bytes":
            path.touch()  # half-written
        raise OSError(f"no {call} today")

    monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(CheckpointError, match=f"no {call} today.*TORCH_HOME"):
        M.load_pretrained(LiteDepth(), "imagenet")
    monkeypatch.undo()
    assert not list((tmp_path / "hub" / "checkpoints").glob(".*"))  # no part file


@pytest.mark.parametrize("kind", ["silent", "dripping"])
def test_fetch_gives_up_in_time(tmp_path, kind):
    """A server that accepts and says nothing; one that sends a byte now and then."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with listener.accept()[0] as client:
                client.recv(4096)
                if kind == "dripping":
                    client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                for _ in range(50):  # 5 s: fetch must not be what waits for the end
                    if stop.wait(0.1):
                        break
                    if kind == "dripping":
                        client.sendall(b".")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/slow.pth"
        began = time.monotonic()
        with pytest.raises(CheckpointError, match="could not download.*(no answer|timed out)"):
            weights.fetch(url, 1.0)
        assert 0.9 < time.monotonic() - began < 3.0
        stop.set()
        thread.join(5.0)
    time.sleep(0.2)  # the download that was given up has ended, and leaves nothing
    assert not (tmp_path / "hub").exists()


# ------------------------------------------------------------------------------------------ flags


def parser() -> argparse.ArgumentParser:
    parser = flags.Parser()
    flags.add(parser, M.Network)
    flags.add(parser, M.Backbone)
    return parser


def test_flags_are_the_papers_values():
    args = parser().parse_args([])
    assert flags.take(args, M.Network) == M.Network()
    assert flags.take(args, M.Backbone) == M.Backbone()
    assert args.mean is args.std is None  # each network's own
    common = {"size": args.size, "decoder": args.decoder, "upsample": args.upsample}
    net = M.create(args.model, **common)
    assert type(net) is LiteDepth and net.model_args == LiteDepth().model_args == {
        "size": [128, 160], "decoder": "mix", "upsample": "nearest", "mean": [127.5] * 3,
        "std": [127.5] * 3, "merged": False,
    }  # fmt: skip
    with torch.device("meta"):
        teacher = M.create("swin_l", window=args.window, drop_path=args.drop_path, **common)
        assert teacher.model_args == M.create("swin_l").model_args
    assert (args.window, args.drop_path, args.pretrained) == (7, 0.3, "auto")
    given = "--size 64x96 --mean 1,2,3 --std 4,5,6 --model swin_nano --window 12 --drop_path 0"
    args = parser().parse_args(given.split())
    assert (args.size, args.mean, args.std) == ((64, 96), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert (args.model, args.window, args.drop_path) == ("swin_nano", 12, 0.0)


@pytest.mark.parametrize(
    "flag",
    ["--size 128", "--mean 1,2", "--std 1,2,0", "--std 1,2,x", "--mean 1,nan,1", "--decoder 5x5",
     "--upsample cubic", "--model swin_xxl", "--window 1", "--window 65", "--window 7.5",
     "--drop_path 1", "--drop_path -0.1", "--drop_path nan"],
)  # fmt: skip
def test_flags_refuse(flag, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(flag.split())
    assert flag.split()[0] in capsys.readouterr().err
