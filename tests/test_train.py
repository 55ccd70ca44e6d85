"""Sec. 4.2: schedule, loop, checkpoints, resume, signals, processes."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import losses
import model
import train
from evaluate import Validator
from plumbing.checkpoints import CheckpointError, read_checkpoint
from plumbing.files import UserError
from plumbing.pairs import DataError
from plumbing.run import DEAD_BATCHES

ROOT = Path(__file__).resolve().parent.parent
RELEASED = train.Schedule()


def write_pairs(root: Path, split: str, count: int, size=(96, 128), seed=0) -> None:
    """Rooms of one plane and one box each; a depth network can learn them, and they have holes."""
    h, w = size
    v, u = np.mgrid[:h, :w].astype(np.float64)
    rng = np.random.default_rng([seed, len(split)])
    for kind in ("rgb", "depth"):
        (root / split / kind).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        depth = 1.2 / np.maximum((v - h * 0.25) / h, 0.08 + 0.1 * rng.random())
        shade = 40 + 150 * (1 / depth) + 20 * np.sin(u / 3) * np.sin(v / 3)
        top, left = rng.integers(h // 4, h // 2), rng.integers(0, w // 2)
        box = np.s_[top : top + h // 3, left : left + w // 4]
        depth[box] = depth[box].min() * 0.8
        rgb = np.stack([shade, 0.8 * shade, 0.6 * shade], -1)
        rgb[box] = (30, 60, 200) + 10 * rng.random(3)
        depth[rng.random((h, w)) < 0.05] = 0
        depth[: h // 8] = 0
        rgb = np.clip(rgb + rng.normal(0, 2, rgb.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(root / split / f"rgb/{i}.png"), rgb)
        cv2.imwrite(str(root / split / f"depth/{i}.png"), (1000 * depth).astype(np.uint16))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    write_pairs(root, "train", 8)
    write_pairs(root, "val", 3)
    return root


def flags(root: Path, out: Path, *more: str) -> list[str]:
    """A run of two steps an epoch on CPU with two threads."""
    return [
        "--data", str(root), "--out", str(out), "--image_size", "96x128", "--size", "64x96",
        "--crops", "64x96,96x128", "--batch_size", "4", "--pretrained", "none", "--device", "cpu",
        "--threads", "2", "--workers", "2", "--intrinsics", "104,104,63.5,47.5", *more,
    ]  # fmt: skip


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["model"]


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------- schedule


def test_a_checkpoint_can_hold_all_flags():
    """As JSON: a folder of furniture is where something lies, and stays out."""
    kept = train.run.lasting_flags(vars(train.parse(["--data", "rooms:8", "--furniture", "here"])))
    assert kept["data"] == "rooms:8" and "furniture" not in kept


@pytest.mark.parametrize(
    "step, printed", [(0, 4.0e-7), (750, 1.99292e-3), (1500, 3.97087e-3), (69550, 2.60766e-3)]
)
def test_schedule_hits_the_released_values(step, printed):
    assert train.learning_rate(step, 139_100, RELEASED) == pytest.approx(printed, rel=3e-6)


def test_schedule_ends_at_a_quarter_and_warms_up_a_tenth_of_a_short_run():
    assert train.learning_rate(139_099, 139_100, RELEASED) == pytest.approx(1e-3, rel=1e-3)
    short = [train.learning_rate(t, 100, RELEASED) for t in range(100)]
    assert max(range(100), key=short.__getitem__) == 10
    assert short[5] == pytest.approx(0.5 * (3e-3 * 0.95**0.9 + 1e-3), rel=1e-3)


# ----------------------------------------------------------------------------------------- teacher


def test_a_teachers_recipe_is_the_released_one_and_flags_win():
    teacher = train.parse(["--model", "swin_t"])
    assert (teacher.lr, teacher.weight_decay, teacher.min_lr_ratio) == (2e-4, 0.01, 0.01)
    assert (teacher.warmup, teacher.warmup_ratio, teacher.epochs) == (1000, 1e-3, 200)
    assert teacher.weights == (1, 0.2, 2.5, 0.6) and teacher.betas == (0.9, 0.999)
    assert (teacher.drop_path, teacher.optimizer, teacher.batch_size) == (0.3, "adamw", 16)
    assert str(teacher.out) == "runs/teacher"
    given = train.parse(["--model", "swin_t", "--lr", "1e-3", "--weights", "1,0,0,0"])
    assert given.lr == 1e-3 and given.weights == (1, 0, 0, 0) and given.weight_decay == 0.01
    student = train.parse([])
    assert (student.lr, student.weight_decay, student.optimizer) == (4e-3, 0, "adam")
    assert student.weights == (1, 0.25, 2.5, 0.6) and student.batch_size == 32
    assert train.TEACHER.keys() <= vars(student).keys()


def test_adamw_decays_all_but_norms_bias_tables_and_loss_weights():
    """A step without a gradient shows who is decayed: those shrink by lr * weight_decay."""
    network = model.create("swin_nano", size=(64, 96))
    objective = train.Supervised(network, losses.DepthLoss(losses.Loss(dynamic_weights=True)))
    for p in objective.parameters():
        p.grad = torch.zeros_like(p)
        p.data.fill_(1.0)
    o = train.Schedule(optimizer="adamw", lr=0.1, eps=1e-8, weight_decay=0.5)
    train.build_optimizer(objective, o).step()
    kept = {n for n, p in objective.named_parameters() if torch.equal(p, torch.ones_like(p))}
    rest = [p for n, p in objective.named_parameters() if n not in kept]
    assert all(torch.allclose(p, torch.full_like(p, 0.95)) for p in rest)
    # patch embedding 1, blocks 2 each, mergings 3, outputs 4: weight and bias; 8 bias tables
    assert len(kept) == 2 * (1 + 16 + 3 + 4) + 8 + 1
    assert all("norm" in n or "bias_table" in n or n == "loss.p" for n in kept)


def test_frozen_parameters_are_not_optimised():
    objective = train.Supervised(model.LiteDepth(), None)
    objective.network.decoder.depth.requires_grad_(False)
    for name in ("adam", "adamw"):
        made = train.build_optimizer(objective, train.Schedule(optimizer=name))
        ours = {id(p) for group in made.param_groups for p in group["params"]}
        theirs = {id(p) for p in objective.network.decoder.depth.parameters()}
        assert not ours & theirs and len(ours) + 2 == len(list(objective.parameters()))


def test_extra_data_is_trained_on_and_not_validated_on(root, tmp_path, capsys):
    write_pairs(tmp_path / "more", "train", 5, seed=7)
    few = flags(root, tmp_path / "run", "--epochs", "1", "--extra_data", str(tmp_path / "more"))
    assert train.main(few) == 0
    assert "13 pairs of" in capsys.readouterr().out
    args = json.loads((tmp_path / "run/args.json").read_text())
    assert (args["train_pairs"], args["val_pairs"], args["steps_per_epoch"]) == (13, 3, 3)
    assert train.main([*few, "--extra_share", "0.5"]) == 0  # 8 and 8 of the 5
    assert json.loads((tmp_path / "run/args.json").read_text())["steps_per_epoch"] == 4


def test_keep_start_averages_what_is_shown_and_not_what_is_trained(root, tmp_path):
    """best.pt lies on the line between start and last.pt, is what was validated, and after a stop
    the same again."""
    plain = flags(root, tmp_path / "plain", "--epochs", "2")
    assert train.main(plain) == 0
    start = tmp_path / "plain/last.pt"
    few = [*plain, "--pretrained", str(start), "--out"]
    assert train.main([*few, str(tmp_path / "alone")]) == 0
    keep = [*few, str(tmp_path / "kept"), "--keep_start", "0.75", "--val_every", "2"]
    assert train.main(keep) == 0
    a, b, c = (weights(tmp_path / f"{name}/last.pt") for name in ("plain", "alone", "kept"))
    assert all(torch.equal(b[k], c[k]) for k in b)
    mean = weights(tmp_path / "kept/best.pt")
    for k in mean:
        if mean[k].is_floating_point():
            assert torch.allclose(mean[k], 0.75 * a[k] + 0.25 * b[k], rtol=1e-4, atol=1e-5), k
    row = json.loads((tmp_path / "kept/log.jsonl").read_text().splitlines()[-1])
    source = train.take(train.parse(plain), train.Source)
    pairs = train.open_split(root, "val", source)
    network = model.load(tmp_path / "kept/best.pt")
    scored = Validator(network, pairs, source, torch.device("cpu"), tmp_path, 0)(0)
    assert row["si_rmse"] == pytest.approx(scored["si_rmse"], abs=1e-6)
    keep += ["--out", str(tmp_path / "two")]
    with pytest.MonkeyPatch.context() as patch:  # stopped after the first epoch
        patch.setattr(train.run.Progress, "epoch_done", stopped(train.run.Progress.epoch_done))
        assert train.main(keep) == 130
    assert train.main([*keep, "--resume"]) == 0
    again = weights(tmp_path / "two/best.pt")
    assert all(torch.equal(again[k], mean[k]) for k in mean)
    with pytest.raises(CheckpointError, match="best.pt: holds weights but no training state"):
        train.main([*keep, "--resume", str(tmp_path / "two/best.pt")])
    for other in ("none", "--decoder", "1x1"), ("auto", "--decoder", "1x1"):
        with pytest.raises(UserError, match="a trained one here.*none: from|encoder from weights"):
            train.main([*keep, "--pretrained", *other])


def test_finetune_counts_steps_and_each_of_its_flags_may_be_given(root, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "FINETUNE_STEPS", 5)
    few = flags(root, tmp_path / "run", "--finetune", "--pretrained", "auto")
    assert train.main(few) == 0
    args = json.loads((tmp_path / "run/args.json").read_text())
    assert (args["epochs"], args["val_every"], args["keep_start"]) == (3, 1, 0.4)  # 2 steps each
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 3
    monkeypatch.setattr(train, "FINETUNE_STEPS", 9)
    assert train.main([*few, "--resume"]) == 0
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 5
    with pytest.raises(UserError, match="more than 3 epochs are done: give --epochs"):
        train.main([*few, "--batch_size", "2", "--resume"])
    given = train.parse([*few, "--epochs", "7", "--keep_start", "0", "--min_lr_ratio", "1"])
    assert (given.epochs, given.keep_start, given.min_lr_ratio, given.lr) == (7, 0, 1, 4e-3)
    assert train.parse(["--finetune"]).crops == ((432, 576), (456, 608), (480, 640))
    teacher = train.parse([*few, "--model", "swin_nano"])
    assert (teacher.optimizer, teacher.keep_start, teacher.epochs) == ("adamw", 0.4, None)


def test_keep_start_needs_validation(root, tmp_path):
    with pytest.raises(UserError, match="--keep_start makes best.pt, which needs --val_split"):
        train.main(flags(root, tmp_path, "--finetune", "--val_split", "none"))


def test_flags_that_mean_nothing_together_are_refused(root, tmp_path):
    with pytest.raises(UserError, match="--extra_share is that of --extra_data"):
        train.main(flags(root, tmp_path, "--extra_share", "0.5"))
    with pytest.raises(UserError, match="millimetres: it needs --depth_scale 1000"):
        train.main(flags(root, tmp_path, "--extra_data", "rooms:4", "--depth_scale", "5000"))


def test_short_epochs_are_not_saved_one_by_one(root, tmp_path, monkeypatch):
    """But their log is whole, also after a stop."""
    saved, save = [], train.run.Progress.save
    noted = lambda self, name="last.pt": (saved.append(self.epoch), save(self, name))  # noqa: E731
    monkeypatch.setattr(train.run.Progress, "save", noted)
    few = flags(root, tmp_path / "run", "--val_split", "none", "--epochs", "5")
    monkeypatch.setattr(train.run, "SHORT", 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.run.Progress, "epoch_done", stopped(train.run.Progress.epoch_done, 3))
        assert train.main(few) == 130
    assert saved == [1, 3] and [row["epoch"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    monkeypatch.setattr(train.run, "SHORT", 0)
    assert train.main([*few, "--resume"]) == 0
    assert saved == [1, 3, 4, 5] and len(rows(tmp_path / "run")) == 5


def stopped(real, after=1):
    """Progress.epoch_done with a Ctrl-C in it, at the end of that many epochs."""

    def call(self, *args, **named):
        self._signal = signal.SIGINT * (self.epoch + 1 == after)
        return real(self, *args, **named)

    return call


def test_a_teacher_trains_and_says_what_is_next(root, tmp_path, capsys):
    more = ("--epochs", "1", "--model", "swin_nano", "--window", "5", "--drop_path", "0.1")
    assert train.main(flags(root, tmp_path, *more)) == 0
    out = capsys.readouterr().out
    assert f"distill.py --data {root} --teacher {tmp_path / 'best.pt'}" in out
    teacher = model.load(tmp_path / "best.pt")
    assert teacher.model_args["model"] == "swin_nano" and teacher.encoder.window == 5
    assert teacher.mean.tolist() == pytest.approx([123.675, 116.28, 103.53])
    with pytest.raises(UserError, match="another network.*--window 5"):
        train.main([*flags(root, tmp_path, *more), "--resume", "--window", "7"])


# -------------------------------------------------------------------------------------- trajectory

# Ten steps at 480x640, batch 4, seed 2, lr 3e-5: one and two threads agree on them to 5e-5. At a
# larger learning rate, or where a triplet sits on a threshold of Eq. 9's filter, a trajectory from
# random weights is chaotic.
GOLDEN = [
    6.80849, 6.96860, 6.92463, 7.50625, 6.72624, 7.85335, 6.89306, 6.54535, 5.53194, 6.57016
]  # fmt: skip


def objective_on(*command):
    """Objective and loader of a command line."""
    args = train.make_parser().parse_args([*command, "--cache", "none", "--val_split", "none"])
    how = torch.device("cpu"), train.start_network, train.Supervised, None
    return train.prepare(args, *how)[:2]


def steps(objective, loader, count, rate):
    """Yields the loss and the terms of `count` Adam steps of the paper's; rate: step -> lr."""
    optimizer = torch.optim.Adam(objective.parameters(), lr=4e-3, eps=1e-3)
    done = epoch = 0
    while True:
        for batch in loader.epoch(epoch):
            if done == count:
                return
            optimizer.param_groups[0]["lr"] = rate(done)
            loss, terms = objective(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 35)
            optimizer.step()
            yield float(loss.detach()), terms
            done += 1
        epoch += 1


