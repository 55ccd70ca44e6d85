"""Sec. 3.4: Eq. 12 and 13, the rows of Table 6, the fixed teacher, another model's depth maps.

Random features against a slow reference: test_properties.py.
"""

import dataclasses
import functools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import test_losses
import torch

import distill
import losses
import model
import train
from plumbing.checkpoints import read_checkpoint
from plumbing.files import run_main
from plumbing.swin import SWIN, Swin

ROOT = Path(__file__).resolve().parent.parent
EQ_12 = {
    "mse": functools.partial(distill.L_affinity, distance="mse"),
    "l1": functools.partial(distill.L_affinity, distance="l1"),
    "gram": distill.L_affinity_gram,
}
ALL = EQ_12 | {"l2": distill.L_l2, "channel": functools.partial(distill.L_channel, tau=4.0)}
every_loss = pytest.mark.parametrize("name", ALL)
every_method = pytest.mark.parametrize("method", distill.W_D)
SIZE = (64, 96)
FIXED = ("decoder.depth.weight", "decoder.depth.bias")
one_thread = test_losses.one_thread


@pytest.fixture(scope="module")
def root(make_rgbd, tmp_path_factory) -> Path:
    return make_rgbd(tmp_path_factory.mktemp("pairs"), train=8, val=1)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "best.pt"
    model.save(path, model.Teacher("swin_nano", size=SIZE, drop_path=0.3))
    return path


@pytest.fixture(scope="module")
def stage_1(root, tmp_path_factory) -> Path:
    """The student of a run of one epoch."""
    out = tmp_path_factory.mktemp("stage_1")
    assert train.main(command(root, out, "--epochs", "1")) == 0
    return out / "last.pt"


def command(root: Path, out: Path, *more: object) -> list[str]:
    """A run of two steps an epoch."""
    few = "--image_size 96x128 --size 64x96 --crops 64x96,96x128 --batch_size 4 --pretrained none"
    few += " --device cpu --threads 1 --workers 1 --intrinsics 104,104,63.5,47.5 --val_split none"
    return ["--data", str(root), "--out", str(out), *few.split(), *map(str, more)]


def run(root: Path, out: Path, teacher: Path, *more: object) -> None:
    few = command(root, out, "--teacher", teacher, "--teacher_dtype", "fp32", "--epochs", "1")
    assert distill.main([*few, *map(str, more)]) == 0


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["model"]


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


class FirstStep(Exception):
    """Carries what the first step of a run was given."""


def first_step(root: Path, teacher: Path | None, *more: object) -> tuple[distill.Distill, dict]:
    """The objective of a command and its first batch."""
    teachers = ["--teacher", teacher, "--teacher_dtype", "fp32"] if teacher else []

    def stop(self, batch):
        raise FirstStep(self, {k: v.clone() for k, v in batch.items()})

    with pytest.MonkeyPatch.context() as patch, pytest.raises(FirstStep) as given:
        patch.setattr(distill.Distill, "forward", stop)
        out = root.parent / "first_step"
        distill.main(command(root, out, "--student", "none", *teachers, *more))
    return given.value.args


def with_flags(objective: distill.Distill, **changes: object) -> distill.Distill:
    """The same student, loss and teacher under other flags of Sec. 3.4."""
    o = dataclasses.replace(objective.o, **changes)
    return distill.Distill(objective.network, objective.loss, objective.teacher, o)


def random_features(shape_s, shape_t, seed=0, dtype=torch.float32):
    """Student's, teacher's, and a mask: one picture with holes, one full, the others empty."""
    rng = np.random.default_rng(seed)
    F_s, F_t = (torch.tensor(rng.normal(size=s), dtype=dtype) for s in (shape_s, shape_t))
    M = torch.zeros(shape_s[0], 1, *shape_s[2:], dtype=dtype)
    M[0] = torch.tensor(rng.random(shape_s[2:]) < 0.6)
    M[1:2] = 1
    return F_s, F_t, M


