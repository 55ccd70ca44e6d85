"""Sec. 4.1 and 4.2 under load: 100,000 pairs, tens of thousands of steps, any number of threads.

    python -m pytest tests/test_load.py           150 steps of the soak
    python -m pytest tests/test_load.py --soak    20,000 of them, with what they took in the output
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import rgbd_picture

import distill
import train
from plumbing.checkpoints import read_checkpoint
from plumbing.pairs import Pair, list_pairs

ROOT = Path(__file__).resolve().parent.parent
# What a process has of /proc/self. `seconds`: since its start, without those in which it could have
# run and another process had the core (the machine's other work is not ours to measure).
PROBE = f"""
import json, math, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
import train
from plumbing.files import run_main

def probe():
    with open("/proc/self/stat") as stat, open("/proc/self/schedstat") as sched:
        started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        waited = int(sched.read().split()[1]) / 1e9
    with open("/proc/self/statm") as statm:
        rss = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    wall = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    return {{
        "wall": wall, "seconds": wall - waited, "rss": rss,
        "files": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task")),
    }}

real = torch.Tensor.backward
"""
proc = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="memory and files are read from Linux' /proc"
)


def run(script: str, *argv: str) -> tuple[int, list[dict], str]:
    """PROBE and a script in a process of its own -> (exit code, JSON lines it printed, stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE + script, *argv], capture_output=True, text=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, lines, done.stderr


def tiny(root: Path, out: Path, *more: str) -> list[str]:
    """The smallest pictures and network there are, on the CPU."""
    return [
        "--data", str(root), "--out", str(out), "--image_size", "64x96", "--size", "32x64",
        "--crops", "64x96", "--batch_size", "4", "--pretrained", "none", "--device", "cpu",
        "--threads", "1", "--workers", "2", *more,
    ]  # fmt: skip


# ------------------------------------------------------------------------------------ 100,000 pairs

COUNT, SCENES = 100_000, 20


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> Path:
    """100,000 + 40 pairs in 20 scenes of two folders each, with a list beside them: hard links to
    16 pairs. One scene gives a camera for every picture, the others one for all."""
    root = tmp_path_factory.mktemp("crowd")
    camera = {"fx": 110, "fy": 110, "cx": 63.5, "cy": 47.5, "width": 128, "height": 96}
    kinds = []
    for k in range(16):
        bgr, depth = rgbd_picture(k)
        kinds.append((str(root / f"{k}.jpg"), str(root / f"{k}.png")))
        for path, picture in zip(kinds[-1], (bgr, depth)):
            assert cv2.imwrite(path, picture)
    for split, count in (("train", COUNT), ("val", 2 * SCENES)):
        lines = []
        for s in range(SCENES):
            home = f"{split}/scene_{s}"
            for folder in ("rgb", "depth"):
                (root / home / folder).mkdir(parents=True)
            stems = [f"frame_{k}" for k in range(count // SCENES)]
            entry = {"frames": dict.fromkeys(stems, camera)} if s == 1 else camera
            (root / home / "intrinsics.json").write_text(json.dumps(entry))
            for (jpg, png), stem in zip(itertools.cycle(kinds), stems):
                files = f"{home}/rgb/{stem}.jpg", f"{home}/depth/{stem}.png"
                os.link(jpg, f"{root}/{files[0]}")
                os.link(png, f"{root}/{files[1]}")
                lines.append(" ".join(files))
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


FIRST_LOSS = """
def backward(loss, *more, **options):
    print(json.dumps({"loss": float(loss.detach()), **probe()}), flush=True)
    os._exit(0)

torch.Tensor.backward = backward
sys.exit(run_main(train.main, "train.py"))
"""
NO_ROOM = """
from types import SimpleNamespace
from plumbing import pack

pack.shutil.disk_usage = lambda path: SimpleNamespace(total=10**12, used=0, free=82 * 10**9)
code = run_main(train.main, "train.py")
print(json.dumps(probe()), flush=True)
sys.exit(code)
"""


IMPORTS = 2.3  # seconds of them alone, where the limits below were measured with nothing beside it


def within(limit: float, script: str, *argv: str) -> tuple[int, dict, str]:
    """run() until it has taken less than `limit` seconds, three times at most: what shares a core
    with us may make it half as fast, and does not show in `seconds`. A machine that is slower at
    its imports just before has as much longer. -> (exit code, the last JSON line, stderr)."""
    for _ in range(3):
        imports = run("print(json.dumps(probe()))")[1][0]["seconds"]
        allowed = limit * max(1.0, imports / IMPORTS)
        code, lines, errors = run(script, *argv)
        assert lines, errors
        if lines[-1]["seconds"] < allowed:
            break
    print({k: round(v, 2) for k, v in lines[-1].items()})  # shown by -rP
    assert lines[-1]["seconds"] < allowed
    return code, lines[-1], errors


@proc
@pytest.mark.parametrize("layout", ["list", "folders"])
def test_100000_pairs_start_within_ten_seconds(crowd, tmp_path, layout):
    """From the process's start, imports and all, to the first step's loss."""
    lists = [crowd / "train.txt", crowd / "val.txt"]
    if layout == "folders":
        for path in lists:
            path.rename(path.with_suffix(".away"))
    try:
        flags = tiny(crowd, tmp_path / "run", "--cache", "none")
        code, taken, errors = within(10, FIRST_LOSS, *flags)
    finally:
        for path in lists:
            if path.with_suffix(".away").exists():
                path.with_suffix(".away").rename(path)
    assert code == 0 and np.isfinite(taken["loss"]), errors
    assert taken["rss"] < 700 and taken["files"] < 20  # 440 MB, of which 270 are the imports'


@proc
def test_100000_pairs_that_no_disk_holds_are_refused_at_once(crowd, tmp_path):
    """Every file is looked at for the pack's stamp; nothing is decoded and nothing is left."""
    flags = tiny(crowd, tmp_path / "run", "--cache", str(tmp_path / "packs"))
    flags[flags.index("--image_size") + 1] = "480x640"
    flags[flags.index("--crops") + 1] = "480x640"
    code, _, errors = within(20, NO_ROOM, *flags)
    assert code == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("train.py: error: ")]
    assert f"{tmp_path / 'packs'}: no room for the decoded pairs: 153.60 GB needed, 82.0" in line
    assert "--cache DIR takes another folder, --cache none decodes anew" in line
    assert [path.suffix for path in (tmp_path / "packs").iterdir()] == [".lock"]


# --------------------------------------------------- pairs, stamps and names are those one by one


def one_by_one(root: Path, listing: Path) -> list[Pair]:
    """A list without blanks, comments or faults, with a look for every file."""
    pairs = []
    for line in listing.read_text().splitlines():
        rgb, depth = (root / name for name in line.split())
        assert rgb.is_file() and depth.is_file()
        folder = rgb.parent.parent if rgb.parent.name in ("rgb", "image", "images") else rgb.parent
        pairs.append(Pair(rgb, depth, folder.name, folder))
    return pairs


@pytest.fixture
def odd(tmp_path) -> Path:
    """A list of names in every form that leads to a file."""
    root = tmp_path / "set"
    for name in ("a/rgb/1.jpg", "a/depth/1.png", "b/1.jpg", "b/1.png", "top.jpg", "top.png",
                 "../beside/c.jpg", "../beside/c.png"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))
    (root / "a/rgb/link.jpg").symlink_to(root / "top.jpg")
    (root / "linked").symlink_to(root / "a")
    (root / "train.txt").write_text(
        "a/rgb/1.jpg a/depth/1.png\n./b//1.jpg b/./1.png\ntop.jpg top.png\n"
        f"../beside/c.jpg {root}/../beside/c.png\n{root}/a/rgb/1.jpg a/rgb/../depth/1.png\n"
        "a/rgb/link.jpg linked/depth/1.png\nlinked/rgb/1.jpg ./top.png\n"
    )
    return root


