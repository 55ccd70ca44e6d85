"""Scale and shift: the fit against a slow twin, the baked convolution, the command's refusals."""

import json
import os

import cv2
import numpy as np
import pytest
import torch

import evaluate
import model
from plumbing import runtime
from plumbing.calibration import CALIBRATION, fit_calibration, read_calibration
from plumbing.files import UserError, sha256
from plumbing.pairs import DataError, list_pairs


def scene(rng, size=(24, 32), holes=0.3):
    """Truth (H, W), metres, uniform in 0.5 .. 8, a share of it holes."""
    d = rng.uniform(0.5, 8, size)
    d[rng.random(size) < holes] = 0
    return d


def pixels(pairs, count=10**6):
    return [evaluate.sample_pixels(d_hat, d, count, seed=i) for i, (d_hat, d) in enumerate(pairs)]


def slow_loss(pairs, a, b, max_depth):
    """Mean over pictures of mean over pixels of |g|, one pixel at a time."""
    total = 0.0
    for d_hat, d in pairs:
        values = []
        for p, t in zip(d_hat.ravel().tolist(), d.ravel().tolist()):
            if t > 0.001:
                p = min(max(a * p + b, 0.001), max_depth)
                values.append(abs(np.log(p) - np.log(t)))
        total += sum(values) / len(values)
    return total / len(pairs)


# ------------------------------------------------------------------------------------------ the fit


@pytest.mark.parametrize("a, b", [(1.0, 0.0), (0.7, 0.31), (1.9, -0.42), (1000.0, -3.0), (0.02, 5)])
def test_recovers_scale_and_shift(a, b):
    rng = np.random.default_rng(0)
    truths = [scene(rng) + (b if b > 1 else 0) for _ in range(4)]
    pairs = [((d - b) / a, d * (rng.random(d.shape) > 0.5)) for d in truths]
    found = fit_calibration(pixels(pairs), max_depth=40)
    assert found == pytest.approx((a, b), rel=1e-6, abs=1e-6)


def test_predictions_that_hardly_differ():
    """A wall: at many shifts of the search nothing would be above 0."""
    d_hat = np.linspace(2, 2.1, 200)[None]
    found = evaluate.fit_calibration(pixels([(d_hat, 1.5 * d_hat + 0.1)]), max_depth=40)
    assert found == pytest.approx((1.5, 0.1), rel=1e-4)


@pytest.mark.parametrize("seed, max_depth", [(0, 40), (1, 6.0), (2, 40)])
def test_fit_is_no_worse_than_a_grid_search(seed, max_depth):
    """Noise with far outliers, pictures of unlike size, dead pixels, predictions that are cut."""
    rng = np.random.default_rng(seed)
    pairs = []
    for size in ((3, 5), (9, 8), (6, 7)):
        d = scene(rng, size)
        d_hat = (0.8 * d + 0.4) * np.exp(rng.standard_t(2, size) * 0.2)
        d_hat[0, 0] = 0
        pairs.append((d_hat, d))
    a, b = fit_calibration(pixels(pairs), max_depth)
    found = slow_loss(pairs, a, b, max_depth)
    grid = [(s, t) for s in np.linspace(0.4, 2.4, 26) for t in np.linspace(-1.5, 1.5, 31)]
    grid += [(a * (1 + i), b + j) for i in (-1e-3, 0, 1e-3) for j in (-1e-3, 0, 1e-3)]
    assert found <= min(slow_loss(pairs, s, t, max_depth) for s, t in grid) + 1e-9
    assert found < 0.95 * slow_loss(pairs, 1, 0, max_depth)


def test_a_few_pictures_of_another_kind_do_not_lead():
    rng = np.random.default_rng(5)
    alike = [(d / 1.1, d) for d in (scene(rng) for _ in range(9))]
    other = [(d / 6, d) for d in (scene(rng),)]
    a, _ = fit_calibration(pixels(alike + other), 40)
    assert a == pytest.approx(1.1, rel=0.02)


def test_what_cannot_be_told_is_not_fitted():
    rng = np.random.default_rng(6)
    d = scene(rng, holes=0)
    flat = np.full_like(d, 2.0)
    a, b = fit_calibration(pixels([(flat, d)]), 40)
    assert b == 0 and 2 * a == pytest.approx(np.median(d), rel=0.02)
    broken = [(np.full_like(d, np.nan), d), (d, np.zeros_like(d)), (d / 2, d)]
    assert fit_calibration(pixels(broken), 40) == pytest.approx((2, 0), abs=1e-6)
    for pairs, reason in (
        (broken[:2], "without valid depth"), ([], "without valid depth"),
        ([(np.zeros_like(d), d)], "predicted as 0"), ([(9 - d, d)], "do not grow"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=reason):
            fit_calibration(pixels(pairs), 40)


# -------------------------------------------------------------------------------- baked into a conv


def network(seed=0, **model_args):
    """Random, with depths that vary and some that the ReLU cuts."""
    torch.manual_seed(seed)
    net = model.LiteDepth(size=(64, 96), **model_args)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        net.decoder.depth.weight.mul_(3)
    return net.eval()


GOOD = {"format": CALIBRATION, "scale": 1.5, "shift_m": -0.25}


def test_read_calibration(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(GOOD | {"more": 1}))
    assert read_calibration(path)["scale"] == 1.5
    for text, reason in (
        ("{", "not readable as JSON"), ("[]", "not a calibration"), ('{"scale": 1}', "no 'lite"),
        (json.dumps(GOOD | {"scale": 0}), "scale 0"), (json.dumps(GOOD | {"scale": "1"}), "scale"),
        (json.dumps(GOOD | {"scale": True}), "scale True"), ("[" * 100000, "not readable"),
        (json.dumps(GOOD | {"shift_m": float("nan")}), "shift_m nan"), ("\0", "not readable"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "shift_m"}), "shift_m None"),
        (json.dumps(GOOD | {"shift_m": 10**400}), "shift_m 1"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=reason) as error:
            read_calibration(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="not readable"):
        read_calibration(path)
    with pytest.raises(UserError, match="not readable"):
        read_calibration(tmp_path)