# ------------------------------------------------------------------------------------------ Eq. 12

# Unit features of four positions, and with them every affinity off the diagonal:
#           01    02    03   12    13    23
# student    0   0.6    -1  0.8     0  -0.6
# teacher    1     0     0    0     0   0.8
HAND_S = [(3, 0), (0, 2), (3, 4), (-1, 0)]
HAND_T = [(2, 0, 0, 0, 0), (5, 0, 0, 0, 0), (0, 3, 0, 0, 4), (0, 0, 0, 0, 1)]
MSE = 2 * (1 + 0.36 + 1 + 0.64 + 0 + 1.96) / 16, 2 * (1 + 0.36 + 0.64) / 9


@pytest.mark.parametrize(
    "name, whole, without_last",
    [("l1", 2 * (1 + 0.6 + 1 + 0.8 + 0 + 1.4) / 16, 2 * (1 + 0.6 + 0.8) / 9),
     ("mse", *MSE), ("gram", *MSE)],
)  # fmt: skip
def test_eq_12_by_hand_with_two_channels_against_five(name, whole, without_last):
    F_s, F_t = (
        torch.tensor(positions, dtype=torch.float32).T.reshape(1, -1, 2, 2)
        for positions in (HAND_S, HAND_T)
    )
    M = torch.ones(1, 1, 2, 2)
    assert float(EQ_12[name](F_s, F_t, M)) == pytest.approx(whole, rel=1e-6)
    M[..., 1, 1] = 0
    assert float(EQ_12[name](F_s, F_t, M)) == pytest.approx(without_last, rel=1e-6)


@pytest.mark.parametrize("name", ["mse", "gram"])
def test_eq_12_hits_the_released_value(name):
    torch.manual_seed(0)
    F_s, F_t = torch.randn(2, 8, 4, 5), torch.randn(2, 48, 4, 5)
    assert float(EQ_12[name](F_s, F_t, torch.ones(2, 1, 4, 5))) == pytest.approx(0.141383, abs=5e-7)


