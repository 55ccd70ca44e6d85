"""Rooms and streets: geometry computed by hand, a tiny library of furniture made here."""

import json

import numpy as np
import pytest

pytest.importorskip("embreex")

import test_furniture

from plumbing import rooms
from plumbing.report import Comparison

SIZE = (48, 64)
THINGS = {
    "Table": {}, "Chair": {"width": "45"}, "Cup": {"width": "9", "depth": "9", "height": "9"},
    "Sink": {"category": "Kitchen"}, "Car": {"category": "Vehicles", "depth": "400"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("rooms")
        patch.setenv("LITEDEPTH_CACHE", str(path / "cache"))
        test_furniture.write(path / "a.sh3f", THINGS)
        yield path


def test_bits_depend_on_stream_and_index_only(folder):
    first = {k: rooms.render(0, k, SIZE, folder) for k in range(12)}
    for k in (7, 2, 11, 3):
        again = rooms.render(0, k, SIZE, folder)
        assert all((a == b).all() for a, b in zip(again[:2], first[k][:2]))
        assert again.intrinsics == first[k].intrinsics
    assert (rooms.render(1, 3, SIZE, folder).rgb != first[3].rgb).any()


def test_pictures_are_whole_and_streets_reach_65_m(folder):
    farthest = {True: 0, False: 0}
    for k in range(0, 120, 2):
        place, tracer, _ = rooms.place_of(0, k // rooms.VIEWS, folder)
        assert all(np.isfinite(triangles).all() for triangles, _ in place.parts)
        assert np.isfinite(tracer.paints).all() and (tracer.paint < len(tracer.paints)).all()
        rgb, depth, _ = rooms.render(0, k, SIZE, folder)
        assert rgb.shape == (*SIZE, 3) and rgb.dtype == np.uint8 and depth.dtype == np.uint16
        street = place.sky is not None
        farthest[street] = max(farthest[street], depth.max())
    assert 45_000 < farthest[True] <= 65_000 and 4000 < farthest[False] <= 12_000


def test_depth_and_projection_are_right_by_hand(folder, monkeypatch):
    """A box whose front is at z = 3 m before a wall at 5, seen from 1 m behind the origin."""
    place = rooms.Place(np.random.default_rng(0), rooms.library(folder))
    place.box((-5, -5, 5), (5, 5, 6), "wood")
    turned = rooms.Frame(np.array([0.5, 0, 3.4]), np.pi / 2)  # its x goes away from the camera
    place.box((-0.2, 0, -0.4), (0.4, 0.8, 0.4), "cloth", turned)  # x .1 to .9, z 3 to 3.6
    eye, axes = np.float32([0, 0.4, -1]), np.diag([1, -1, 1])
    rays, K = rooms.rays_of(axes, 0.75, SIZE)
    flat = rays.reshape(-1, 3)
    tracer = rooms.Tracer(place)
    t, _, points, normal = tracer.cast(np.zeros_like(flat) + eye, flat)
    assert K["fx"] == K["fy"] == 48 and (K["cx"], K["cy"]) == (31.5, 23.5)
    row, column = np.mgrid[:48, :64]
    X, Y = 4 * (column - K["cx"]) / K["fx"], 0.4 - 4 * (row - K["cy"]) / K["fy"]
    front = (X > 0.1) & (X < 0.9) & (Y > 0) & (Y < 0.8)
    assert front.sum() > 50
    np.testing.assert_allclose(t[front.ravel()], 4, atol=1e-3)
    side = ~front & (abs(Y - 0.4) < 0.3) & (X > 0.06) & (X < 0.1)  # seen behind its left edge
    np.testing.assert_allclose(t[~(front | side).ravel()], 6, atol=1e-3)
    np.testing.assert_allclose(points[front.ravel()][:, 2], 2.999, atol=1e-4)
    np.testing.assert_allclose(normal[front.ravel()] - [0, 0, -1], 0, atol=1e-5)
    monkeypatch.setattr(rooms, "aim", lambda *_: (eye, axes, 0.75))
    monkeypatch.setattr(rooms, "place_of", lambda *_: (place, tracer, []))
    scene = rooms.render(0, 0, SIZE)
    assert scene.intrinsics == K
    shown = scene.depth[front & (scene.depth > 0)]
    assert len(shown) > 30 and abs(shown / 1000 - 4).max() < 0.1  # the sensor's noise


def test_a_stopped_run_goes_on_where_it_was(folder):
    made = rooms.ensure(3, SIZE, folder)
    assert len([*made.glob("train/rgb/*.jpg")]) == 3 and len([*made.glob("val/depth/*.png")]) == 1
    run = folder / "run/best.pt"  # export.py compares on the run's own pictures, and draws none
    run.parent.mkdir()
    ran = {"data": "rooms:3", "image_size": SIZE, "furniture": str(folder)}
    run.with_name("args.json").write_text(json.dumps(ran))
    assert Comparison().of(run).pairs("val", None)[0].rgb == made / "val/rgb/000000.jpg"
    other = made.with_name(made.name.replace("-3-", "-4-"))
    aside = made.with_name(f".{other.name}.unfinished")
    for part, end in ("rgb", "jpg"), ("depth", "png"), ("camera", "json"):
        (aside / "train" / part).mkdir(parents=True)
        (aside / f"train/{part}/000001.{end}").write_text('{"done": "before"}')
    assert rooms.ensure(4, SIZE, folder) == other and not aside.exists()
    assert (other / "train/rgb/000001.jpg").read_text() == '{"done": "before"}'
    old, new = ((folder / "train/depth/000002.png").read_bytes() for folder in (made, other))
    assert old == new
