"""Cameras out of JSON: every layout gives the same camera, written down here by hand."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from plumbing.cameras import camera_of, cameras_in, fit_K, keys_of, read_cameras, turn_K
from plumbing.files import UserError

FX, FY, CX, CY, W, H = 500.5, 510.25, 320.5, 240.25, 640, 480
ROWS = [FX, 0, CX, 0, FY, CY, 0, 0, 1]
COLUMNS = [FX, 0, 0, 0, FY, 0, CX, CY, 1]
NESTED = [ROWS[:3], ROWS[3:6], ROWS[6:]]
SIZE = {"width": W, "height": H}
NAMED = {"fx": FX, "fy": FY, "cx": CX, "cy": CY}
OTHER = {"fx": 380.5, "fy": 380.5, "cx": 321, "cy": 241}
POSE = [[0, 1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]]
FISHEYE = {"k": [0.1, 0.2, 0.3, 0.4], "p": [0, 0]}

LAYOUTS = {
    "plain": SIZE | NAMED,
    "above others": SIZE | NAMED | {"left": OTHER, "lens": {"focal_length": 4.2}},
    "beside millimetres": SIZE | {"focal_length": 4.2, "intrinsics": NAMED},
    "open3d": SIZE | {"intrinsic_matrix": COLUMNS},
    "open3d trajectory": {"class_name": "PinholeCameraParameters", "extrinsic": sum(POSE, []),
                          "intrinsic": SIZE | {"intrinsic_matrix": COLUMNS}},
    "realsense": SIZE | {"fx": FX, "fy": FY, "ppx": CX, "ppy": CY, "model": "brown", "coeffs": [0]},
    "realsense both": {"depth": SIZE | OTHER, "color": SIZE | NAMED, "depth_scale": 0.001},
    "realsense stereo": {"infrared_1": SIZE | OTHER, "left": SIZE | OTHER, "rgb": SIZE | NAMED},
    "ros": {"header": {"seq": 1}, "height": H, "width": W, "K": ROWS, "R": [1, 0, 0] * 3,
            "D": [0.1, 0, 0, 0, 0], "P": [FX + 9, 0, CX, 0, 0, FY, CY, 0, 0, 0, 1, 0]},
    "ros 2": SIZE | {"k": ROWS, "d": [], "p": ROWS[:3] + [0] + ROWS[3:6] + [0] + [0, 0, 1, 0]},
    "ros file": {"image_width": W, "image_height": H,
                 "camera_matrix": {"rows": 3, "cols": 3, "data": ROWS}},
    "opencv": {"cameracoeffs": [{"ret": 0.3, "mtx": NESTED, "dist": [[0.1, 0, 0, 0, 0]],
                                 "img_width": W, "img_height": H}]},
    "opencv bare": NESTED,
    "bare columns": COLUMNS,
    "nerfstudio": {"camera_model": "OPENCV", "fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY,
                   "w": W, "h": H, "frames": [{"file_path": "images/a.jpg", "matrix": POSE}]},
    "nerfstudio each": {"w": W, "h": H, "frames": [
        {"file_path": f"./images\\{stem}.png", "fl_x": FX + i, "fl_y": FY, "cx": CX, "cy": CY,
         "transform_matrix": POSE} for i, stem in enumerate("ab")]},
    "partly each": {"w": W, "h": H, "fl_x": 9, "fl_y": FY, "cx": CX, "cy": CY, "frames": [
        {"file_path": "images/a", "fl_x": FX}]},
    "another's frame": SIZE | NAMED | {"frames": [{"file_path": "b.jpg"}]},
    "record3d": {"h": H, "w": W, "K": COLUMNS, "fps": 60, "poses": [[0, 0, 0, 1, 0, 0, 0]]},
    "arkit": {"Timestamp": 1.5, "Intrinsic": [[COLUMNS[:3], COLUMNS[3:6], COLUMNS[6:]]],
              "Extrinsic": [POSE]},
    "scanner app": {"intrinsics": ROWS, "cameraPoseARFrame": sum(POSE, [])},
    "with an inverse": {"cameraIntrinsics": COLUMNS, "cameraIntrinsicsInversed": [1 / FX, 0, 0, 0,
                        1 / FY, 0, -CX / FX, -CY / FY, 1]},
    "scannet++": {"a": {"poses": POSE, "intrinsic": NESTED}, "b": {"intrinsic": [[9]]}},
    "bop": {"0": {"cam_K": ROWS, "depth_scale": 1.0}, "1": {"cam_K": COLUMNS[::-1]}},
    "matrix of four": {"K": [[*r, 0] for r in NESTED] + [[0, 0, 0, 1]]},
    "columns of four": {"intrinsic": [FX, 0, 0, 0, 0, FY, 0, 0, CX, CY, 1, 0, 0, 0, 0, 1]},
    "zivid": {"CameraIntrinsics": {"CameraMatrix": {"CX": CX, "CY": CY, "FX": FX, "FY": FY}}},
    "prefixed": {"color_fx": FX, "rgb_fy": FY, "cx_color": CX, "cy": CY, **FISHEYE},
    "text": {k: [str(v)] for k, v in NAMED.items()},
    "frames": {"frames": {"a": SIZE | NAMED, "b": SIZE | OTHER}},
    "frames by file": {"frames": {"a.jpg": SIZE | NAMED, "b.jpg": SIZE | OTHER}},
    "files": {"a.jpg": SIZE | NAMED, "b.jpg": SIZE | OTHER},
    "one focal length": SIZE | {"f": FX, "K": ROWS, "cx": CX, "cy": CY, "fy": FY},
    "frames of matrices": {"frames": {"a": NESTED}},
    "list": [{"id": 0, "img_name": "a.jpg", **NAMED, **SIZE}, {"img_name": "b", **OTHER}],
}  # fmt: skip
WITHOUT = {
    "opencv bare", "bare columns", "arkit", "scanner app", "with an inverse", "scannet++", "bop",
    "matrix of four", "columns of four", "zivid", "prefixed", "text", "frames of matrices",
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    (tmp_path / "k.json").write_text(json.dumps(LAYOUTS[layout]))
    K, size = camera_of(read_cameras(tmp_path / "k.json"), "0000" if layout == "bop" else "a")
    assert K.tolist() == [FX, FY, CX, CY] and K.dtype == np.float64
    assert size == (None if layout in WITHOUT else (H, W))


@pytest.mark.parametrize("content, told", [
    (["k", 5], "expected an object"), (5, "expected an object"),
    ({"frames": 5}, "expected an object"),
    ({"fx": FX, "cx": CX, "cy": CY}, "expected numbers.* found fx, cx, cy"),
    (NAMED | {"fx": None}, "expected numbers"), (NAMED | {"fx": "x"}, "expected numbers"),
    (NAMED | {"width": 640}, r"height and width \[640"),
    (NAMED | {"width": 640, "height": 0}, r"height and width \[0"),
    (SIZE | NAMED | {"width": float("nan")}, "height and width"),
    ({"fx": 0.8, "fy": 1.1, "cx": 0.5, "cy": 0.5}, "impossible.*in pixels"),  # shares of the sides
    (NAMED | {"cx": 0.5, "cy": 0.5}, "impossible"), (NAMED | {"fy": -FY}, "impossible"),
    (NAMED | {"fx": float("nan")}, "impossible"), ({"focal_length": 4.25, "cx": 320, "cy": 240},
                                                   "impossible"),  # millimetres
    ({"K": [FX, 0, CX, 0, FY, CY, 0, 1, 0]}, "impossible"),  # neither by rows nor by columns
    ({"K": [0] * 9}, "impossible.*found K"),
    ({"left": NAMED, "right": OTHER}, "several cameras .left.* right"),
    (NAMED | {"K": [OTHER["fx"], *ROWS[1:]]}, "several cameras"),
    ({"c.jpg": NAMED, "b.jpg": OTHER}, "several cameras"),
    ({"frames": {"b": NAMED}}, "no frame 'a'"),
    ({"frames": []}, "no frame 'a'"),
])  # fmt: skip
def test_what_could_be_two_things_or_none_is_refused(content, told):
    with pytest.raises(UserError, match=told) as caught:
        camera_of(cameras_in(content), "a")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("content, keys", [
    ({}, "none"), ({"camera_angle_x": 0.6, "frames": [{"file_path": "a"}]}, "camera_angle_x, fr"),
    ({"depth_intrinsics": SIZE | OTHER, "scale": 1}, "depth_intrinsics, scale"),
    ({"Calibration": {"Cameras": [{"Intrinsics": {"ModelParameters": [0.49, 0.5] * 7}}]}},
     "Calibration"), (FISHEYE, "k, p"),
])  # fmt: skip
def test_no_focal_length_names_what_there_is(content, keys):
    assert camera_of(cameras_in(content), "a") == (None, None)
    assert keys_of(cameras_in(content)).startswith(keys)


def test_nested_without_end(tmp_path):
    for n in (300, 5000):
        (tmp_path / "k.json").write_text('{"a":' * n + "[1]" + "}" * n)
        try:
            assert camera_of(read_cameras(tmp_path / "k.json"), "a") == (None, None)
        except UserError as error:
            assert n == 5000 and "not readable" in str(error)


# How a picture (H, W) that is stored is shown, by the standard's own words for the orientations:
# where the stored row 0 and column 0 come to lie.
SHOWN = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T, 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", SHOWN)
def test_K_is_turned_with_the_picture(orientation):
    """A point in space lies on the same pixel of the turned picture, seen by the turned camera."""
    h, w, K = 48, 64, np.array([50.0, 60.0, 30.0, 20.0])
    for X, Y in ((0.1, 0.2), (-0.3, 0.15), (0.2, -0.25)):
        u, v = K[0] * X + K[2], K[1] * Y + K[3]
        stored = np.zeros((h, w))
        stored[round(v), round(u)] = 1
        shown = SHOWN[orientation](stored)
        fx, fy, cx, cy = turn_K(K, (h, w), orientation)
        axes = SHOWN[orientation](np.arange(4).reshape(2, 2))  # where right and down have gone
        right, down = ((np.argwhere(axes == k) - np.argwhere(axes == 0))[0][::-1] for k in (1, 2))
        x, y = X * right + Y * down
        seen = np.argwhere(shown)[0][::-1]
        assert np.abs((fx * x + cx, fy * y + cy) - seen).max() <= 0.5


def test_K_fits_the_picture_as_stored_or_upright():
    K, stored, upright = np.array([500.0, 510, 320, 240]), (480, 640), (640, 480)
    assert fit_K(K, stored, upright, 6).tolist() == [510, 500, 239, 320]  # H-1-cy, cx
    assert fit_K(K, (960, 1280), upright, 6).tolist() == [255, 250, 359.25, 159.75]
    assert fit_K(K, None, upright, 6).tolist() == [510, 500, 239, 320]
    assert fit_K(K, upright, upright, 6).tolist() == K.tolist()
    assert fit_K(K, (480, 480), (480, 480), 3).tolist() == [500, 510, 159, 239]
    with pytest.raises(UserError, match="480 wide and 640 high, this one has 640 and 480: another"):
        fit_K(K, upright, stored)
    assert re.search("turned", str(pytest.raises(UserError, fit_K, K, (9, 16), stored, 6).value))