# -------------------------------------------------------------------------------------- the command

SCALE, SHIFT = 1.4, 0.2


@pytest.fixture
def camera(tmp_path, monkeypatch):
    """net.pt, and a set whose truth is 1.4 times what it predicts, and 0.2 m more; a few holes.

    Splits: val, calib, and one of each list that must be refused.
    """
    monkeypatch.chdir(tmp_path)
    net, rng = network(), np.random.default_rng(0)
    model.save("net.pt", net, image_size=[64, 96])
    for i in range(7):
        low = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        rgb = cv2.resize(low, (96, 64), interpolation=cv2.INTER_CUBIC)
        with torch.no_grad():
            raw = net(torch.from_numpy(rgb).permute(2, 0, 1)[None].float())[0, 0].numpy()
        depth = np.where(raw > 0, 1000 * (SCALE * raw + SHIFT), 0)
        depth[: i + 1] = 0
        assert 1500 < depth.max() < 30000
        folder = tmp_path / "set" / ("val" if i < 3 else "calib")
        for kind, picture in (("rgb", rgb[..., ::-1]), ("depth", depth.round().astype(np.uint16))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / kind / f"{i}.png"), picture)
    os.symlink("calib", tmp_path / "set" / "again")
    (tmp_path / "set/mixed.txt").write_text(
        "calib/rgb/3.png calib/depth/3.png\nval/rgb/1.png val/depth/1.png\n"
    )
    return tmp_path


QUICK = ["--data", "set", "--model", "net.pt", "--runs", "1", "--warmup", "0", "--device", "cpu"]


def test_command_fits_writes_and_reports_both(camera, capsys):
    assert evaluate.main([*QUICK, "--json", "raw.json"]) == 0
    assert "calibra" not in capsys.readouterr().out
    assert evaluate.main([*QUICK, "--json", "both.json", "--calibrate", "calib"]) == 0
    printed = capsys.readouterr().out
    made = json.loads((camera / "calibration.json").read_text())
    assert made["scale"] == pytest.approx(SCALE, abs=2e-3)  # the truth is in whole millimetres
    assert made["shift_m"] == pytest.approx(SHIFT, abs=4e-3)
    assert made["format"] == CALIBRATION and made["pairs"] == 4 and made["split"] == "calib"
    assert (made["data"], made["model"], made["max_depth"]) == ("set", "net.pt", 40)
    assert made["model_sha256"] == sha256(camera / "net.pt")
    raw, both = (json.loads((camera / f"{n}.json").read_text()) for n in ("raw", "both"))
    for same in ("metric", "median_aligned", "scenes", "by_distance"):  # the headline is untouched
        assert raw[same] == both[same]
    assert made["fit"]["after"]["log10"] < 0.01 * made["fit"]["before"]["log10"]
    assert made["reported"] == {
        "split": "val", "before": both["metric"], "after": both["calibrated"]["metric"]
    }  # fmt: skip
    assert both["calibrated"]["metric"]["rel"] < 0.01 * raw["metric"]["rel"]
    assert both["calibration"] == made
    row = evaluate.markdown_row("net.pt", raw["metric"]).partition(" | -")[0]
    assert row in printed  # before calibration
    assert "d' = max(0, 1.40" in printed and "calibration.json" in printed
    assert "\nfitted: calib  " in printed and "\nreported: val  " in printed
    assert "fitted on 4 picture(s) only" in printed and "worse" not in printed
    # The same figures from a network that has it baked in (the truth has no pixel that is 0 there).
    baked = model.calibrate(model.load("net.pt"), made["scale"], made["shift_m"])
    model.save("baked.pt", baked, image_size=[64, 96])
    assert evaluate.main([*QUICK, "--model", "baked.pt", "--json", "baked.json"]) == 0
    metric = json.loads((camera / "baked.json").read_text())["metric"]
    assert metric == pytest.approx(both["calibrated"]["metric"], rel=1e-3, abs=1e-6)