@pytest.mark.parametrize(
    "shape, C_t",
    [((3, 8, 4, 5), 48), ((2, 72, 4, 6), 768), ((2, 24, 8, 12), 192), ((1, 3, 1, 1), 2)],
)
@pytest.mark.parametrize("noise", [None, 1e-3])
def test_gram_form_equals_the_pairs(shape, C_t, noise):
    """In value and gradient, also where the three terms cancel to a millionth of themselves."""
    F_s, F_t, M = random_features(shape, (shape[0], C_t, *shape[2:]), dtype=torch.float64)
    if noise:
        F_t = F_s
        F_s = F_t + noise * torch.randn(shape, generator=torch.manual_seed(1), dtype=F_s.dtype)
    outcome = []
    for loss, kind in ((EQ_12["mse"], torch.float64), (EQ_12["gram"], torch.float32)):
        f_s = F_s.float().to(kind).requires_grad_()
        value = loss(f_s, F_t.float().to(kind), M.to(kind))
        value.backward()
        outcome.append((float(value.detach()), f_s.grad.double()))
    (value, gradient), (gram, its) = outcome
    assert gram == pytest.approx(value, rel=1e-6, abs=1e-14)
    assert float((its - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-12


# ------------------------------------------------------------------------------ holes and gradients


def loss_and_gradient(loss, F_s, F_t, M):
    F_s = F_s.clone().requires_grad_()
    value = loss(F_s, F_t, M)
    value.backward()
    return value.detach(), F_s.grad


@every_loss
def test_a_batch_without_truth_is_0_and_attached(name):
    F_s, F_t, M = random_features((2, 6, 4, 5), (2, 6, 4, 5))
    value, gradient = loss_and_gradient(ALL[name], F_s, F_t, 0 * M)
    assert value == 0 and torch.equal(gradient, torch.zeros_like(F_s))


@every_loss
@pytest.mark.parametrize("other", [1e30, 0.0])
def test_features_in_holes_change_nothing(name, other):
    F_s, F_t, M = random_features((3, 6, 4, 5), (3, 6, 4, 5))
    value, gradient = loss_and_gradient(ALL[name], F_s, F_t, M)
    changed = torch.where(M > 0, F_s, other), torch.where(M > 0, F_t, -other)
    value_2, gradient_2 = loss_and_gradient(ALL[name], *changed, M)
    assert torch.equal(value, value_2) and torch.equal(gradient, gradient_2)
    holes = (M == 0).expand_as(F_s)
    assert (gradient[holes] == 0).all() and (gradient[~holes] != 0).any()


@pytest.mark.parametrize("hole", [math.nan, -1.0, math.inf, -math.inf])
@every_method
def test_what_a_hole_of_the_truth_holds_changes_nothing(method, hole):
    objective = distill.Distill(None, None, None, distill.Distillation(method=method))
    maps = [torch.randn(2, 6, *s) for s in ((2, 3), (4, 6), (8, 12))]
    d_low = torch.rand(2, 1, 8, 12) + 0.5
    holes = torch.rand(d_low.shape) < 0.7
    holes[..., :4, :4] = True
    zero, other, full = (
        objective.distances(maps, [f.flip(0) for f in maps], d)
        for d in (d_low.masked_fill(holes, 0), d_low.masked_fill(holes, hole), d_low)
    )
    assert zero.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in zero.items())
    assert all(v != full[k] for k, v in zero.items())  # the coarsest level has holes as well


@every_loss
def test_a_feature_of_zeros_has_a_finite_gradient(name):
    F_s, F_t, M = random_features((2, 6, 4, 5), (2, 6, 4, 5))
    F_s[1, :, 2, 2] = 0
    value, gradient = loss_and_gradient(ALL[name], F_s, F_t, M)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()


def test_channel_wise_by_hand():
    """One channel, two positions, tau 2: student (1/10, 9/10), teacher (1/2, 1/2)."""
    F_s = torch.tensor([0, 2 * math.log(9)]).view(1, 1, 1, 2)
    F_t = torch.tensor([3.0, 3.0]).view(1, 1, 1, 2)
    kl = 0.5 * math.log(0.5 / 0.1) + 0.5 * math.log(0.5 / 0.9)  # teacher || student
    L = distill.L_channel(F_s, F_t, torch.ones(1, 1, 1, 2), 2.0)
    assert float(L) == pytest.approx(4 * kl, rel=1e-5)


@every_method
def test_features_in_bfloat16_are_compared_in_float32(method):
    F_s, F_t, M = random_features((2, 6, 8, 12), (2, 6, 8, 12))
    o = distill.Distillation(method=method, affinity="l1")  # the Gram form is in double
    objective = distill.Distill(None, None, None, o)
    rough = F_s.bfloat16(), F_t.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        distances = objective.distances(*([f] * 3 for f in rough), M)
    expected = objective.compare(*(f.float() for f in rough), M)
    assert distances and all(torch.equal(v, expected) for v in distances.values())


# ------------------------------------------------------------------------------------------ Eq. 13


def gradient(student, loss) -> torch.Tensor:
    parameters = list(student.parameters())
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten()
                      for p, g in zip(parameters, grads)])  # fmt: skip


def padded_with(image, extent, mean):
    """A student's normalised image as 0..255, with `mean` beyond each extent, by loops."""
    image = image * 127.5 + 127.5
    for picture, (h, w) in zip(image, extent.tolist()):
        picture[:, h:] = mean.view(3, 1, 1)
        picture[:, :, w:] = mean.view(3, 1, 1)
    return image


def close(a, b, tolerance=1e-5) -> bool:
    return float((a - b).norm()) <= tolerance * float(b.norm())


