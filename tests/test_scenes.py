"""Sec. 4.1's stand-in: the embedded data set (synthetic.py)."""

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


def inside(solid: S.Solid, p: np.ndarray) -> np.ndarray:
    """Which of the points p (N, 3) lie in the solid: written apart from the renderer."""
    s, c = np.sin(solid.yaw), np.cos(solid.yaw)
    q = p - solid.centre
    x, y, z = c * q[:, 0] - s * q[:, 2], q[:, 1], s * q[:, 0] + c * q[:, 2]
    x, y, z = np.abs(x) / solid.half[0], y / solid.half[1], np.abs(z) / solid.half[2]
    if solid.kind == "ellipsoid":
        return x**2 + y**2 + z**2 < 1
    if solid.kind == "cylinder":
        return (x**2 + z**2 < 1) & (np.abs(y) < 1)
    width = (1 - y) / 2 if solid.kind == "pyramid" else 1
    return (x < width) & (z < width) & (np.abs(y) < 1)


def test_rays_meet_what_marching_meets():
    """Every kind of solid, some overlapping, against steps of 2 mm of z along 600 rays."""
    rng = np.random.default_rng(0)
    world = S.World(rng)
    world.add("box", (0, -1, 0), (100, 1, 100), "floor")
    world.add("box", (0, 0, 5.5), (100, 10, 1), "wallpaper", 0.1)
    world.add("cylinder", (0, 0, 2.4), (3, 0.6, 1.5), "wood", 0.3)  # seen from above
    world.add("pyramid", (0, 0.6, 2.4), (1.4, 0.3, 1), "wood", 0.5)
    for k, kind in enumerate([*S.KINDS] * 3):
        foot = (-1.3 + 0.9 * ((k + k // 4) % 4), 0.6 * (k // 4), 2.7 + 0.7 * (k % 3))
        world.add(kind, foot, rng.uniform(0.5, 1.1, 3), "wood", rng.uniform(0, 3))
    camera = S.camera_at(world, (240, 320), 2.3, 0.3)
    z, seen = S.cast(camera, world.solids)
    steps = np.arange(0.02, 9, 0.002)
    kinds, apart, k = set(), 0, camera.intrinsics
    for row, col in zip(rng.integers(0, 240, 600), rng.integers(0, 320, 600)):
        ray = camera.axes @ [(col - k["cx"]) / k["fx"], (row - k["cy"]) / k["fy"], 1]
        p = camera.eye + steps[:, None] * ray
        met = [inside(s, p) for s in world.solids]
        first = np.argmax(np.any(met, axis=0))
        hit = next(s for s, m in zip(world.solids, met) if m[first])
        fits = np.allclose(seen[6:9, row, col], hit.centre, atol=1e-5)
        apart += abs(z[row, col] - steps[first]) > 0.003 or not fits
        kinds |= {hit.kind}

    assert apart <= 2, "more than the steps that jump over a corner"
    assert kinds == set(S.KINDS), "a kind no ray met"

    light = S.Light(np.array([0, 3, 0]), 1, 0, 0)
    slope = S.shade(camera, z, seen, light)[1]
    rays = np.stack(np.broadcast_arrays(camera.X, camera.Y, np.float32(1)))
    right, down = (np.gradient(z * rays, axis=k) for k in (2, 1))
    normal = np.cross(right, down, axis=0)
    cos = np.abs((normal * rays).sum(0)) / np.sqrt((normal**2).sum(0) * (rays**2).sum(0))
    one_face = np.logical_and.reduce(
        [(seen[:9] == np.roll(seen[:9], k, axis)).all(0) for k in (-1, 1) for axis in (1, 2)]
    )
    assert one_face.mean() > 0.8 and np.quantile(np.abs(cos - slope)[one_face], 0.99) < 0.01


def test_depth_is_along_the_axis_and_intrinsics_fit(monkeypatch):
    """Back-projected, the floor is a plane 1.5 m below the camera and tilted by its pitch."""

    def floor(world, size):
        world.add("box", (0, -1, 0), (2e4, 1, 2e4), "paving")
        world.add("box", (0, 600, 0), (1e5, 1, 1e5), "sky")
        return S.camera_at(world, size, 1.5, 0.35), S.Light(np.array([0, 1e4, 0]), 1, 0, 0)

    monkeypatch.setattr(S, "indoor", floor)
    monkeypatch.setattr(S, "outdoor", floor)
    scene = S.render(0, 0)
    k = scene.intrinsics
    row, col = np.nonzero((scene.depth > 0) & (scene.depth < 8000))
    z = scene.depth[row, col] / 1000
    p = np.stack([(col - k["cx"]) / k["fx"] * z, (row - k["cy"]) / k["fy"] * z, z], 1)
    normal = np.linalg.svd((p - p.mean(0)).astype(np.float32), full_matrices=False)[2][2]
    normal *= np.sign(normal[1])
    away = p @ normal
    assert np.median(away) == pytest.approx(1.5, rel=0.01)
    assert away.std() < 0.015  # the sensor's noise; with the ray's length in z it is 0.1
    assert normal[2] == pytest.approx(np.sin(0.35), abs=0.01)


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


def test_errors_say_what_to_do(tmp_path, monkeypatch):
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
