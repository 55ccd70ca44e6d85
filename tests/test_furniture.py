"""Furniture from .sh3f archives: true size, licences, materials; models made here."""

import zipfile

import cv2
import numpy as np
import pytest

from plumbing import furniture
from plumbing.files import UserError
from plumbing.scenes import TEXTURES

# A shape 2 wide (x), 4 deep (-y: its front) and 1 high (z): a floor square, a wall with its back
# to +y that counts its corners from the end, a pane of glass, a triangle without an area.
OBJ = """mtllib a.mtl
v 10 0 5
v 12 0 5
v 12 4 5
v 10 4 5
usemtl oak_top
f 1/1/1 2/2/1 3/3/1 4/4/1
v 10 4 6
usemtl Painted
f -2// -1// -3//
usemtl window
f 1 2 5
usemtl unknown
f 1 1 2
"""
MTL = """newmtl oak_top
Kd 1 0 0
map_Kd top.png
newmtl Painted
Kd 0.5 0.6 0.7
Ks 0.5 0.5 0.5
Ns 100
newmtl window
d 0.2
"""
ROW = {"category": "Living room", "model": "/m/{n}/a.obj", "width": "100",
       "depth": "50", "height": "80", "creator": "Somebody", "doorOrWindow": "false"}  # fmt: skip
TURNED = {"modelRotation": "1 0 0 0 0 1 0 -1 0", "dropOnTopElevation": "40", "elevation": "10"}
BLEND = """Thank you for downloading "Chair" by Jane Doe
Released under
{}
Downloaded from http://www.blendswap.com/blends/view/7"""
PAGE = """<h1><a href="http://www.blendswap.com/blends/view/8">Lily</a></h1> has been released by
<a href="x">Nmn9</a> under the following license: <h2>Creative Commons Attribution 3.0</h2>"""


