"""Sec. 4.1's stand-in: the embedded data set (scenes.py)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from plumbing import scenes as S
from plumbing.files import UserError

ROOT = Path(S.__file__).resolve().parents[1]


def digest(scene: S.Scene) -> str:
    return hashlib.sha256(scene.rgb.tobytes() + scene.depth.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def scenes() -> list[S.Scene]:
    return [S.render(0, k) for k in range(12)]


def python(code: str, **how) -> subprocess.Popen:
    """A process of its own that runs `code` with `S` imported."""
    start = f"import sys; sys.path.append({str(ROOT)!r}); from plumbing import scenes as S\n"
    text = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", start + code], **text, **how)


def test_a_scene_is_what_the_paper_s_data_set_holds(scenes):
    for scene in scenes:
        assert scene.rgb.shape == (480, 640, 3) and scene.rgb.dtype == np.uint8
        assert scene.depth.shape == (480, 640) and scene.depth.dtype == np.uint16
        measured = scene.depth[scene.depth > 0]
        assert measured.min() >= 1000 * S.NEAR and measured.max() <= 40_000
        assert 0.02 < (scene.depth == 0).mean() < 0.6
        assert scene.rgb.std() > 10, "a picture without content"
        k = scene.intrinsics
        assert (k["width"], k["height"]) == (640, 480)
        assert 390 < k["fx"] < 610 and 390 < k["fy"] < 610
        assert 300 < k["cx"] < 340 and 220 < k["cy"] < 260
    means = [s.depth[s.depth > 0].mean() / 1000 for s in scenes]
    assert min(means) < 4 and max(means) > 8, "both near and far scenes"
    assert len({s.intrinsics["fx"] for s in scenes}) == len(scenes), "several cameras"


def test_bits_depend_on_stream_and_index_only(scenes):
    code = """import hashlib