def ten_losses(root: Path, out: Path, *more: str) -> list[float]:
    """The loss of each step of a run of `main`, five epochs of two steps."""
    seen = []
    real = losses.DepthLoss.forward

    def spy(self, *args):
        loss, report = real(self, *args)
        seen.append(float(loss.detach()))
        return loss, report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses.DepthLoss, "forward", spy)
        command = ["--data", str(root), "--out", str(out), "--epochs", "5", "--batch_size", "4",
                   "--seed", "2", "--pretrained", "none", "--device", "cpu", "--threads", "2",
                   "--workers", "2", "--val_split", "none", *more]  # fmt: skip
        assert train.main(command) == 0
    return seen


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    write_pairs(root, "train", 8, size=(480, 640))
    return root


PATHS = {
    "plain": "--loss_form plain --cache none --kernels torch",
    "fast": "--loss_form cells --kernels cpp",
    "twins": "--loss_form cells --cache none --kernels torch",
}


@pytest.mark.parametrize("path", PATHS)
def test_golden_ten_steps(large, tmp_path, path):
    """The loss of ten steps, kept: any change of network, losses, pipeline or loop shows here."""
    command = ["--crop_batch", "pad", *PATHS[path].split()]
    ours = ten_losses(large, tmp_path / "run", "--lr", "3e-5", *command)
    np.testing.assert_allclose(ours, GOLDEN, rtol=1e-3)