@pytest.mark.parametrize("unlisted", [False, True])
def test_a_list_gives_the_pairs_that_a_look_for_every_file_gives(odd, monkeypatch, unlisted):
    expected = one_by_one(odd, odd / "train.txt")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    if unlisted:  # such a folder's files can be opened all the same
        monkeypatch.setattr(os, "scandir", refuse)
    pairs = list_pairs(odd, "train")
    assert pairs == expected
    assert [(str(p.rgb), str(p.depth), str(p.folder)) for p in pairs] == [
        (str(p.rgb), str(p.depth), str(p.folder)) for p in expected
    ]


# ---------------------------------------------------------------------------------- 1 and 4 threads

UNTIMED = ("images_per_s", "val_s")


def same(one: object, two: object, at: str = "") -> None:
    """Equal to the last bit, all the way down."""
    assert type(one) is type(two), at
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype and torch.equal(one, two), at
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), at
        for key in one:
            same(one[key], two[key], f"{at}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), at
        for k, (a, b) in enumerate(zip(one, two)):
            same(a, b, f"{at}/{k}")
    else:
        assert one == two, at


def trained(main: Callable, root: Path, out: Path, *more: str) -> tuple[dict, list[dict]]:
    """A run of 96x128 pictures -> its last checkpoint, all of it, and its log without times."""
    flags = [
        "--data", str(root), "--out", str(out), "--image_size", "96x128", "--size", "64x96",
        "--crops", "48x64,64x96,96x128", "--batch_size", "4", "--pretrained", "none",
        "--device", "cpu", "--threads", "1", *more,
    ]  # fmt: skip
    threads = torch.get_num_threads()
    try:
        assert main(flags) == 0
    finally:
        torch.set_num_threads(threads)  # of the tests that follow
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in UNTIMED} for row in rows]
    return read_checkpoint(out / "last.pt"), rows