for k in (5, 2):
    s = S.render(0, k)
    print(hashlib.sha256(s.rgb.tobytes() + s.depth.tobytes()).hexdigest())"""
    out, err = python(code).communicate()
    assert out.split() == [digest(scenes[5]), digest(scenes[2])], err
    assert digest(S.render(1, 2)) != digest(scenes[2])


# ---------------------------------------------------------------------------------------- geometry


def test_rays_meet_what_marching_meets():
    """Boxes and balls, some overlapping, against steps of 2 mm of z along 600 rays."""
    rng = np.random.default_rng(0)
    world = S.World(rng)
    body = [(0, 0, 0, 1, 1, 1, 0), (0, -2, 0, 50, 0.5, 50, 0)]
    body += [(0, 0, 6, 50, 5, 0.5, 0), (-4, 0, 0, 0.5, 5, 50, 0), (4, 0, 0, 0.5, 5, 50, 0)]
    for k in range(16):
        half = rng.uniform(0.2, 0.6, 3)
        body.append((k % 4 - 1.5, 0.5 * (k // 4) - 1, rng.uniform(2, 4.5), *half, k % 3 == 0))
    solids = np.array([(*row, *world.paint("wood")) for row in body])
    k, rays, to_pixels = S.camera_at(rng, (240, 320))
    z, seen = S.cast(rays, to_pixels, solids)
    steps = np.arange(0.002, 9, 0.002)
    kinds, apart = set(), 0
    for row, column in zip(rng.integers(0, 240, 600), rng.integers(0, 320, 600)):
        p = steps[:, None] * np.linalg.solve(to_pixels, [column, row, 1])
        q = np.abs(p - solids[:, None, :3]) / solids[:, None, 3:6]
        met = np.where(solids[:, 6:7], (q**2).sum(2) < 1, (q < 1).all(2))
        met[0] = False  # we are inside
        first = np.argmax(met.any(0))
        hit = np.argmax(met[:, first])
        fits = np.allclose(seen[:3, row, column], solids[hit, :3], atol=1e-5)
        apart += abs(z[row, column] - steps[first]) > 0.003 or not fits
        kinds |= {(solids[hit, 6], hit > 4)}
    assert apart <= 2, "more than the steps that jump over a corner"
    assert len(kinds) == 3, "a kind no ray met"

    slope = S.shade(rays, k["fx"], z, seen, np.ones(3))[1]
    right, down = (np.gradient(z * rays, axis=axis) for axis in (2, 1))
    normal = np.cross(right, down, axis=0)
    cos = np.abs((normal * rays).sum(0)) / np.sqrt((normal**2).sum(0) * (rays**2).sum(0))
    off = np.abs(cos - slope)
    assert np.quantile(off, 0.85) < 0.01, "only at edges are neighbours on another face"
    balls = seen[6] == 1
    assert balls.mean() > 0.02 and np.quantile(off[balls], 0.8) < 0.01


def test_depth_is_along_the_axis_and_intrinsics_fit(monkeypatch):
    """Back-projected, the floor is a plane as far below the camera and tilted as it was put."""
    cast, calls = S.cast, []
    monkeypatch.setattr(S, "cast", lambda *given: calls.append(given) or cast(*given))
    ground = (0, -1, 0, 1e4, 1, 1e4, 0)
    monkeypatch.setattr(S, "furnish", lambda world, place: world.solids.append(
        np.array([*ground, *world.paint("paving")])))  # fmt: skip
    scene = S.render(0, 0)
    ((_, to_pixels, solids),) = calls
    k = scene.intrinsics
    row, column = np.nonzero((scene.depth > 0) & (scene.depth < 8000))
    z = scene.depth[row, column] / 1000
    p = np.stack([(column - k["cx"]) / k["fx"] * z, (row - k["cy"]) / k["fy"] * z, z], 1)
    normal = np.linalg.svd((p - p.mean(0)).astype(np.float32), full_matrices=False)[2][2]
    normal *= np.sign(normal[1])
    away = p @ normal
    assert 0.9 < np.median(away) == pytest.approx(-solids[0, 1] - 1, rel=0.01)
    assert away.std() < 0.015  # the sensor's noise; with the ray's length in z it is 0.1
    lens = np.array([[k["fx"], 0, k["cx"]], [0, k["fy"], k["cy"]], [0, 0, 1]])
    axes = np.linalg.solve(lens, to_pixels)  # right, down, ahead
    assert np.allclose(axes @ axes.T, np.eye(3)) and np.linalg.det(axes) == pytest.approx(-1)
    assert np.allclose(normal, -axes[:, 1], atol=0.01) and axes[1, 1] < -0.9


# ------------------------------------------------------------------------------------------- holes


def sensed(z: np.ndarray, gloss: float = 0.0, bright: float = 0.5) -> np.ndarray:
    full = [np.full(z.shape, value, np.float32) for value in (1, bright, gloss)]
    return S.sense(np.random.default_rng(0), 500.0, z.astype(np.float32), *full)


def test_a_near_edge_hides_a_strip_as_wide_as_its_jump_of_disparity():
    z = np.full((480, 640), 4.0)
    z[:, 300:400] = 2.0
    empty = (sensed(z) == 0).mean(0)
    strip = 500 * S.BASELINE * (1 / 2 - 1 / 4)  # 15 pixels, on the left of the edge
    assert empty[302 - int(strip) : 299].min() > 0.95
    assert empty[200 : 297 - int(strip)].mean() < 0.1
    assert empty[405:600].mean() < 0.1, "nothing is hidden on the right"
    assert empty[:14].min() > 0.95, "the second eye does not see the left border"


def test_range_noise_gloss_and_dark():
    assert not sensed(np.full((480, 640), 500.0)).any(), "sky"
    assert not sensed(np.full((480, 640), S.NEAR - 0.05)).any(), "too near"
    spread = []
    for metres in (2.0, 8.0):
        depth = sensed(np.full((480, 640), metres))
        spread.append(depth[depth > 0].std())
        assert depth[depth > 0].mean() == pytest.approx(1000 * metres, rel=0.005)
    assert 4 < spread[1] / spread[0] < 20, "noise grows with distance"
    z = np.full((480, 640), 20.0)
    plain, glossy, dark = ((sensed(z, *k) == 0).mean() for k in ((), (1.2,), (0.0, 0.01)))
    assert plain < 0.1 and glossy > 2 * plain and dark > 1.5 * plain


# ------------------------------------------------------------------------------------ the data set


def test_ensure_writes_the_set_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path))
    folder = S.ensure(2)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == [
        "train/depth/000000.png", "train/depth/000001.png", "train/intrinsics.json",
        "train/rgb/000000.jpg", "train/rgb/000001.jpg",
        "val/depth/000000.png", "val/intrinsics.json", "val/rgb/000000.jpg",
    ]  # fmt: skip
    assert folder == tmp_path / f"synthetic-{S.VERSION}-2"
    assert {p.name for p in tmp_path.iterdir()} == {folder.name, f".{folder.name}.lock"}
    for split, stream in (("train", 0), ("val", 1)):  # streams: validation is never training
        scene = S.render(stream, 0)
        depth = cv2.imread(str(folder / split / "depth/000000.png"), cv2.IMREAD_UNCHANGED)
        assert (depth == scene.depth).all() and depth.dtype == np.uint16
        rgb = cv2.imread(str(folder / split / "rgb/000000.jpg"))[..., ::-1]
        assert np.abs(rgb.astype(float) - scene.rgb).mean() < 3
        frames = json.loads((folder / split / "intrinsics.json").read_text())["frames"]
        assert frames["000000"] == scene.intrinsics
    monkeypatch.setattr(S, "ProcessPoolExecutor", None)  # a second call draws nothing
    assert S.ensure(2) == folder


def test_two_at_once_and_one_killed_leave_one_whole_set(tmp_path, monkeypatch):
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path))
    killed = python("S.ensure(8)", start_new_session=True)
    while not (made := list(tmp_path.glob(".*/train/camera/*.json"))) and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not list(tmp_path.glob("synthetic*"))
    kept = made[0].with_suffix(".jpg").name, made[0].stat().st_mtime_ns
    two = [python("print(S.ensure(8))") for _ in range(2)]
    results = [p.communicate() for p in two]
    folder = tmp_path / f"synthetic-{S.VERSION}-8"
    assert [out.strip() for out, _ in results] == [str(folder)] * 2, results
    assert len(list(folder.glob("train/rgb/*.jpg"))) == 8
    assert len(list(tmp_path.iterdir())) == 2, "the set and its lock: what was killed went on"
    assert (folder / "train/rgb" / kept[0]).stat().st_mtime_ns <= kept[1]  # not drawn twice


def ended(stream: int, index: int) -> None:
    os._exit(9)


def test_errors_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path / "killed"))
    with pytest.raises(UserError, match="ended from outside.*goes on where it was"):
        S.rendered("killed", 1, ended)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"Not a directory.*file.*LITEDEPTH_CACHE"):
        S.ensure(1)
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path / "full"))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); S.ensure(1)"
    said = python(limit).communicate()[1]
    assert "File too large" in said and "set LITEDEPTH_CACHE" in said
    assert not list((tmp_path / "full").rglob("*.jpg"))


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LITEDEPTH_CACHE", raising=False)
    assert S.cache_root() == tmp_path / "home/.cache/litedepth"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert S.cache_root() == tmp_path / "xdg/litedepth"
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path / "here"))
    assert S.cache_root() == tmp_path / "here"