def test_command_applies_a_file_without_writing_it(camera, capsys):
    assert evaluate.main([*QUICK, "--calibrate", "calib", "--calibration", "a/b.json"]) == 0
    assert not (camera / "calibration.json").exists()
    written = (camera / "a/b.json").read_bytes()
    capsys.readouterr()
    command = [*QUICK, "--calibration", "a/b.json", "--json", "r.json"]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr()
    assert "reported: val" in printed.out and "fitted: " not in printed.out
    assert "note: a/b.json" not in printed.err
    assert (camera / "a/b.json").read_bytes() == written
    reported = json.loads((camera / "r.json").read_text())
    assert reported["calibrated"]["metric"] == json.loads(written)["reported"]["after"]
    model.save("other.pt", network(), image_size=[64, 96], epoch=3)
    assert evaluate.main([*command, "--model", "other.pt", "--split", "calib"]) == 0
    told = capsys.readouterr().err
    assert "another model file: net.pt" in told and "this very split" in told


def test_command_warns_when_the_reported_split_gets_worse(camera, capsys):
    """val's truth is what the network says, calib's is not."""
    for path in (camera / "set/val/depth").iterdir():
        depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        raw = np.where(depth > 0, (depth - 1000 * SHIFT) / SCALE, 0)
        cv2.imwrite(str(path), raw.round().astype(np.uint16))
    assert evaluate.main([*QUICK, "--calibrate", "calib", "--name", "x"]) == 0
    printed = capsys.readouterr().out
    assert "WARNING: si-RMSE, RMSE, log10, REL of val got worse" in printed
    assert "| x | 0.0" in printed


def test_command_takes_some_of_many_pictures(camera):
    assert evaluate.main([*QUICK, "--calibrate", "calib", "--calibrate_pictures", "2"]) == 0
    assert json.loads((camera / "calibration.json").read_text())["pairs"] == 2
    pairs = list_pairs(camera / "set", "calib")
    assert [p.rgb.stem for p in evaluate.spread(pairs, 2)] == ["3", "6"]
    assert evaluate.spread(pairs, 9) == pairs
    assert evaluate.main([*QUICK, "--calibrate", "calib", "--calibrate_pictures", "0"]) == 0
    assert json.loads((camera / "calibration.json").read_text())["pairs"] == 4


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--calibrate", "val"], "val is the split that is reported"),
        (["--calibrate", "mixed"], "1 of its pictures are in --split val too"),
        (["--calibrate", "again", "--split", "calib"], "4 of its pictures are in --split calib"),
        (["--calibrate", "absent"], "no split 'absent'"),
        (["--calibration", "absent.json"], "absent.json: not readable"),
    ],
)
def test_command_refuses(camera, monkeypatch, capsys, flags, reason):
    scored = lambda *_, **__: pytest.fail("scored before refusing")  # noqa: E731
    monkeypatch.setattr(evaluate, "score_pictures", scored)
    with pytest.raises(UserError, match=reason) as error:
        evaluate.main([*QUICK, *flags])
    assert "\n" not in str(error.value)
    assert not (camera / "calibration.json").exists()


@pytest.mark.parametrize("flags", [["--calibrate", "calib"], ["--calibration", "c.json"]])
def test_a_calibrated_tflite_is_not_calibrated_again(camera, monkeypatch, flags):
    """Export bakes a calibration in and says so in the file; the next would apply on top."""
    load = runtime.load_predictor

    def calibrated(*path, **options):
        predictor = load(*path, **options)
        predictor.calibration = {"scale": 2.0, "shift_m": 0.0}
        return predictor

    monkeypatch.setattr(runtime, "load_predictor", calibrated)
    (camera / "c.json").write_text(
        json.dumps({"format": CALIBRATION, "scale": 1.0, "shift_m": 0.0})
    )
    with pytest.raises(UserError, match="holds a calibration already.*--model"):
        evaluate.main([*QUICK, *flags])
    assert evaluate.main(QUICK) == 0  # to score it is fine


def test_without_a_name_the_newest_pt_is_calibrated(camera, monkeypatch):
    """Not the .tflite beside it, which may hold a calibration."""
    (camera / "runs/student").mkdir(parents=True)
    os.rename("net.pt", "runs/student/best.pt")
    (camera / "runs/student/model.tflite").write_bytes(b"newer")
    assert evaluate.main([*QUICK[:2], *QUICK[4:], "--calibrate", "calib"]) == 0
    assert (camera / "runs/student/calibration.json").is_file()


def test_local_val_is_val(camera):
    (camera / "set/val").rename(camera / "set/local_val")
    with pytest.raises(DataError, match="is the split that is reported"):
        evaluate.main([*QUICK, "--calibrate", "local_val"])


def test_a_checkpoint_is_never_overwritten(camera, capsys):
    before = (camera / "net.pt").read_bytes()
    with pytest.raises(SystemExit):
        evaluate.main([*QUICK, "--calibrate", "calib", "--calibration", "net.pt"])
    assert "does not end in .json" in capsys.readouterr().err
    assert (camera / "net.pt").read_bytes() == before