@pytest.fixture(scope="module")
def damaged(make_rgbd, tmp_path_factory) -> Path:
    """13 + 3 pairs, and of every second one another model's depth; two neighbours cannot be read,
    which nobody sees before they are."""
    root = make_rgbd(tmp_path_factory.mktemp("damaged"), train=13)
    for k in range(0, 13, 2):
        depth = cv2.imread(str(root / f"train/depth/sample_{k}.png"), cv2.IMREAD_UNCHANGED)
        depth = cv2.dilate(depth, np.ones((15, 15)))
        (root / "maps").mkdir(exist_ok=True)
        assert cv2.imwrite(str(root / f"maps/sample_{k}.png"), depth)
    for name in ("rgb/sample_4.png", "depth/sample_5.png"):
        content = bytearray((root / "train" / name).read_bytes())
        content[len(content) // 2] ^= 255
        (root / "train" / name).write_bytes(content)
    return root


@pytest.mark.parametrize("cache", ["none", "packs"])
def test_runs_are_the_same_for_1_and_4_threads(damaged, tmp_path, cache):
    """Weights, moments of Adam, generators and log; and the packs, each made by so many threads."""
    runs = []
    for workers in ("1", "4"):
        where = cache if cache == "none" else str(tmp_path / f"packs_{workers}")
        runs.append(trained(
            train.main, damaged, tmp_path / workers, "--epochs", "2", "--workers", workers,
            "--cache", where, "--skip_bad",
        ))  # fmt: skip
    same(*runs)
    checkpoint, rows = runs[0]
    assert [row["skipped_pairs"] for row in rows] == [2, 2]
    assert checkpoint["step"] == (6 if cache == "none" else 4)  # of 13 pairs, or the 11 whole ones
    for name in ("rgb", "depth", "K"):
        packs = [path.read_bytes() for path in sorted(tmp_path.glob(f"packs_*/*/{name}.npy"))]
        assert len(packs) == (0 if cache == "none" else 2) and len(set(packs)) <= 1


def test_another_models_depth_teaches_the_same_for_1_and_4_threads(damaged, tmp_path):
    how = ["--epochs", "1", "--skip_bad", "--student", "none"]
    how += ["--teacher_depth", str(damaged / "maps")]
    runs = [
        trained(
            distill.main, damaged, tmp_path / workers, *how, "--workers", workers,
            "--cache", str(tmp_path / f"packs_{workers}"),
        )
        for workers in ("1", "4")
    ]  # fmt: skip
    assert any(k.startswith("teacher") and v > 0 for k, v in runs[0][1][0].items()), runs[0][1]
    same(*runs)


# ------------------------------------------------------------------------------------------ a soak

SOAK = """
number = 0
def backward(loss, *more, **options):
    global number
    number += 1
    if number % {every} == 0:
        finite = math.isfinite(float(loss.detach()))
        print(json.dumps({{"step": number, "finite": finite, **probe()}}), flush=True)
    return real(loss, *more, **options)

torch.Tensor.backward = backward
sys.exit(run_main(train.main, "train.py"))
"""


@proc
def test_a_soak_leaves_memory_files_and_threads_alone(make_rgbd, tmp_path, request, capsys):
    """Steps, epochs, validations, checkpoints and pictures out of the packed cache, again and
    again: what the process holds after the first half it holds at the end."""
    steps = request.config.getoption("--soak") or 600
    epoch = 5 if steps < 2000 else 40  # steps: a short soak has 30 epochs too
    root = make_rgbd(tmp_path / "set", train=4 * epoch, val=4, size=(64, 96))
    every = max(5, steps // 200)
    flags = tiny(
        root, tmp_path / "run", "--epochs", str(steps // epoch),
        "--val_every", str(max(1, steps // epoch // 20)),
    )  # fmt: skip
    code, samples, errors = run(SOAK.format(every=every), *flags)
    assert code == 0, errors
    taken = [s["step"] for s in samples]
    assert taken == list(range(every, steps // epoch * epoch + 1, every))
    assert all(s["finite"] for s in samples)
    settled = samples[len(samples) // 2 :]
    quarter = len(settled) // 4
    first, last = settled[:quarter], settled[-quarter:]
    held = [statistics.median(s["rss"] for s in part) for part in (first, last)]
    speed = (taken[-1] - taken[0]) / (samples[-1]["wall"] - samples[0]["wall"])
    with capsys.disabled():
        print(
            f"\n{taken[-1]} steps, {steps // epoch} epochs, {speed:.0f} steps/s: {held[0]:.1f} MB, "
            f"then {held[1]:.1f} MB; files {samples[-1]['files']}, threads {samples[-1]['threads']}"
        )  # fmt: skip
    # An epoch adds its row to the log, some 4 kB; a batch that is kept would add 250 kB a step.
    assert held[1] - held[0] < 0.5 + 0.01 * (steps // epoch)
    for name in ("files", "threads"):
        assert len({s[name] for s in settled}) == 1, name