@pytest.mark.parametrize("affinity", ["mse", "l1"])
def test_eq_13_is_the_sum_of_its_parts(root, teacher_file, affinity):
    """Loss, terms and gradient, from plain Eq. 12 on maps made apart."""
    objective, batch = first_step(root, teacher_file, "--affinity", affinity, "--w_d", "3")
    student, teacher = objective.network, model.load(teacher_file)
    depth, depth_terms = train.Supervised(student, objective.loss)(batch)
    _, F_s = student.features(batch["image"], normalized=True)
    _, F_t = teacher.features(padded_with(batch["image"], batch["extent"], teacher.mean))
    valid, parts = (batch["depth_low"] > 0).float(), {}
    for name, f_s, f_t in zip(("DeFeat2", "DeFeat3", "DeFeat4"), F_s, F_t):
        (h, w), k = f_s.shape[-2:], valid.shape[-1] // f_s.shape[-1]
        M = valid.view(-1, 1, h, k, w, k).amax((3, 5))
        parts[name] = distill.L_affinity(f_s, f_t.detach(), M, affinity)

    total, terms = objective(batch)
    for name, part in parts.items():
        assert float(terms[name]) == pytest.approx(float(part.detach()), rel=1e-4), name
    apart = sum(float(v.detach()) for v in parts.values())
    assert float(terms["distill"]) == pytest.approx(apart, rel=1e-4)
    assert float(total.detach()) == pytest.approx(float(depth.detach()) + 3 * apart, rel=1e-5)
    assert all(torch.equal(v, terms[k]) for k, v in depth_terms.items())
    assert terms.keys() - depth_terms.keys() == {"distill", *parts}
    assert not any(v.requires_grad for v in terms.values())
    expected = gradient(student, depth) + 3 * sum(gradient(student, v) for v in parts.values())
    assert close(gradient(student, total), expected)
    assert not close(gradient(student, total), gradient(student, depth), 0.05)
    total, _ = with_flags(objective, w_d=0.0)(batch)  # is stage 1
    assert torch.equal(total, depth)
    assert close(gradient(student, total), gradient(student, depth), 1e-6)


def test_the_other_rows_compare_defeat4_alone(root, teacher_file):
    objective, batch = first_step(root, teacher_file)
    teacher = objective.teacher
    F_s = objective.network.features(batch["image"], normalized=True)[1][2]
    F_t = teacher.features(padded_with(batch["image"], batch["extent"], teacher.mean))[1][2]
    M = (batch["depth_low"] > 0).float()
    for method, expected in (
        ("l2", distill.L_l2(F_s, F_t, M)), ("channel", distill.L_channel(F_s, F_t, M, 1.5))
    ):  # fmt: skip
        _, terms = with_flags(objective, method=method, tau=1.5)(batch)
        assert terms.keys() & {"DeFeat2", "DeFeat3", "DeFeat4"} == {"DeFeat4"}
        assert float(terms["distill"]) == pytest.approx(float(expected.detach()), rel=1e-4)


# -------------------------------------------------------------------------------- the fixed teacher


def test_the_teacher_stays_what_it_was(root, stage_1, teacher_file, tmp_path, monkeypatch):
    """Through real steps and a validation: bits, mode, gradients; and it is in no checkpoint."""
    seen, modes, real = [], [], model.load

    def spy(path):
        teacher = real(path)
        if path != str(teacher_file):
            return teacher
        teacher.encoder.register_forward_hook(
            lambda *_: modes.append([m.training for m in teacher.modules()])
        )
        seen.append(teacher)
        return teacher

    monkeypatch.setattr(model, "load", spy)
    run(root, tmp_path, teacher_file, "--student", stage_1, "--val_split", "val")
    (teacher,), before = seen, weights(teacher_file)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert len(modes) == 2 and not any(any(mode) for mode in modes)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    for name in ("last.pt", "best.pt"):
        assert weights(tmp_path / name).keys() == weights(stage_1).keys()
    ours, theirs = read_checkpoint(tmp_path / "last.pt"), read_checkpoint(stage_1)
    assert ours["optimizer"]["state"].keys() == theirs["optimizer"]["state"].keys()
    assert ours["objective"].keys() == theirs["objective"].keys()