def write(path, models, files=(), obj=OBJ):
    """An archive of {name: what differs from ROW}."""
    lines = ["license=Creative Commons Attribution 3.0 United States © 2003-2008 A & B"]
    for n, (name, row) in enumerate(models.items(), 1):
        row = ROW | {"name": name} | row
        lines += [f"{key}#{n}={value.format(n=n)}" for key, value in row.items()]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(lines).encode("latin-1"))
        for n in range(1, len(models) + 1):
            archive.writestr(f"m/{n}/a.obj", obj)
            archive.writestr(f"m/{n}/a.mtl", MTL)
            image = np.zeros((8, 8, 3), np.uint8) + np.uint8([51, 102, 204])  # BGR
            archive.writestr(f"m/{n}/top.png", cv2.imencode(".png", image)[1].tobytes())
        for name, text in dict(files).items():
            archive.writestr(name, text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LITEDEPTH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_model_has_its_size_and_stands_on_the_floor_with_its_front_ahead(folder):
    write(folder / "a.sh3f", {"First": {"dropOnTopElevation": "-1"}, "Bench": TURNED, "Box": {}})
    found = furniture.library(folder)
    assert [m.name for m in found.models] == ["First", "Bench", "Box"]
    model = found.models[1]
    assert (model.size, model.elevation, model.top) == ([1, 0.8, 0.5], 0.1, 0.4)
    assert (found.models[0].top, found.models[2].top) == (-0.01, 0.8)  # not told: on all of it
    assert model.faces == [3, 6]
    triangles = found.triangles[slice(*model.faces)]
    floor = np.float32([[-0.5, 0, 0.25], [0.5, 0, 0.25], [0.5, 0, -0.25], [-0.5, 0, -0.25]])
    top = np.float32([-0.5, 0.8, -0.25])
    wanted = [floor[[0, 1, 2]], floor[[0, 2, 3]], [floor[3], top, floor[2]]]
    np.testing.assert_allclose(triangles, wanted, atol=1e-6)
    assert isinstance(found.triangles, np.memmap)
    assert found.triangles.dtype == found.paints.dtype == np.float32


def test_paints_are_the_mean_of_a_picture_or_the_materials_colour(folder):
    write(folder / "a.sh3f", {"First": {}, "Bench": {"category": "Exterior"}})
    found = furniture.library(folder)
    rows = found.material[slice(*found.models[1].faces)]
    wood, _, painted = found.paints[rows]
    assert [*TEXTURES][int(wood[1])] == "wood" and [*TEXTURES][int(painted[1])] == "cloud"
    middle = (np.sqrt(wood[2:5]) + np.sqrt(wood[5:8])) / 2
    np.testing.assert_allclose(middle, [0.8, 0.4, 0.2], atol=1e-6)
    middle = (np.sqrt(painted[2:5]) + np.sqrt(painted[5:8])) / 2
    np.testing.assert_allclose(middle, [0.5, 0.6, 0.7], atol=1e-6)
    assert painted[8] == 0.25 and painted[9] == 0


def test_glass_alone_stays(folder):
    glass = OBJ.replace("oak_top", "window").replace("Painted", "window")
    write(folder / "a.sh3f", {"Bowl": {}}, obj=glass)
    assert furniture.library(folder).models[0].faces == [0, 4]  # two, the wall, the pane


def test_a_models_own_licence_wins_and_credits_name_it(folder):
    free = "Creative Commons Zero (Public Domain)"
    shared = "Creative Commons Attribution 3.0 ShareAlike"
    files = {
        "m/1/BLENDSWAP_LICENSE.txt": BLEND.format(free),
        "m/2/8 - License.html": PAGE,
        "m/3/BLENDSWAP_LICENSE.txt": BLEND.format(shared),
        "m/4/LICENSE.txt": BLEND.format("Blend Swap Fan Art"),
    }
    left = {"Walker": {"category": "Characters"}, "Gate": {"doorOrWindow": "true"}}
    names = dict.fromkeys(["Chair", r"Lily \u20ac", "Shared", "Fan art", "Plain"], {})
    write(folder / "a.sh3f", names | left, files)
    found = furniture.library(folder)
    by, page = "Creative Commons Attribution 3.0", "https://creativecommons.org"
    assert furniture.credits(found.models * 2).splitlines()[2:] == [
        f"| A & B | [{by} United States]({page}/licenses/by/3.0/us/) | a.sh3f | Plain |",
        f"| Jane Doe | [Creative Commons Zero]({page}/publicdomain/zero/1.0/) | a.sh3f | Chair |",
        f"| Nmn9 | [{by}]({page}/licenses/by/3.0/) | a.sh3f | Lily \u20ac |",
    ]


def test_a_whole_cache_is_read_without_its_lock(folder, monkeypatch):
    write(folder / "a.sh3f", {"Box": {}})
    first = furniture.library(folder)
    monkeypatch.setattr(furniture, "locked", None)
    assert furniture.library(folder).models == first.models


def test_broken_models_are_left_out_and_broken_archives_named(folder, capsys):
    write(folder / "a.sh3f", {"Good": {}, "Bad": {"width": "wide"}, "Lost": {"model": "/x.obj"}})
    assert [m.name for m in furniture.library(folder).models] == ["Good"]
    told = capsys.readouterr().err
    assert "a.sh3f: Bad is broken (could not convert" in told and "Lost is broken" in told
    furniture.library(folder)
    assert capsys.readouterr().err == ""  # from the cache
    write(folder / "a.sh3f", {"Only": {}}, obj=OBJ.replace("f 1 2 5", "f 1 2 0"))
    with pytest.raises(UserError, match="no model of its"):
        furniture.library(folder)
    (folder / "b.sh3f").write_bytes(b"PK\3\4 half")
    with pytest.raises(UserError, match=r"b\.sh3f: a broken archive"):
        furniture.library(folder)
    (folder / "b.sh3f").unlink()
    (folder / "b.sh3f").mkdir()
    with pytest.raises(UserError, match=r"b\.sh3f: cannot be read [(]Is a directory"):
        furniture.library(folder)
    assert len([*(folder / "cache").glob("*/index.json")]) == 1  # nothing half-made
    with pytest.raises(UserError, match="apt install sweethome3d-furniture"):
        furniture.library(folder / "cache")


def test_a_disk_without_room_is_named_and_the_next_call_goes_on(folder, monkeypatch):
    write(folder / "a.sh3f", {"Box": {}})
    with monkeypatch.context() as patch:
        patch.setattr(furniture.np, "save", full)
        with pytest.raises(UserError, match="furniture-.*written [(]90 requested.*room"):
            furniture.library(folder)
    assert [m.name for m in furniture.library(folder).models] == ["Box"]


def full(path, array):
    """numpy's words for a full disk."""
    path.write_bytes(b"cut")
    raise OSError("90 requested and 3 written")