def test_golden_steps_hold_the_learning_too(large, tmp_path):
    ours = ten_losses(large, tmp_path / "run", "--lr", "3e-5", "--crop_batch", "pad")
    frozen = ten_losses(large, tmp_path / "frozen", "--lr", "1e-12", "--crop_batch", "pad")
    assert max(abs(a / b - 1) for a, b in zip(frozen, ours)) > 0.02  # it holds the steps as well


def test_compile_compiles_the_objective_for_each_size(root, tmp_path, monkeypatch):
    """Without code generation, which takes a minute: what is traced is run as it is."""
    asked = []

    def traced(self, *args, **how):
        asked.append(how)
        self._compiled_call_impl = torch.compile(
            self._call_impl, backend="aot_eager", fullgraph=True, dynamic=False
        )

    command = flags(root, tmp_path / "plain", "--epochs", "2", "--val_split", "none")
    command += ["--crop_batch", "size", "--kernels", "torch", "--lr", "1e-5"]
    assert train.main(command) == 0
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    assert train.main([*command, "--out", str(tmp_path / "run"), "--compile"]) == 0
    assert asked == [{"mode": None, "dynamic": False}]
    for one, two in zip(rows(tmp_path / "plain"), rows(tmp_path / "run"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


def test_the_gpus_data_needs_a_gpu(root, tmp_path):
    with pytest.raises(UserError, match="--data_device cuda: the network is on the CPU"):
        train.main(flags(root, tmp_path / "run", "--data_device", "cuda"))


def test_the_pack_is_made_once_beside_the_data(tmp_path, capsys):
    write_pairs(tmp_path, "train", 8)
    few = flags(tmp_path, tmp_path / "run", "--epochs", "1", "--val_split", "none")
    for said in ("(built in", ""):
        assert train.main(few) == 0
        lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("cache: ")]
        assert said in lines[-1] and ("built" in lines[-1]) == bool(said)
    (pack,) = (tmp_path / ".litedepth_cache").glob("*/depth.npy")
    assert pack.stat().st_size > 8 * 2 * 96 * 128
    elsewhere = [*few, "--cache", str(tmp_path / "there")]
    assert train.main(elsewhere) == 0 and list((tmp_path / "there").glob("*/rgb.npy"))
    assert train.main([*few, "--cache", "none"]) == 0
    assert "cache: " not in capsys.readouterr().out.split("there")[-1]
    before = pack.read_bytes()
    write_pairs(tmp_path, "train", 8, seed=1)  # the same names, other pictures
    assert train.main(few) == 0
    assert "(built in" in capsys.readouterr().out and pack.read_bytes() != before


def test_no_seed_dies(root):
    """Ten seeds, thirty steps at the full learning rate: the last ReLU never goes dark."""
    for seed in range(10):
        objective, loader = objective_on(*flags(root, Path("x"), "--seed", str(seed)))
        dead = [float(terms["dead"]) for _, terms in steps(objective, loader, 30, lambda _: 4e-3)]
        assert not any(dead), (seed, dead)
        loader.close()


def test_fit_stops_when_the_prediction_is_dead(root, tmp_path, monkeypatch):
    build = model.LiteDepth.__init__

    def dead(self, **kwargs):
        build(self, **kwargs)
        self.decoder.depth.bias.data.fill_(-1000.0)

    monkeypatch.setattr(model.LiteDepth, "__init__", dead)
    with pytest.raises(UserError, match="predicted 0 m everywhere.*--seed"):
        train.main(flags(root, tmp_path / "run", "--epochs", "30"))
    assert len(rows(tmp_path / "run")) == DEAD_BATCHES // 2 - 1


def test_fit_stops_when_the_loss_is_not_finite(root, tmp_path, monkeypatch):
    monkeypatch.setattr(losses, "L_silog_cells", lambda d_hat, *_, **__: d_hat.sum() * math.nan)
    with pytest.raises(UserError, match="not finite"):
        train.main(flags(root, tmp_path / "run", "--epochs", "2"))


# -------------------------------------------------------------------------------------- run folder


def test_run_folder_explains_itself(root, tmp_path):
    out = tmp_path / "deep/run"
    assert train.main(flags(root, out, "--epochs", "2", "--dynamic_weights")) == 0
    names = {p.name for p in out.iterdir()} - {".run.lock"}
    assert names == {"last.pt", "best.pt", "log.jsonl", "args.json", "preview.png"}
    log = rows(out)
    assert [r["epoch"] for r in log] == [1, 2] and log[1]["step"] == 4
    for key in ("lr", "images_per_s", "loss", "silog", "grad", "vnl", "robust", "w_silog", "w_grad",
                "w_vnl", "w_robust", "si_rmse", "rmse", "log10", "rel", "delta1"):  # fmt: skip
        assert math.isfinite(log[0][key]), key
    assert log[0]["lr"] == pytest.approx(train.learning_rate(1, 4, RELEASED))
    args = json.loads((out / "args.json").read_text())
    assert args["epochs"] == 2 and args["kernels"] == "cpp" and args["versions"]["torch"]
    assert args["initial_weights"] == "none: from scratch" and "git_commit" in args
    preview = cv2.imread(str(out / "preview.png"))
    assert preview.shape[1] > 3 * 128 * 0.5 and preview.std() > 10


def test_best_is_the_lowest_si_rmse(root, tmp_path, monkeypatch):
    scores = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(Validator, "__call__", lambda self, epoch: {
        "si_rmse": next(scores), "rmse": 1.0})  # fmt: skip
    train.main(flags(root, tmp_path, "--epochs", "3"))
    assert read_checkpoint(tmp_path / "best.pt")["epoch"] == 2
    last = read_checkpoint(tmp_path / "last.pt")
    assert last["epoch"] == 3 and last["best"] == 0.3


def test_an_earlier_run_is_moved_aside_not_overwritten(root, tmp_path, capsys):
    out = tmp_path / "run"
    train.main(flags(root, out, "--epochs", "1"))
    first = (out / "last.pt").read_bytes()
    train.main(flags(root, out, "--epochs", "1", "--seed", "1"))
    assert (tmp_path / "run.1/last.pt").read_bytes() == first != (out / "last.pt").read_bytes()
    assert "moved to" in capsys.readouterr().err


def test_dry_run_trains_nothing_and_draws_a_batch(root, tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main(flags(root, out, "--dry_run")) == 0
    assert {p.name for p in out.iterdir()} == {"dry_run.png"}
    assert "387,953 parameters" in capsys.readouterr().out
    picture = cv2.imread(str(out / "dry_run.png"))
    assert picture.shape == (26 + 4 * 128, 4 * 192, 3)
    grey = (picture == 150).all(-1)
    assert grey[:, 192:384].any()  # holes


# ------------------------------------------------------------------------------ resume and signals


@pytest.mark.parametrize(
    "more",
    [
        ["--dynamic_weights", "--robust_adaptive"], ["--crop_batch", "size", "--cache", "none"],
        ["--model", "swin_nano"],
    ],
    ids=["student", "student, fast", "teacher"],
)  # fmt: skip
def test_resume_is_bit_exact(root, tmp_path, more):
    """Two epochs and two more, or four at once: the same bits, also of Adam and of the log. The
    teacher's drop path draws from torch's generator."""
    train.main(flags(root, tmp_path / "once", "--epochs", "4", *more))
    stop = tmp_path / "stopped"
    real = Validator.__call__

    def interrupt(self, epoch):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validator, "__call__", interrupt)
        assert train.main(flags(root, stop, "--epochs", "4", *more)) == 143
    assert [r["epoch"] for r in rows(stop)] == [1, 2]
    with pytest.MonkeyPatch.context() as patch:  # nothing is asked on resume
        patch.setattr(model, "load_pretrained", lambda *_: pytest.fail("asked for weights"))
        assert train.main(flags(root, stop, "--epochs", "4", "--resume", *more)) == 0
    assert same(tmp_path / "once/last.pt", stop / "last.pt")
    a, b = (read_checkpoint(p / "last.pt") for p in (tmp_path / "once", stop))
    for i, moments in a["optimizer"]["state"].items():
        assert all(torch.equal(v, b["optimizer"]["state"][i][k]) for k, v in moments.items())
    assert all(torch.equal(v, b["objective"][k]) for k, v in a["objective"].items())
    timing = ("images_per_s", "val_s")
    for x, y in zip(rows(tmp_path / "once"), rows(stop), strict=True):
        assert {k: v for k, v in x.items() if k not in timing} == {
            k: v for k, v in y.items() if k not in timing
        }


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_in_mid_epoch_and_resume_bit_exact(root, tmp_path, number, code):
    """A real process is hit in the middle of an epoch; what follows equals a run left alone."""
    write_pairs(tmp_path / "pairs", "train", 40, seed=1)
    few = flags(tmp_path / "pairs", tmp_path / "run", "--epochs", "9", "--val_split", "none")
    process = subprocess.Popen(
        [sys.executable, "train.py", *few], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 60
    while not (tmp_path / "run/last.pt").exists() and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(number)  # in the second epoch or soon after
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    again = re.search("to go on: python (.*)", err)[1]
    assert shlex.split(again) == ["train.py", *few, "--resume"]
    state = read_checkpoint(tmp_path / "run/last.pt")
    assert state["epoch"] < 9
    assert train.main([*few, "--resume"]) == 0
    whole = flags(tmp_path / "pairs", tmp_path / "whole", "--epochs", "9", "--val_split", "none")
    assert train.main(whole) == 0
    assert same(tmp_path / "run/last.pt", tmp_path / "whole/last.pt"), state["batch"]
    assert rows(tmp_path / "run")[-1]["loss"] == rows(tmp_path / "whole")[-1]["loss"]


def test_resume_after_a_stop_on_an_epochs_last_step(root, tmp_path, monkeypatch, capsys):
    """The signal falls between the last step and the end of the epoch; still the same bits. The
    line to go on with resumes this run, not the one that it went on from itself."""
    few = flags(root, tmp_path / "run", "--epochs", "3", "--val_split", "none")
    real, calls = losses.DepthLoss.forward, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 2:  # two steps an epoch
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(losses.DepthLoss, "forward", stop)
        patch.setattr(sys, "argv", ["train.py", *few, "--resume", "an earlier/last.pt"])
        assert train.main(few) == 130
    again = re.search("to go on: python (.*)", capsys.readouterr().err)[1]
    args = train.make_parser().parse_args(shlex.split(again)[1:])
    assert (args.resume, args.data, args.out) == ("auto", str(root), tmp_path / "run")
    state = read_checkpoint(tmp_path / "run/last.pt")
    assert (state["epoch"], state["batch"]) == (0, 2)
    assert train.main([*few, "--resume"]) == 0
    train.main(flags(root, tmp_path / "whole", "--epochs", "3", "--val_split", "none"))
    assert same(tmp_path / "run/last.pt", tmp_path / "whole/last.pt")
    for x, y in zip(rows(tmp_path / "run"), rows(tmp_path / "whole"), strict=True):
        assert x["loss"] == y["loss"] and x["lr"] == y["lr"]


def test_resume_names_other_flags_and_refuses_another_network(root, tmp_path, capsys):
    few = flags(root, tmp_path / "run", "--epochs", "1")
    train.main(few)
    with pytest.raises(UserError, match="another network.*--decoder mix"):
        train.main([*few, "--resume", "--decoder", "1x1"])
    before = (tmp_path / "run/args.json").read_bytes()
    with pytest.raises(UserError, match="another loss, network or optimizer"):
        train.main([*few, "--resume", "--epochs", "2", "--dynamic_weights"])
    assert (tmp_path / "run/args.json").read_bytes() == before
    capsys.readouterr()
    assert train.main([*few, "--resume", "--epochs", "2", "--lr", "1e-3"]) == 0
    assert "--epochs 1, --lr 0.004" in capsys.readouterr().err
    assert rows(tmp_path / "run")[-1]["lr"] < 1e-3


@pytest.mark.parametrize("pairs, batch_size, steps", [(8, 8, 1), (8, 2, 4), (4, 4, 1), (3, 4, 1)])
def test_a_resumed_run_counts_todays_steps(root, tmp_path, capsys, pairs, batch_size, steps):
    """Two epochs of two steps are done, and go on with other pairs or batches."""
    few, out = flags(root, tmp_path / "run", "--val_split", "none"), tmp_path / "run"
    train.main([*few, "--epochs", "2"])
    write_pairs(tmp_path / "pairs", "train", pairs)
    again = ["--data", str(tmp_path / "pairs"), "--batch_size", str(batch_size), "--resume"]
    before = (out / "args.json").read_bytes()
    with pytest.raises(UserError, match="more epochs done: give --epochs 2 or more"):
        train.main([*few, *again, "--epochs", "1"])
    assert (out / "args.json").read_bytes() == before
    capsys.readouterr()
    assert train.main([*few, *again, "--epochs", "4"]) == 0
    assert f"on after epoch 2, now {steps} steps in each\n" in capsys.readouterr().err
    schedule = train.Schedule(epochs=4)
    for epoch, row in zip((3, 4), rows(out)[2:], strict=True):
        assert (row["epoch"], row["step"]) == (epoch, epoch * steps)
        assert row["lr"] == train.learning_rate(row["step"] - 1, 4 * steps, schedule)
    assert train.main([*few, *again, "--epochs", "4"]) == 0  # nothing is left to do
    assert len(rows(out)) == 4


def test_an_epoch_under_way_with_other_batches_is_done_anew(root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    few = flags(root, out, "--epochs", "3", "--val_split", "none")
    real, calls = losses.DepthLoss.forward, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(losses.DepthLoss, "forward", stop)
        assert train.main(few) == 130
    state = read_checkpoint(out / "last.pt")
    assert [state[k] for k in ("epoch", "batch", "step")] == [1, 1, 3]
    assert train.main([*few, "--resume", "--batch_size", "8"]) == 0
    assert "on after epoch 1, now 1 steps in each\n" in capsys.readouterr().err
    assert [(r["epoch"], r["step"]) for r in rows(out)] == [(1, 2), (2, 2), (3, 3)]
    assert rows(out)[1]["loss"] < rows(out)[0]["loss"]  # the mean of one step, not the sum of two


@pytest.mark.parametrize("more, kept", [
    ([], True), (["--batch_size", "8"], True), (["--data", "copy"], False),
    (["--val_split", "train"], False), (["--max_depth", "80"], False),
    (["--image_size", "64x96", "--crops", "64x96"], False),
])  # fmt: skip
def test_a_best_of_other_pictures_is_no_best(root, tmp_path, monkeypatch, capsys, more, kept):
    """A si-RMSE that nothing reaches stays the best while the validation stays the same."""
    few, out = flags(root, tmp_path / "run"), tmp_path / "run"
    train.main([*few, "--epochs", "1"])
    shutil.copytree(root, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    best = (out / "best.pt").read_bytes()
    torch.save(read_checkpoint(out / "last.pt") | {"best": 1e-3}, out / "last.pt")
    capsys.readouterr()
    assert train.main([*few, *more, "--epochs", "2", "--resume"]) == 0
    assert ((out / "best.pt").read_bytes() == best) == kept
    assert ("best.pt starts anew" in capsys.readouterr().err) != kept


def test_resume_of_another_folders_run_leaves_that_folder_alone(root, tmp_path):
    train.main(flags(root, tmp_path / "a", "--epochs", "1"))
    train.main(flags(root, tmp_path / "b", "--epochs", "1", "--seed", "1"))
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    last = str(tmp_path / "a/last.pt")
    train.main(flags(root, tmp_path / "b", "--epochs", "2", "--resume", last))
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    assert (tmp_path / "b.1/last.pt").exists() and (tmp_path / "b/best.pt").exists()
    assert [r["epoch"] for r in rows(tmp_path / "b")] == [2]


def test_a_validation_picture_that_breaks_costs_no_epoch(root, tmp_path, monkeypatch):
    def fail(self, epoch):
        raise DataError("gone")

    monkeypatch.setattr(Validator, "__call__", fail)
    with pytest.raises(DataError):
        train.main(flags(root, tmp_path, "--epochs", "2"))
    state = read_checkpoint(tmp_path / "last.pt")
    # All steps of the epoch are done; what is left of it is the validation.
    assert (state["step"], state["epoch"], state["batch"]) == (2, 0, 2)


def test_checkpoints_remember_the_picture_size(root, tmp_path):
    train.main(flags(root, tmp_path, "--epochs", "1"))
    assert read_checkpoint(tmp_path / "best.pt")["image_size"] == [96, 128]


def test_names_that_are_no_text(tmp_path):
    """Latin-1 bytes, blanks and line ends in all names: a real process with a strict stdout trains
    and is resumed, and what it prints to be pasted names these very files in a shell."""
    plain = tmp_path / "plain"
    write_pairs(plain, "train", 2)
    write_pairs(plain, "val", 1)
    for picture in plain.glob("*/*/*.png"):
        picture.rename(picture.with_name(os.fsdecode(b"K\xfcche\n %d " + picture.name.encode())))
    root, out = (tmp_path / os.fsdecode(name) for name in (b"My S\xe9t", b"'R\xfcn'\n"))
    plain.rename(root)
    for more in (["--epochs", "1"], ["--epochs", "2", "--resume"]):
        done = subprocess.run(
            [sys.executable, "train.py", *flags(root, out, *more)], cwd=ROOT, capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    told = done.stdout.decode()
    assert f"pairs of {tmp_path}/My S\\udce9t" in told
    score = told.partition("next: python ")[2].partition(", python ")[0]
    words = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {score}"]).split(b"\0")
    files = bytes(root), bytes(out / "best.pt")
    assert words[:-1] == [b"evaluate.py", b"--data", files[0], b"--model", files[1]]
    assert read_checkpoint(out / "last.pt")["flags"]["data"] == str(root)


def test_flags_that_do_not_go_together_are_one_line(root, tmp_path):
    for more, message in (
        (["--sync_bn"], "torchrun"),
        (["--size", "100x160"], "multiples of 32"),
        (["--robust_adaptive", "--robust_alpha", "2"], "adaptive"),
    ):
        with pytest.raises(UserError, match=message):
            train.main(flags(root, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_bare_resume_starts_afresh_and_a_named_one_insists(root, tmp_path, capsys):
    assert train.main(flags(root, tmp_path / "run", "--epochs", "1", "--resume")) == 0
    assert "starting afresh" in capsys.readouterr().err
    model.save(tmp_path / "weights.pt", model.load(tmp_path / "run/last.pt"))
    with pytest.raises(CheckpointError, match="no training state.*--pretrained"):
        train.main(flags(root, tmp_path / "run", "--resume", str(tmp_path / "weights.pt")))
    with pytest.raises(CheckpointError, match="nothing.pt: no such"):
        train.main(flags(root, tmp_path / "run", "--resume", str(tmp_path / "nothing.pt")))


def test_rebuilt_network_predicts_as_the_trained_one(root, tmp_path):
    train.main(flags(root, tmp_path, "--epochs", "1", "--decoder", "3x3", "--upsample", "bilinear"))
    network = model.load(tmp_path / "last.pt")
    assert network.model_args["decoder"] == "3x3" and network.mode == "bilinear"
    assert network.size == (64, 96) and not network.training


# --------------------------------------------------------------------------- autocast and processes


def test_amp_trains_with_float32_losses(root, tmp_path):
    assert train.main(flags(root, tmp_path, "--epochs", "1", "--amp")) == 0
    assert math.isfinite(rows(tmp_path)[0]["loss"])


def test_two_processes_end_with_the_same_parameters(root, tmp_path):
    """torchrun, gloo: parameters and learned loss weights agree bit for bit over the ranks."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os, sys, torch, train\n"
        "fit = train.fit\n"
        "def spy(objective, *a, **k):\n"
        "    log = fit(objective, *a, **k)\n"
        "    name = sys.argv[1] + os.environ['RANK'] + '.pt'\n"
        "    torch.save([p.detach() for p in objective.parameters()], name)\n"
        "    return log\n"
        "train.fit = spy\n"
        "sys.exit(train.main(sys.argv[2:]))\n"
    )
    command = flags(root, tmp_path / "run", "--epochs", "2", "--dynamic_weights")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
         str(29500 + os.getpid() % 2000), str(script), str(tmp_path / "rank"), *command],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *sys.path])),
            "OMP_NUM_THREADS": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"rank{r}.pt") for r in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert rows(tmp_path / "run")[-1]["epoch"] == 2