def test_drop_path_changes_nothing_in_a_training_objective(root, teacher_file):
    objective, batch = first_step(root, teacher_file)
    objective.train()
    assert objective.network.training and not any(m.training for m in objective.teacher.modules())
    one, two = objective.teach(batch), objective.teach(batch)
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    objective.teacher.train()  # what the released loop does
    assert not torch.equal(objective.teach(batch)[2], one[2])


def test_each_network_pads_with_its_own_zero(root, teacher_file):
    objective, batch = first_step(root, teacher_file, "--crops", "64x80", "--crop_batch", "pad")
    assert batch["extent"].tolist() == [[42, 60]] * 4  # of 64x96
    for shift in range(4):  # each picture its own
        batch["extent"][shift] -= shift
    seen = {}
    for name in ("network", "teacher"):
        getattr(objective, name).encoder.register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0]})
        )
    objective(batch)
    assert (seen["network"][:, :, 42:] == 0).all() and (seen["network"][..., 60:] == 0).all()
    colours = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]).view(2, 3, 1, 1)
    expected = (batch["image"] * 127.5 + 127.5 - colours[0]) / colours[1]
    for i, (h, w) in enumerate(batch["extent"].tolist()):
        assert (seen["teacher"][i, :, h:] == 0).all() and (seen["teacher"][i, ..., w:] == 0).all()
        inside = np.s_[i, :, :h, :w]
        torch.testing.assert_close(seen["teacher"][inside], expected[inside], rtol=0, atol=1e-6)


def test_the_teacher_in_bfloat16_is_near_and_the_distances_stay_float32(root, teacher_file):
    objective, batch = first_step(root, teacher_file)
    exact, rough = objective.teach(batch), with_flags(objective, teacher_dtype="bf16").teach(batch)
    assert [f.dtype for f in rough] == [torch.bfloat16] * 3
    assert all(close(a.float(), b, 0.05) and not close(a.float(), b) for a, b in zip(rough, exact))
    with torch.autocast("cpu", torch.bfloat16):
        _, terms = with_flags(objective, teacher_dtype="bf16")(batch)
        exact_2 = objective.teach(batch)
    assert all(v.dtype == torch.float32 for v in terms.values())
    assert all(torch.equal(a, b) for a, b in zip(exact, exact_2))  # --amp is the student's


# ------------------------------------------------------------------------------------------ Table 6

LEVELS = {"structure": {"DeFeat2", "DeFeat3", "DeFeat4"}, "l2": {"DeFeat4"}, "channel": {"DeFeat4"}}


@pytest.mark.parametrize(
    "method, two_stages, more",
    [
        ("structure", True, []), ("l2", True, ["--fix_last"]), ("channel", False, []),
        ("structure", False, ["--affinity", "l1"]),
        ("structure", True, ["--dynamic_weights", "--amp"]),
    ],
)  # fmt: skip
def test_rows_of_table_6_train(root, stage_1, teacher_file, tmp_path, method, two_stages, more):
    start = weights(stage_1)
    if not two_stages:
        torch.manual_seed(0)  # --seed
        start = model.LiteDepth(size=SIZE).state_dict()
    student = stage_1 if two_stages else "none"
    run(root, tmp_path, teacher_file, "--student", student, "--method", method, *more)
    (row,) = rows(tmp_path)
    assert row.keys() & {"DeFeat2", "DeFeat3", "DeFeat4"} == LEVELS[method]
    assert all(math.isfinite(v) for v in row.values())
    apart = sum(row[k] for k in LEVELS[method])
    assert row["distill"] == pytest.approx(apart, rel=1e-5) and apart > 0
    if "--dynamic_weights" not in more:
        terms = sum(row[k] * row[f"w_{k}"] for k in losses.TERMS)
        w_d = 10 if method == "structure" else 0.01
        assert row["loss"] == pytest.approx(terms + w_d * row["distill"], rel=1e-4)

    end, fixed = weights(tmp_path / "last.pt"), set()
    if "--fix_last" in more:
        fixed = set(FIXED)
        assert all(torch.equal(end[k], weights(teacher_file)[k]) for k in fixed)
    trained = {k for k, _ in model.LiteDepth().named_parameters()} - fixed
    assert not [k for k in trained if torch.equal(end[k], start[k])]


