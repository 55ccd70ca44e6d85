"""Sec. 4.1's stand-in: the embedded data set (synthetic.py)."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))
from plumbing import scenes as S

ROOT = Path(S.__file__).parent


def digest(scene: S.Scene) -> str:
    return hashlib.sha256(scene.rgb.tobytes() + scene.depth.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def scenes() -> list[S.Scene]:
    return [S.render(0, k) for k in range(12)]


@pytest.fixture
def sketch(monkeypatch):
    """Replaces render by something instant that still depends on (seed, index); lists the calls."""
    calls = []

    def render(seed, index, size=(480, 640)):
        calls.append((seed, index))
        flat = np.full((4, 6), 1000 + 7 * index + seed, np.uint16)
        return S.Scene(np.zeros((4, 6, 3), np.uint8), flat, {"fx": 1.0, "width": 6})

    monkeypatch.setattr(S, "render", render)
    return calls


# ------------------------------------------------------------------------------------ the pictures


def test_a_scene_is_what_the_paper_s_data_set_holds(scenes):
    for scene in scenes:
        assert scene.rgb.shape == (480, 640, 3) and scene.rgb.dtype == np.uint8
        assert scene.depth.shape == (480, 640) and scene.depth.dtype == np.uint16
        measured = scene.depth[scene.depth > 0]
        assert measured.min() >= 1000 * S.NEAR and measured.max() <= 40_000
        holes = (scene.depth == 0).mean()
        assert 0.03 < holes < 0.6, holes
        assert scene.rgb.std() > 10, "a picture without content"
        k = scene.intrinsics
        assert (k["width"], k["height"]) == (640, 480)
        assert 390 < k["fx"] < 610 and 390 < k["fy"] < 610
        assert 300 < k["cx"] < 340 and 220 < k["cy"] < 260
    means = [s.depth[s.depth > 0].mean() / 1000 for s in scenes]
    assert min(means) < 4 and max(means) > 8, "both near and far scenes"
    assert len({digest(s) for s in scenes}) == len(scenes)


def test_another_size_sees_the_same_scene():
    small, whole = S.render(0, 1, (240, 320)), S.render(0, 1)
    assert small.rgb.shape == (240, 320, 3)
    assert small.intrinsics["fx"] == pytest.approx(whole.intrinsics["fx"] / 2)
    near = cv2.resize(whole.depth, (320, 240), None, 0, 0, cv2.INTER_NEAREST)
    both = (near > 0) & (small.depth > 0)
    ratio = small.depth[both] / near[both]
    assert both.mean() > 0.3 and np.median(np.abs(ratio - 1)) < 0.05


def test_bits_depend_on_seed_and_index_only(scenes):
    code = (
        "import sys; sys.path.append(sys.argv[1]); import hashlib, synthetic as S\n"
        "for k in (5, 2):\n"
        "    s = S.render(0, k)\n"
        "    print(hashlib.sha256(s.rgb.tobytes() + s.depth.tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code, ROOT], capture_output=True, text=True)
    assert run.stdout.split() == [digest(scenes[5]), digest(scenes[2])], run.stderr
    assert digest(S.render(1, 2)) != digest(scenes[2])
    with pytest.raises(ValueError):
        S.render(-1, 0)


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
    width = {"gable": (1 - y) / 2, "pyramid": (1 - y) / 2}.get(solid.kind, 1)
    depth = width if solid.kind == "pyramid" else 1
    return (x < width) & (z < depth) & (np.abs(y) < 1)


def test_rays_meet_what_marching_meets():
    """Every kind of solid, some overlapping, against steps of 2 mm of z along 400 rays."""
    rng = np.random.default_rng(0)
    world = S.World(rng)
    world.add("room", (0, 0, 2), (7, 3, 7), "wallpaper", "ceiling", "floor", yaw=0.1)
    for k, kind in enumerate(["box", "gable", "pyramid", "ellipsoid", "cylinder"] * 2):
        foot = (-1.2 + 0.9 * (k % 5), 1.2 * (k // 5), 3.2 + 0.8 * (k % 2))
        world.add(kind, foot, rng.uniform(0.5, 1.1, 3), "wood", yaw=rng.uniform(0, 3))
    camera = S.camera_at(world, (120, 160), 1.3, 0.2, 0.1)
    z = S.cast(camera, world.solids).z
    steps = np.arange(0.02, 9, 0.002)
    kinds, apart = set(), 0
    for row, col in zip(rng.integers(0, 120, 400), rng.integers(0, 160, 400)):
        ray = camera.axes @ [(col - camera.cx) / camera.fx, (row - camera.cy) / camera.fy, 1]
        p = camera.eye + steps[:, None] * ray
        met = [inside(s, p) ^ (s.kind == "room") for s in world.solids]
        first = np.argmax(np.any(met, axis=0))
        apart += abs(z[row, col] - steps[first]) > 0.003
        kinds |= {s.kind for s, m in zip(world.solids, met) if m[first]}
    assert apart <= 4, "more than the steps that jump over a corner"
    assert kinds == set(S.FLAT_SIDES), "a kind no ray met"


def test_depth_is_along_the_axis_and_intrinsics_fit(monkeypatch):
    """Back-projected, the floor is a plane 1.5 m below the camera and tilted by its pitch."""

    def floor(world, size):
        world.add("box", (0, -1, 0), (2e4, 1, 2e4), "paving")
        world.add("box", (0, 600, 0), (1e5, 1, 1e5), "sky")
        sun, grey = np.array([0, 1.0, 0]), np.full(3, 0.5)
        return S.camera_at(world, size, 1.5, 0.3, 0.35), S.Light(
            sun, 0, grey, grey, grey, np.zeros(2), 20
        )

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
    camera = S.camera_at(S.World(np.random.default_rng(0)), z.shape, 1.5, 0, 0)._replace(fx=500)
    full = [np.full(z.shape, value, np.float32) for value in (1, bright, gloss)]
    return S.sense(np.random.default_rng(0), camera, z.astype(np.float32), *full)


def test_a_near_edge_hides_a_strip_as_wide_as_its_jump_of_disparity():
    z = np.full((480, 640), 4.0)
    z[:, 300:400] = 2.0
    empty = (sensed(z) == 0).mean(0)
    strip = 500 * S.BASELINE * (1 / 2 - 1 / 4)  # 15 pixels, on the left of the edge
    assert empty[302 - int(strip) : 299].min() > 0.95
    assert empty[200 : 297 - int(strip)].mean() < 0.1
    assert empty[405:600].mean() < 0.1, "nothing is hidden on the right"
    assert empty[:14].min() > 0.95, "the second eye does not see the left border"


def test_out_of_range_is_a_hole_and_noise_grows_with_distance():
    assert not sensed(np.full((480, 640), 500.0)).any(), "sky"
    assert not sensed(np.full((480, 640), S.NEAR - 0.05)).any(), "too near"
    spread = []
    for metres in (2.0, 8.0):
        depth = sensed(np.full((480, 640), metres))
        spread.append(depth[depth > 0].std())
        assert depth[depth > 0].mean() == pytest.approx(1000 * metres, rel=0.005)
    assert 4 < spread[1] / spread[0] < 20


def test_dark_and_glossy_things_drop_out_more():
    z = np.full((480, 640), 20.0)
    plain, glossy, dark = ((sensed(z, *k) == 0).mean() for k in ((), (1.2,), (0.0, 0.01)))
    assert plain < 0.1 and glossy > 2 * plain and dark > 1.5 * plain


# ------------------------------------------------------------------------------------ the data set


def test_ensure_writes_the_set_once_with_any_number_of_jobs(tmp_path, monkeypatch):
    one, two = (S.ensure(2, root=tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    files = sorted(p.relative_to(one).as_posix() for p in one.rglob("*") if p.is_file())
    assert files == [
        "train/depth/000000.png", "train/depth/000001.png", "train/intrinsics.json",
        "train/rgb/000000.jpg", "train/rgb/000001.jpg",
        "val/depth/000000.png", "val/intrinsics.json", "val/rgb/000000.jpg",
    ]  # fmt: skip
    assert one.name == f"synthetic-{S.VERSION}-2-seed0" and list(one.parent.iterdir()) == [one]
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    for split, stream in (("train", 0), ("val", 1)):
        scene = S.render(stream, 0)
        depth = cv2.imread(str(one / split / "depth/000000.png"), cv2.IMREAD_UNCHANGED)
        assert (depth == scene.depth).all() and depth.dtype == np.uint16
        rgb = cv2.imread(str(one / split / "rgb/000000.jpg"))[..., ::-1]
        assert np.abs(rgb.astype(float) - scene.rgb).mean() < 3
        frames = json.loads((one / split / "intrinsics.json").read_text())["frames"]
        assert frames["000000"] == scene.intrinsics
    before = {name: (one / name).stat().st_mtime_ns for name in files}
    monkeypatch.setattr(S, "write_scene", None)  # a second call draws nothing
    assert S.ensure(2, root=tmp_path / "1", jobs=1) == one
    assert before == {name: (one / name).stat().st_mtime_ns for name in files}


def test_validation_scenes_are_never_training_scenes(tmp_path, sketch):
    train, val = set(), set()
    for seed in range(8):
        for count in (1, 7, 20):
            sketch.clear()
            S.ensure(count, seed, tmp_path, jobs=1)
            assert len(sketch) == count + max(1, count // 8)
            train |= set(sketch[:count])
            val |= set(sketch[count:])
    assert not train & val


def test_a_killed_run_leaves_nothing_in_the_way(tmp_path, sketch, monkeypatch):
    S.ensure(3, root=tmp_path / "other", jobs=1)
    name = f"synthetic-{S.VERSION}-3-seed0"
    left = tmp_path / f".{name}.0123.tmp" / "train" / "rgb"
    left.mkdir(parents=True)  # as after kill -9
    with monkeypatch.context() as patch:
        patch.setattr(S, "write_scene", lambda task: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            S.ensure(3, root=tmp_path, jobs=1)
    assert not (tmp_path / name).exists() and not list(tmp_path.glob(f".{name}.*[!3].tmp"))
    assert len(list((S.ensure(3, root=tmp_path, jobs=1) / "train/rgb").iterdir())) == 3


def test_the_slower_of_two_builders_takes_the_other_s_set(tmp_path, sketch, monkeypatch):
    write, won = S.write_scene, []

    def overtaken(task):
        if not won:
            won.append(None)
            won[0] = S.ensure(3, root=tmp_path, jobs=1)
            won.append((won[0] / "train/intrinsics.json").stat().st_ino)
        return write(task)

    monkeypatch.setattr(S, "write_scene", overtaken)
    folder = S.ensure(3, root=tmp_path, jobs=1)
    assert folder == won[0] and (folder / "train/intrinsics.json").stat().st_ino == won[1]
    assert list(tmp_path.iterdir()) == [folder], "the slower one's folder is gone"


def test_errors_say_what_to_do(tmp_path, sketch, monkeypatch):
    for arguments in ({"count": 0}, {"count": 1, "seed": -1}, {"count": 1, "jobs": 0}):
        with pytest.raises(ValueError, match="must be >= 1"):
            S.ensure(root=tmp_path, **arguments)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file.*Not a directory.*LITEDEPTH_CACHE"):
        S.ensure(1, root=tmp_path / "file" / "cache", jobs=1)

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left.*LITEDEPTH_CACHE") as caught:
        S.ensure(1, root=tmp_path / "full", jobs=1)
    assert caught.value.errno == errno.ENOSPC and not list((tmp_path / "full").iterdir())


def test_the_cache_is_where_the_environment_says(tmp_path, sketch, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LITEDEPTH_CACHE", raising=False)
    assert S.cache_root() == tmp_path / "home/.cache/litedepth"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert S.cache_root() == tmp_path / "xdg/litedepth"
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path / "here"))
    assert S.ensure(1, jobs=1).parent == tmp_path / "here"


def test_command_line_draws_a_contact_sheet(tmp_path, monkeypatch, capsys):
    threads = cv2.getNumThreads()
    monkeypatch.setattr(sys, "argv", ["synthetic.py", "--count", "2", "--out", str(tmp_path / "a")])
    S.main()
    cv2.setNumThreads(threads)
    sheet = cv2.imread(str(tmp_path / "a/contact-sheet.png"))
    assert sheet.shape == (480, 3 * 1280, 3)
    assert "scenes/s" in capsys.readouterr().out
    magenta = (sheet[:, 640:1280] == (255, 0, 255)).all(-1)
    assert (magenta == (S.render(0, 0).depth == 0)).all()
