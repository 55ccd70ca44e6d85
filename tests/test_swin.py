"""Sec. 3.4, Fig. 5: the teacher's Swin, its public weights and its decoder's maps (model.py,
plumbing/swin.py).

The test against an independent Swin skips without these packages:

    pip install --no-deps --target DIR pillow \
        transformers==5.23.0 huggingface_hub==2.4.0 safetensors tokenizers regex pyyaml tqdm \
        typer click httpx2 httpcore2 h11 anyio idna truststore typing_extensions
    PYTHONPATH=DIR pytest tests/test_swin.py
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import test_model
import torch
import torch.nn.functional as F
from test_model import count, pictures, same_tensors
from torch import nn

import model as M
from model import LiteDepth, Teacher
from plumbing import swin
from plumbing.checkpoints import CheckpointError
from plumbing.swin import Swin

one_thread = test_model.one_thread  # fixture

TOY = (24, (2, 2, 2, 2), (2, 4, 8, 16), None)  # 12 channels a head: no power of two


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No test reaches the network or the user's cache; "toy" is a small teacher."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(M, "SWIN_URL", (tmp_path / "nowhere").as_uri() + "/")
    monkeypatch.setitem(M.SWIN, "toy", TOY)


@torch.no_grad()
def shake(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, those too that start at 0 or 1, as after training; eval mode."""
    g = torch.Generator().manual_seed(seed)
    for name, p in net.named_parameters():
        if name.endswith("relative_position_bias_table"):
            p.normal_(0.0, 1.0, generator=g)
        elif p.ndim > 1:
            p.normal_(0.0, 1.5 * p[0].numel() ** -0.5, generator=g)
        elif name.endswith("bias"):
            p.normal_(0.0, 0.3, generator=g)
        else:
            p.uniform_(0.5, 1.5, generator=g)
    return net.eval()


def teacher(seed: int = 0, **model_args) -> Teacher:
    net = shake(Teacher("toy", **model_args), seed)
    nn.init.constant_(net.decoder.depth.bias, 5.0)  # the last ReLU is alive
    return net


# ------------------------------------------------------------------- the Swin of other people


def differences(got: list[torch.Tensor], want: list[torch.Tensor]) -> str:
    """Asserts that all four maps agree to 1e-4; says how well."""
    assert [g.shape for g in got] == [w.shape for w in want] and len(want) == 4
    absolute = max(float((g - w).abs().max()) for g, w in zip(got, want))
    relative = max(float((g - w).abs().max() / (w.max() - w.min())) for g, w in zip(got, want))
    assert absolute <= 1e-4 and min(float(w.std()) for w in want) > 0.3
    return f"max abs error {absolute:.1e}, of the range {relative:.1e}"


HF_KEYS = {
    r"^hidden_states_norms\.stage(\d)": lambda m: f"norm{int(m[1]) - 1}",
    r"^swin\.embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^swin\.embeddings\.norm": "patch_embed.norm",
    r"^swin\.encoder\.": "",
    "layernorm_before": "norm1", "layernorm_after": "norm2",
    r"attention\.relative_position_bias\.": "attn.",
    r"attention\.o_proj": "attn.proj",
}  # fmt: skip


@pytest.mark.parametrize("window", [7, 4])
@torch.no_grad()
def test_swin_equals_transformers(window):
    """The detection form, as its authors have it: padded, then shifted; four norms of its own."""
    transformers = pytest.importorskip("transformers")
    embed, depths, heads, _ = TOY
    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    config = transformers.SwinConfig(
        embed_dim=embed, depths=depths, num_heads=heads, window_size=window, out_features=stages
    )
    theirs = shake(transformers.SwinBackbone(config), 1)
    weights = theirs.state_dict()
    weights = {k: v for k, v in weights.items() if not k.startswith("swin.layernorm.")}  # unused
    for key in [k for k in weights if "q_proj" in k]:
        qkv = [weights.pop(key.replace("q_proj", f"{i}_proj")) for i in "qkv"]
        weights[key.replace("attention.q_proj", "attn.qkv")] = torch.cat(qkv)
    for theirs_name, our_name in HF_KEYS.items():
        weights = {re.sub(theirs_name, our_name, k): v for k, v in weights.items()}
    ours = Swin(embed, depths, heads, window).eval()
    ours.load_state_dict(weights)
    for h, w in ((224, 224), (128, 160), (97, 131), (100, 260), (33, 20)):
        x = torch.randn(2, 3, h, w)
        text = differences(ours(x), theirs(x).feature_maps)
        print(f"transformers {h}x{w}, window {window}: {text}")