def test_two_stages_begin_with_the_student(root, stage_1, teacher_file, tmp_path):
    """At a learning rate of nothing the weights stay those of the file, in what is trained."""
    run(root, tmp_path, teacher_file, "--student", stage_1, "--lr", "1e-12")
    start, end = weights(stage_1), weights(tmp_path / "last.pt")
    for name, _ in model.LiteDepth().named_parameters():
        torch.testing.assert_close(end[name], start[name], rtol=0, atol=1e-9)
    assert "stage-1 student" in (tmp_path / "args.json").read_text()


def test_a_student_can_teach_and_is_named(root, stage_1, tmp_path, capsys):
    run(root, tmp_path, stage_1, "--student", "none")
    said = capsys.readouterr()
    assert "holds a student" in said.err and "teacher: student of" in said.out
    assert rows(tmp_path)[0]["distill"] > 0


def test_w_d_and_the_network_follow_method_and_student(stage_1, teacher_file, tmp_path):
    def parsed(*more, student=stage_1):
        return distill.parse(["--teacher", str(teacher_file), "--student", str(student), *more])[0]

    assert [parsed("--method", m).w_d for m in ("structure", "l2", "channel")] == [10, 0.01, 0.01]
    assert parsed("--method", "l2", "--w_d", "3").w_d == 3
    assert parsed().size == SIZE  # not the default
    torch.manual_seed(0)
    model.save(tmp_path / "s.pt", model.LiteDepth(size=SIZE, decoder="3x3", upsample="bilinear"))
    args = parsed(student=tmp_path / "s.pt")
    assert (args.decoder, args.upsample, args.model) == ("3x3", "bilinear", "student")


# --------------------------------------------------------------------------- resume and processes


def test_resume_is_bit_exact(root, stage_1, teacher_file, tmp_path, monkeypatch):
    """Stopped in the second epoch; on a CPU auto is float32."""
    few = ("--teacher", teacher_file, "--student", stage_1, "--epochs", "3")
    once, stop = (command(root, tmp_path / name, *few) for name in ("once", "stopped"))
    assert distill.main([*once, "--teacher_dtype", "fp32"]) == 0
    real, calls = distill.Distill.forward, []

    def interrupt(self, batch):
        calls.append(1)
        if len(calls) == 3:  # two steps an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(distill.Distill, "forward", interrupt)
        assert distill.main(stop) == 143
    state = read_checkpoint(tmp_path / "stopped/last.pt")
    assert (state["epoch"], state["batch"]) == (1, 1)
    assert state["flags"]["teacher_dtype"] == "fp32"
    assert distill.main([*stop, "--resume"]) == 0
    assert same(tmp_path / "once/last.pt", tmp_path / "stopped/last.pt")


def test_resume_keeps_a_fixed_last_layer_and_needs_no_student(
    root, stage_1, teacher_file, tmp_path
):
    student = tmp_path / "student.pt"
    student.write_bytes(stage_1.read_bytes())
    few = ("--student", student, "--method", "l2", "--fix_last")
    run(root, tmp_path / "run", teacher_file, *few)
    student.unlink()
    run(root, tmp_path / "run", teacher_file, *few, "--epochs", "2", "--resume")
    end, teacher = weights(tmp_path / "run/last.pt"), weights(teacher_file)
    assert rows(tmp_path / "run")[-1]["epoch"] == 2
    assert all(torch.equal(end[k], teacher[k]) for k in FIXED)


def test_two_processes_end_with_one_student(root, stage_1, teacher_file, tmp_path):
    """torchrun, gloo: DDP takes the frozen teacher and the learned loss weights, and the ranks end
    with the same bits."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os, sys, torch, distill\n"
        "kept, real = [], distill.with_teacher\n"
        "distill.with_teacher = lambda *a, **k: kept.append(real(*a, **k)) or kept[0]\n"
        "code = distill.main(sys.argv[2:])\n"
        "torch.save(dict(kept[0].named_parameters()), sys.argv[1] + os.environ['RANK'])\n"
        "sys.exit(code)\n"
    )
    few = ("--teacher", teacher_file, "--student", stage_1, "--epochs", "1",
           "--teacher_dtype", "fp32", "--dynamic_weights")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
         str(31600 + os.getpid() % 1000), str(script), str(tmp_path / "rank"),
         *command(root, tmp_path / "run", *few)],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"rank{rank}") for rank in (0, 1))
    assert one.keys() == two.keys() and all(torch.equal(v, two[k]) for k, v in one.items())
    end, start, teacher = weights(tmp_path / "run/last.pt"), weights(stage_1), weights(teacher_file)
    for name, _ in model.LiteDepth().named_parameters():
        assert torch.equal(end[name], one[f"network.{name}"]) and (end[name] != start[name]).any()
    assert all(torch.equal(v, teacher[k[8:]]) for k, v in one.items() if k.startswith("teacher."))


# ------------------------------------------------------------------------------------------- errors


def refused(capsys, *argv: str) -> str:
    """The one line on stderr of a command that exits with 2."""
    capsys.readouterr()
    try:
        code = run_main(lambda: distill.main(list(argv)), "distill.py")
    except SystemExit as error:  # argparse
        code = error.code
    lines = [n for n in capsys.readouterr().err.splitlines() if not n.startswith("note: ")]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("distill.py: error: "), lines
    return lines[0]


def test_wrong_flags_are_one_line(root, stage_1, teacher_file, tmp_path, capsys):
    few = command(root, tmp_path / "run", "--epochs", "1")
    student, teacher = ("--student", str(stage_1)), ("--teacher", str(teacher_file))
    for more, words in (
        (student, ["nothing to learn from", "--teacher FILE", "--teacher_depth DIR"]),
        ((*student, "--teacher_depth", "x", "--fix_last"), ["--fix_last", "--teacher"]),
        ((*teacher, "--student", "gone.pt"),
         ["--student gone.pt: no such file", f"python train.py --data {root}", "--student none"]),
        ((*teacher, "--student", str(teacher_file)), ["is a teacher", "--teacher"]),
        ((*teacher, *student, "--decoder", "3x3"), ["another network", "--decoder"]),
        ((*teacher, *student, "--size", "96x96"), ["another network", "--size"]),
        ((*teacher, "--student", "none", "--size", "64x64"), ["64x96", "64x64", "--size 64x64"]),
        ((*student, "--teacher", "gone.pt"), ["gone.pt: no such"]),
        ((*student, "--teacher_depth", "gone"), ["gone", "no such folder"]),
        ((*teacher, *student, "--tau", "0"), ["--tau"]),
    ):  # fmt: skip
        line = refused(capsys, *few, *more)
        assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_a_bare_backbone_is_no_teacher(root, tmp_path, capsys):
    file = tmp_path / "backbone.pth"
    embed, depths, heads, _ = SWIN["swin_nano"]
    torch.save({"model": Swin(embed, depths, heads).state_dict()}, file)
    few = command(root, tmp_path / "run", "--student", "none", "--teacher", file)
    assert "backbone weights goes to train.py --pretrained" in refused(capsys, *few)


def test_a_real_process_says_it_in_one_line():
    done = subprocess.run([sys.executable, "distill.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("distill.py: error: nothing to learn from")


# --------------------------------------------------------------------- another model's depth maps


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Pairs whose upper half, 6 m away, has no truth; `maps` has it, and a hole of its own."""
    root = tmp_path_factory.mktemp("half")
    for folder in ("train/rgb", "train/depth", "maps"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(3)
    for i in range(8):
        depth = np.repeat(np.linspace(2, 1, 96)[:, None], 128, 1) * rng.uniform(0.8, 1.2)
        depth[:48] = 6
        rgb = 60 + 45 * (depth[..., None] - 1) * (0.2, 0.5, 0.8)
        rgb[:48] += (60, 0, -60)
        rgb += rng.normal(0, 8, rgb.shape)
        taught = depth.astype(np.float32)
        taught[:8, :8] = np.nan
        depth[:48] = 0
        cv2.imwrite(str(root / f"train/rgb/{i}.png"), rgb.clip(0, 255).astype(np.uint8))
        cv2.imwrite(str(root / f"train/depth/{i}.png"), (1000 * depth).astype(np.uint16))
        np.save(root / f"maps/{i}.npy", taught)
    pair = "train/rgb/{0}.png train/depth/{0}.png\n"  # 24 an epoch: a checkpoint costs 3 steps
    (root / "train.txt").write_text("".join(pair.format(i) for i in range(8)) * 3)
    return root


def test_depth_maps_are_eq_11_once_more(half):
    objective, batch = first_step(half, None, "--teacher_depth", half / "maps", "--w_t", "0.3")
    maps = {k.removeprefix("teacher_"): v for k, v in batch.items() if k.startswith("teacher_")}
    assert {"depth", "depth_low", "grad_x", "M_x", "cell_n"} <= maps.keys()
    assert (maps["depth"] > 5).any() and not (batch["depth"] > 5).any()
    student, supervised = objective.network, train.Supervised(objective.network, objective.loss)
    depth, terms = supervised(batch)
    extra, more = supervised(batch | maps)
    total, logged = objective(batch)
    assert float(total.detach()) == pytest.approx(float((depth + 0.3 * extra).detach()), rel=1e-6)
    for k in losses.TERMS:
        assert torch.equal(logged[k], terms[k]) and torch.equal(logged[f"teacher_{k}"], more[k])
        assert logged[k] != logged[f"teacher_{k}"]
    assert "distill" not in logged
    expected = gradient(student, depth) + 0.3 * gradient(student, extra)
    assert close(gradient(student, total), expected)
    assert not close(gradient(student, total), gradient(student, depth), 0.05)


def test_maps_and_a_teacher_go_together(half, teacher_file, tmp_path):
    run(half, tmp_path, teacher_file, "--student", "none", "--teacher_depth", half / "maps",
        "--w_t", "0.5")  # fmt: skip
    (row,) = rows(tmp_path)
    value = 10 * row["distill"]
    for k in losses.TERMS:
        value += row[f"w_{k}"] * (row[k] + 0.5 * row[f"teacher_{k}"])
    assert row["loss"] == pytest.approx(value, rel=1e-4)


def test_what_only_the_maps_show_is_learned(half, tmp_path):
    """30 steps: what is 6 m away, and never had a truth, is found with the maps alone."""
    more = ("--epochs", "5", "--student", "none", "--teacher_depth", half / "maps")
    more += ("--weights", "1,0,0,1", "--crops", "none", "--warmup", "0")
    images = np.stack([cv2.imread(str(p))[..., ::-1] for p in (half / "train/rgb").iterdir()])
    error = {}
    for w_t in ("0", "1"):
        assert distill.main(command(half, tmp_path / w_t, *more, "--w_t", w_t)) == 0
        with torch.no_grad():
            network = model.load(tmp_path / w_t / "last.pt")
            d_hat = network(torch.from_numpy(images).permute(0, 3, 1, 2).float())
        error[w_t] = float((d_hat[:, :, 8:40] / 6 - 1).abs().mean())
    assert error["1"] < 0.3 < 0.6 < error["0"], error