# ------------------------------------------------------------------------------ blocks, by hand


def layer_norm(x: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    g, b = (p.detach().double().numpy() for p in (norm.weight, norm.bias))
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * g + b


def linear(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def attention_twin(x: np.ndarray, attn: nn.Module, window: int, shift: int) -> np.ndarray:
    """Window attention over (H, W, C), token by token.

    Where a token is in the rolled map decides its window. Two tokens of a window see each other
    only if they are as far apart in the map as it was: the roll has not brought them together.
    """
    h, w, c = x.shape
    H, W = (math.ceil(n / window) * window for n in (h, w))
    padded = np.zeros((H, W, c))
    padded[:h, :w] = x
    q, k, v = np.split(linear(padded, attn.qkv), 3, axis=-1)
    table = attn.relative_position_bias_table.detach().double().numpy()
    d = c // attn.heads
    out = np.zeros((H, W, c))
    windows: dict[tuple[int, int], list] = {}
    for y, u in np.ndindex(H, W):
        rolled = (y - shift) % H, (u - shift) % W
        windows.setdefault((rolled[0] // window, rolled[1] // window), []).append((y, u, *rolled))
    for members in windows.values():
        assert len(members) == window**2
        for head in range(attn.heads):
            part = slice(head * d, (head + 1) * d)
            for y, u, ry, ru in members:
                score, value = [], []
                for y2, u2, ry2, ru2 in members:
                    dy, du = ry - ry2, ru - ru2
                    if (y - y2, u - u2) != (dy, du):
                        continue
                    row = (dy + window - 1) * (2 * window - 1) + du + window - 1
                    score.append(q[y, u, part] @ k[y2, u2, part] / math.sqrt(d) + table[row, head])
                    value.append(v[y2, u2, part])
                weight = np.exp(np.array(score) - max(score))
                out[y, u, part] = weight / weight.sum() @ np.array(value)
    return linear(out, attn.proj)[:h, :w]


def block_twin(x: np.ndarray, block: nn.Module, window: int, shift: int) -> np.ndarray:
    x = x + attention_twin(layer_norm(x, block.norm1), block.attn, window, shift)
    y = linear(layer_norm(x, block.norm2), block.mlp.fc1)
    y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    return x + linear(y, block.mlp.fc2)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(  # whole windows; padded; smaller than a window
    "window, h, w", [(2, 4, 6), (3, 7, 5), (4, 3, 2)]
)
@torch.no_grad()
def test_block_by_hand(window, h, w, shifted):
    block = shake(swin.SwinBlock(8, window, 2, shifted, drop_path=0.0))
    x = torch.randn(2, h, w, 8, generator=torch.Generator().manual_seed(h * w))
    got = block(x)
    for n in range(2):
        want = block_twin(x[n].double().numpy(), block, window, window // 2 if shifted else 0)
        assert np.abs(got[n].numpy() - want).max() < 1e-4


@pytest.mark.parametrize("h, w", [(4, 6), (3, 5), (1, 1)])
@torch.no_grad()
def test_merging_by_hand(h, w):
    """Down before across, as the public weights expect; zeros beyond an odd map."""
    merge = shake(swin.PatchMerging(3))
    x = torch.randn(2, h, w, 3)
    W = merge.reduction.weight.double().numpy()
    got = merge(x)
    assert got.shape == (2, (h + 1) // 2, (w + 1) // 2, 6)
    for n, y, u in np.ndindex(*got.shape[:3]):
        four = []
        for down, right in ((0, 0), (1, 0), (0, 1), (1, 1)):
            v, t = 2 * y + down, 2 * u + right
            four += x[n, v, t].tolist() if v < h and t < w else [0.0] * 3
        want = W @ layer_norm(np.array(four), merge.norm)
        assert np.abs(got[n, y, u].numpy() - want).max() < 1e-5


@torch.no_grad()
def test_taps_by_hand():
    """Patches of 4x4, zeros beyond the picture; stages in order; a tap leaves before the merging,
    after its norm, and nothing feeds back."""
    net = shake(Swin(*TOY[:3], window=3))
    x = torch.randn(2, 3, 30, 50)
    canvas = torch.zeros(2, 3, 32, 52)
    canvas[..., :30, :50] = x
    proj = net.patch_embed.proj
    at = torch.zeros(2, 8, 13, 24)
    for v, u in np.ndindex(8, 13):
        patch = canvas[:, None, :, 4 * v : 4 * v + 4, 4 * u : 4 * u + 4]
        at[:, v, u] = (proj.weight * patch).sum((2, 3, 4)) + proj.bias
    at = torch.from_numpy(layer_norm(at.double().numpy(), net.patch_embed.norm)).float()
    for i, (tap, stage) in enumerate(zip(net(x), net.layers)):
        for j, block in enumerate(stage.blocks):
            assert block.shift == j % 2
            at = block(at)
        want = layer_norm(at.double().numpy(), getattr(net, f"norm{i}")).transpose(0, 3, 1, 2)
        assert np.abs(tap.numpy() - want).max() < 1e-4
        at = stage.downsample(at) if i < 3 else at
    assert "downsample" not in net.layers[3]


# ------------------------------------------------------------------------------ stochastic depth


@torch.no_grad()
def test_drop_path_leaves_out_branches():
    """2000 equal samples, rate 0.25: each branch of each sample comes alone to its chance, and
    those that stay weigh 4/3, so that the mean is the branch."""
    torch.manual_seed(0)
    n, rate = 2000, 0.25
    block = shake(swin.SwinBlock(4, 2, 1, False, rate))
    one = torch.randn(1, 2, 2, 4)
    attended = block.attn(block.norm1(one).view(1, 4, 4), None).view_as(one)
    kinds = {}
    for a in (0, 1):
        x = one + a * attended / (1 - rate)
        for m in (0, 1):
            kinds[a, m] = x + m * block.mlp(block.norm2(x)) / (1 - rate)
    got = block.train()(one.expand(n, -1, -1, -1))
    share = {k: (got - v).flatten(1).abs().amax(1) < 1e-5 for k, v in kinds.items()}
    assert torch.equal(sum(s.int() for s in share.values()), torch.ones(n, dtype=torch.int32))
    for (a, m), s in share.items():
        chance = (0.75 if a else 0.25) * (0.75 if m else 0.25)
        sigma = math.sqrt(chance * (1 - chance) / n)
        assert abs(float(s.float().mean()) - chance) < 4 * sigma, (a, m)
    once = block.eval()(one)
    assert torch.allclose(once, one + attended + block.mlp(block.norm2(one + attended)), atol=1e-5)


def test_drop_path_grows_linearly():
    net = Swin(16, (2, 2, 6, 2), (1, 2, 4, 8), drop_path=0.3)
    rates = [m.drop_path for m in net.modules() if isinstance(m, swin.SwinBlock)]
    assert len(rates) == 12 and np.allclose(rates, np.linspace(0, 0.3, 12))


# ------------------------------------------------------------------------------------------ size


# With norm and classifier of 1000 classes, as published: "28M", "50M", "88M", "197M".
@pytest.mark.parametrize(
    "name, heads, published",
    [
        ("swin_t", (3, 6, 12, 24), 28_288_354),
        ("swin_s", (3, 6, 12, 24), 49_606_258),
        ("swin_b", (4, 8, 16, 32), 87_768_224),
        ("swin_l", (6, 12, 24, 48), 196_532_476),
    ],
)
def test_sizes_of_the_published_networks(name, heads, published):
    with torch.device("meta"):
        net = Teacher(name)
    assert tuple(stage.blocks[0].attn.heads for stage in net.encoder.layers) == heads
    norms = sum(count(getattr(net.encoder, f"norm{i}")) for i in range(4))
    width = net.encoder.channels[3]
    assert published == count(net.encoder) - norms + 2 * width + 1000 * width + 1000
    if name == "swin_l":  # the paper's teacher
        assert (count(net.encoder), count(net.decoder)) == (194_998_164, 1_555_105)


# -------------------------------------------------------------------------------- public weights


def official(seed: int = 5, window: int = 7, classes: int = 1000) -> dict[str, torch.Tensor]:
    """A toy backbone in the layout of Swin's authors."""
    net = teacher(seed, window=window).encoder
    weights = {k: v.clone() for k, v in net.state_dict().items() if not re.match(r"norm\d", k)}
    t = window**2
    for k in list(weights):
        if k.endswith("attn.qkv.weight"):
            weights[k.replace("qkv.weight", "relative_position_index")] = torch.zeros(t, t).long()
        if k.endswith("blocks.1.norm1.weight"):
            weights[k.replace("norm1.weight", "attn_mask")] = torch.ones(4, t, t)
    weights |= {"norm.weight": torch.ones(192), "norm.bias": torch.zeros(192)}
    return weights | {"head.weight": torch.ones(classes, 192), "head.bias": torch.zeros(classes)}


def timm_new(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm since 0.9: no tables, a merging belongs to the stage after it, the head has a layer."""
    out = {}
    for k, v in weights.items():
        for i in (0, 1, 2):
            if k.startswith(f"layers.{i}.downsample."):
                k = k.replace(f"layers.{i}", f"layers.{i + 1}")
                break
        if not k.endswith(("relative_position_index", "attn_mask")):
            out[k.replace("head.", "head.fc.")] = v
    return out


LAYOUTS = {
    "official": lambda: {"model": official()},
    "22k": lambda: {"model": official(classes=21841)},
    "timm old": lambda: official(),
    "timm new": lambda: timm_new(official()),
    "state_dict": lambda: {"state_dict": timm_new(official()), "epoch": 3},
    "module": lambda: {"model": {f"module.{k}": v for k, v in official().items()}},
}


def write(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pretrained_layouts(tmp_path, layout):
    net = Teacher("toy")
    decoder = {k: v.clone() for k, v in net.decoder.state_dict().items()}
    path = write(tmp_path / "swin.pth", LAYOUTS[layout]())
    assert M.load_pretrained(net, path) == "encoder from swin.pth"
    got, want = net.encoder.state_dict(), teacher(5).encoder.state_dict()
    fresh = [k for k in want if re.match(r"norm\d\.", k)]
    assert len(fresh) == 8 and all(torch.equal(got[k], want[k]) for k in want.keys() - set(fresh))
    for k in fresh:  # the file has none: they start afresh
        assert torch.equal(got[k], torch.full_like(got[k], float(k.endswith("weight")))), k
    assert same_tensors(net.decoder.state_dict(), decoder)


@torch.no_grad()
def test_pretrained_file_of_another_window(tmp_path):
    weights = official(window=12)
    weights["layers.1.blocks.1.attn.relative_position_bias_table"][:] = torch.tensor(
        [2.0, -3.0, 0.0, 9.0]
    )
    net = Teacher("toy", window=7).eval()
    M.load_pretrained(net, write(tmp_path / "swin.pth", {"model": weights}))
    got = net.encoder.state_dict()
    for k, v in weights.items():
        if k.endswith("bias_table"):
            assert np.abs(got[k].numpy() - bicubic_twin(v.numpy(), 7)).max() < 1e-4, k
        elif k in got:
            assert torch.equal(got[k], v), k
    table = got["layers.1.blocks.1.attn.relative_position_bias_table"]
    assert torch.allclose(table, torch.tensor([2.0, -3.0, 0.0, 9.0]).expand(169, 4), atol=1e-5)
    assert net(pictures(1, 96, 96)).isfinite().all()


def bicubic_twin(table: np.ndarray, window: int) -> np.ndarray:
    """Keys' cubic convolution with a = -0.75, half-pixel centres, the border repeated."""
    a, b = math.isqrt(len(table)), 2 * window - 1
    across = np.zeros((b, a))
    for i in range(b):
        x = (i + 0.5) * a / b - 0.5
        for k in range(math.floor(x) - 1, math.floor(x) + 3):
            d = abs(x - k)
            near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            across[i, min(max(k, 0), a - 1)] += near if d <= 1 else far
    grid = table.reshape(a, a, -1).astype(float)
    return np.einsum("ij,kl,jlh->ikh", across, across, grid).reshape(b * b, -1)


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda: official() | {"layers.0.blocks.0.attn.logit_scale": torch.ones(1)},
         r"Unexpected.*layers\.0\.blocks\.0\.attn\.logit_scale"),
        (lambda: {k: v for k, v in official().items() if "2.downsample.norm.b" not in k},
         r"Missing.*layers\.2\.downsample\.norm\.bias"),
        (lambda: LiteDepth().encoder.state_dict(), r"Missing.*patch_embed\.proj\.weight"),
        (lambda: Swin(16, *TOY[1:3]).state_dict(), r"patch_embed\.proj\.weight.*16.*24"),
        (lambda: Swin(24, (2, 2, 4, 2), TOY[2]).state_dict(),
         r"Unexpected.*layers\.2\.blocks\.2\.norm1\.weight"),
    ],
    ids=["v2", "missing", "mobilenet", "width", "depth"],
)  # fmt: skip
def test_pretrained_wrong_file(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=rf"odd\.pth: .*does not fit.*{message}"):
        M.load_pretrained(Teacher("toy"), write(tmp_path / "odd.pth", content()))


def test_pretrained_addresses():
    """Swin's authors' release v1.0.0; 22k classes where they have published that."""
    for name in ("swin_t", "swin_s", "swin_b", "swin_l"):
        with torch.device("meta"):
            url, seconds = Teacher(name).published
        word = {"t": "tiny", "s": "small", "b": "base", "l": "large"}[name[-1]]
        classes = "_22k" if word in ("base", "large") else ""
        assert url == f"{M.SWIN_URL}swin_{word}_patch4_window7_224{classes}.pth"
        assert seconds == 600


def test_pretrained_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setitem(M.SWIN, "toy", (*TOY[:3], "swin_toy.pth"))
    net = teacher(1)
    assert M.load_pretrained(net, "auto").startswith("none: from scratch (--pretrained imagenet")
    with pytest.raises(CheckpointError, match=r"could not download.*swin_toy\.pth.*--pretrained"):
        M.load_pretrained(net, "imagenet")
    assert same_tensors(net.state_dict(), teacher(1).state_dict())
    (tmp_path / "nowhere").mkdir()
    write(tmp_path / "nowhere" / "swin_toy.pth", {"model": official()})
    line = M.load_pretrained(net, "imagenet")
    assert line.startswith("encoder from") and line.endswith("_swin_toy.pth")
    assert torch.equal(net.encoder.patch_embed.proj.weight, official()["patch_embed.proj.weight"])


def test_pretrained_nano_has_no_public_weights():
    with torch.device("meta"):
        net = Teacher("swin_nano")
    with pytest.raises(CheckpointError, match="ours"):
        M.load_pretrained(net, "imagenet")


# ----------------------------------------------------------------------------------- checkpoints


@torch.no_grad()
def test_checkpoint_round_trip(tmp_path):
    net = teacher(
        3, window=5, drop_path=0.1, size=(64, 96), decoder="1x1", upsample="bilinear",
        mean=(1.0, 2.0, 3.0), std=(40.0, 50.0, 60.0),
    )  # fmt: skip
    M.save(tmp_path / "last.pt", net.train(), epoch=3)
    again = M.load(tmp_path / "last.pt")
    assert isinstance(again, Teacher) and not any(m.training for m in again.modules())
    assert again.model_args == net.model_args == {
        "model": "toy", "window": 5, "drop_path": 0.1, "size": [64, 96], "decoder": "1x1",
        "upsample": "bilinear", "mean": [1.0, 2.0, 3.0], "std": [40.0, 50.0, 60.0],
    }  # fmt: skip
    assert same_tensors(again.state_dict(), net.state_dict())
    assert [m.drop_path for m in again.modules() if isinstance(m, swin.SwinBlock)][-1] == 0.1
    x = pictures(1, 70, 80)
    assert again(x).std() > 0.01 and torch.equal(again(x), net.eval()(x))


@torch.no_grad()
def test_checkpoint_of_a_teacher_as_pretrained(tmp_path):
    M.save(tmp_path / "best.pt", teacher(3, mean=(1.0, 2.0, 3.0)))
    net = teacher(1)
    line = M.load_pretrained(net, str(tmp_path / "best.pt"))
    assert line == "whole network from best.pt"
    assert same_tensors(net.state_dict(), M.load(tmp_path / "best.pt").state_dict())
    assert net.model_args["mean"] == [1.0, 2.0, 3.0]
    with pytest.raises(CheckpointError, match=r"best\.pt.*Missing.*encoder\.conv_stem"):
        M.load_pretrained(LiteDepth(), str(tmp_path / "best.pt"))
    with pytest.raises(CheckpointError, match=r"best\.pt.*bias_table.*169, 2.*81, 2"):
        M.load_pretrained(teacher(window=5), str(tmp_path / "best.pt"))


def test_create():
    assert type(M.create()) is type(M.create("student", decoder="1x1")) is LiteDepth
    net = M.create("toy")
    assert type(net) is Teacher and net.encoder.channels == (24, 48, 96, 192)
    assert net.model_args == {
        "model": "toy", "window": 7, "drop_path": 0.3, "size": [128, 160], "decoder": "mix",
        "upsample": "nearest", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375],
    }  # fmt: skip


# --------------------------------------------------------------------- decoder, features of Fig. 6


@pytest.mark.parametrize(
    "make, widths", [(test_model.network, (24, 8, 24)), (teacher, (192, 48, 24))]
)
@torch.no_grad()
def test_features_by_hand(make, widths):
    net = make()
    for p in net.decoder.parameters():
        p += 0.02 * torch.randn_like(p)
    x = pictures(2, 128, 160)
    calls = []
    for name, m in net.decoder.named_modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(lambda m, x, y, n=name: calls.append(n))
    mean, std = (torch.tensor(net.model_args[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    taps = net.encoder((x - mean) / std)
    d_hat, features = net.decoder(taps)
    assert calls == ["fuse4", "fuse3", "fuse2", "fuse1", "depth"]  # one pass
    again, same = net.features(x)
    assert torch.equal(again, net.network(x)) and test_model.close(again, d_hat, 1e-4)
    assert all(test_model.close(a, b, 1e-4) for a, b in zip(same, features))
    sizes = ((8, 10), (16, 20), (32, 40))
    assert [tuple(f.shape) for f in features] == [(2, c, *hw) for c, hw in zip(widths, sizes)]
    assert all(float(f.min()) < 0 for f in features)  # before the ReLU
    decoder, deep = net.decoder, F.relu(net.decoder.fuse4(taps[3]))
    for conv, tap, got in zip((decoder.fuse3, decoder.fuse2, decoder.fuse1), taps[2::-1], features):
        up = F.interpolate(deep, size=tap.shape[2:], mode="bilinear", align_corners=True)
        assert torch.equal(got, conv(torch.cat((up, tap), 1)))
        deep = got.clamp(min=0)
    assert torch.equal(d_hat, decoder.depth(deep).clamp(min=0)) and d_hat.std() > 0.01


# -------------------------------------------------------------------------------------- training


def test_every_parameter_learns():
    """After an evaluation too: the masks that were made in it serve training."""
    swin.shift_mask.cache_clear()
    net, x = teacher(drop_path=0.0), pictures(2, 128, 160)
    with torch.inference_mode():
        net(x)
    net.train()(x).log1p().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad.isfinite().all() and p.grad.any(), name
