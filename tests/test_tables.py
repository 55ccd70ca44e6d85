"""tests/bench/tables.py: rows, what counts as finished, statistics, the document; no training."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path

import cv2
import pytest

import distill
import train
from plumbing.files import UserError

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))
import tables  # noqa: E402

# docs/choices.md and the paper: what a row that does not say otherwise is trained with.
PAPER = {
    "batch_size": 32, "optimizer": "adam", "lr": 4e-3, "power": 0.9, "min_lr_ratio": 0.25,
    "warmup": 1500, "warmup_ratio": 1e-4, "betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 0,
    "clip": 35, "keep_start": 0, "amp": False, "size": (128, 160), "upsample": "nearest",
    "image_size": (480, 640), "decoder": "mix", "mean": None, "std": None,
    "weights": (1, 0.25, 2.5, 0.6), "dynamic_weights": False, "silog_alpha": 1,
    "silog_lambda": 0.85, "robust_alpha": 1, "robust_c": 2, "robust_adaptive": False,
    "crops": ((240, 384), (384, 512), (480, 640)), "rotate_prob": 0.5, "max_angle": 2.5,
    "flip_prob": 0.5, "gamma": (0.9, 1.1), "gamma_unit": False, "brightness": (0.75, 1.25),
    "channel_gain": (0.9, 1.1), "extra_data": [], "val_split": "none", "epochs": 20,
}  # fmt: skip


class Stub(tables.Bench):
    """Instead of programs: notes which runs train, and leaves the files that they would."""

    fails, says = "", "exit code 143"

    def __init__(self, *flags: str, folder: Path) -> None:
        where = ["--out", str(folder / "runs"), "--docs", str(folder)]
        super().__init__(tables.parse(["--data", "synthetic:64", "--jobs", "1", *where, *flags]))
        self.sets, self.code, self.trained = {"val": "set"}, "code", []

    def call(self, command: str, log: str) -> str:
        run = self.folder / command.rpartition("$OUT/")[2].split()[0].split("/")[0]
        run.mkdir(parents=True, exist_ok=True)
        if "evaluate.py" in command:
            report = {"metric": {"si_rmse": 0.3, "rmse": 3.5, "delta1": 0.5}, "not_finite": 0}
            (run / "val.json").write_text(json.dumps(report))
            return ""
        assert command.endswith(" --resume")
        self.trained.append(run.name)
        if self.fails == run.name:  # in its first epoch, before there is a log
            return self.says
        (run / "args.json").write_text('{"batch_size": 32}')
        row = '{"step": 3, "images_per_s": %s}\n'
        (run / "log.jsonl").write_text(row % 16 + row % "null")
        return ""


def test_rows_are_run_once_in_the_order_of_the_tables(tmp_path):
    runs = Stub(folder=tmp_path).planned()
    assert len(runs) == len(set(runs)) == 3 * (5 + 5 + 4 + 2 + 7) + 1  # one teacher
    assert runs[:6] == [
        "crop_none-0", "crop_one-0", "crop_two-0", "silog-0", "crop_four-0", "few_none-0"
    ]  # fmt: skip
    assert runs[30:33] == ["grad-0", "vnl-0", "default-0"] and runs[42] == "dec_3x3-0"
    assert runs[48:51] == ["teacher-0", "control-0", "l2-0"]


def test_commands_are_the_papers(tmp_path):
    bench = Stub("--data", "rooms:6869", "--pretrained", "imagenet", folder=tmp_path)
    assert bench.epochs == 20 and bench.epoch == 6848  # 136,960 samples are nearest to 140,000
    assert bench.command("crop_none-1") == (
        "python train.py --weights 1,0,0,0 --crops none --data $DATA --pretrained imagenet "
        "--epochs 20 --batch_size 32 --threads 1 --workers 1 --val_split none --seed 1 --out "
        "$OUT/crop_none-1"
    )
    assert [line.split()[1] for line in bench.commands("l2_two-2")] == [
        "train.py", "train.py", "distill.py"
    ]  # fmt: skip
    assert "--teacher $OUT/teacher-0/last.pt --student $OUT/default-2/last.pt --method l2 " in (
        bench.command("l2_two-2")
    )
    assert bench.command("control-2").count("--pretrained $OUT/default-2/last.pt") == 1
    own = {"silog": "weights", "grad": "weights", "vnl": "weights", "dynamic": "dynamic_weights",
           "dec_3x3": "decoder", "dec_1x1": "decoder", "crop": "weights crops",
           "few": "weights epochs", "long": "weights epochs", "few_none": "weights epochs crops",
           "few_two": "weights epochs crops", "long_none": "weights epochs crops"}  # fmt: skip
    few = bench.command("few-0")
    assert few.count("--data ") == few.count("--epochs ") == 1 and "--data rooms:858 " in few
    for name in tables.COMMANDS.keys() - {"teacher"}:
        script, *words = shlex.split(bench.command(f"{name}-0").replace("$DATA", "rooms:6869"))[1:]
        parser = {"train.py": train, "distill.py": distill}[script].make_parser()
        args = vars(parser.parse_args(words))
        different = {flag for flag, value in PAPER.items() if args[flag] != value}
        expected = own.get(name) or own.get(name.partition("_")[0], "")
        assert different == set(expected.split()), name
    teacher = train.parse(shlex.split(bench.command("teacher-0"))[2:])
    assert (teacher.optimizer, teacher.batch_size, teacher.weights[1]) == ("adamw", 16, 0.2)


def test_a_rendered_sets_digest_survives_another_machines_arithmetic(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "resolve", lambda source: tmp_path)

    def digest(focal: float, stems=("000000", "000001")) -> str:
        K = {"fx": focal, "fy": focal, "cx": 319.5, "cy": 239.5, "width": 640, "height": 480}
        for split in ("train", "val"):
            (tmp_path / split).mkdir(exist_ok=True)
            frames = json.dumps({"frames": dict.fromkeys(stems, K)})
            (tmp_path / split / "intrinsics.json").write_text(frames)
        return tables.set_digest("rooms:2")

    same = digest(500.1234)
    assert digest(500.1234 * (1 + 1e-13)) == same
    assert digest(500.126) != same and digest(500.1234, ["000000"]) != same


def test_a_folders_digest_is_of_names_and_sizes(rgbd, make_rgbd, tmp_path):
    copy = make_rgbd(tmp_path / "copy")
    assert tables.set_digest(str(copy)) == tables.set_digest(str(rgbd))
    (copy / "val/rgb/sample_0.png").rename(copy / "val/rgb/sample_9.png")
    assert tables.set_digest(str(copy)) != tables.set_digest(str(rgbd))


def test_what_is_finished_is_not_run_again(tmp_path):
    bench = Stub("--tables", "4", "--seeds", "0", folder=tmp_path)
    bench.fails = "crop_two-0"
    with pytest.raises(UserError, match="crop_two-0"):
        bench.run_all()
    assert len(bench.trained) == 10 and len(bench.finished()) == 9
    line = bench.finished()["silog-0"]
    assert line["scores"] == {"val": {"si_rmse": 0.3, "rmse": 3.5, "delta1": 0.5}}
    assert line["seconds"] == 6 and line["diverged"] == ""  # its own 96 samples, 16 a second
    bench.fails, bench.trained = "", []
    bench.run_all()
    bench.run_all()
    assert bench.trained == ["crop_two-0"]
    before, bench.code = bench.folder, "another"
    bench.run_all()
    assert len(bench.trained) == 11 and bench.folder != before
    bench.sets = {"val": "set", "real": "one more"}
    assert bench.finished() == {}


def test_the_next_tables_runs_take_finished_weights(tmp_path):
    bench = Stub("--tables", "5", "--seeds", "0", folder=tmp_path)
    bench.run_all()
    bench.args.tables, bench.trained = [6], []
    bench.run_all()
    assert bench.trained[:2] == ["teacher-0", "control-0"] and len(bench.trained) == 8


def test_commands_get_this_machines_folders(tmp_path):
    bench = Stub("--real", str(tmp_path), folder=tmp_path)
    told = tables.Bench.call(bench, "python -c 'import sys; print(sys.argv[1:])' $REAL $OUT/a", "l")
    assert told == ""
    assert (bench.folder / "l").read_text() == f"['{tmp_path}', '{bench.folder}/a']\n"
    told = tables.Bench.call(bench, """python -c 'print("a\\nin one line"); exit(2)'""", "l")
    assert told == f"in one line (all of it: {bench.folder / 'l'})"


def test_statistics_by_hand():
    found = tables.mean_and_error([0.30, 0.32, 0.34, math.inf])
    assert found == pytest.approx((0.32, 0.02 / 3**0.5))
    assert tables.cell([0.30, 0.32, 0.34]) == "0.320 ± 0.012"
    assert tables.cell([4.0, math.inf], 2) == "4.00, 1 of 2 ∅"
    assert tables.cell([math.inf]) == "∅" and tables.cell([]) == "-"
    a, b = [0.30, 0.31, 0.32], [0.316, 0.326, 0.336]  # errors 0.00577 each, 0.00816 of the gap
    assert tables.verdict(a, b) == "+0.016 ± 0.008, undecided at this budget"  # 0.0163 is wanted
    b = [0.317, 0.327, 0.337]
    assert tables.verdict(a, b) == "+0.017 ± 0.008, as in the paper"
    assert tables.verdict(b, a) == "-0.017 ± 0.008, **against the paper**"
    assert tables.verdict([0.1], [0.9]) == "+0.800, undecided at this budget"
    assert tables.verdict([], [0.9]) == "-"


def test_claims_are_the_papers():
    for title, rows, claims in tables.TABLES.values():
        printed = {row.run: row.si_rmse for row in rows if row.si_rmse is not None}
        for better, worse in (claim.split("<") for claim in claims.split()):
            ours = {row.run for row in rows if row.si_rmse is None}
            assert {better, worse} <= ours | printed.keys(), title
            if not {better, worse} & ours:  # the paper has no such rows
                assert printed[better] < printed[worse] < math.inf, title


def test_the_document(tmp_path):
    flags = "--tables", "4,3", "--seeds", "0,1"
    bench = Stub(*flags, folder=tmp_path)
    (tmp_path / "results.md").write_text("# Results\n\nbefore\n\n<!-- tables -->\nstale\n"
                                         "<!-- /tables -->\n\n## After\n")  # fmt: skip
    bench.fails, bench.says = "crop_one-0", "the last 20 batches predicted 0 m everywhere: ..."
    bench.run_all()
    bench.record("dec_1x1-0/graph", ms=4.5, export="python export.py ...")
    tables.render(Stub(*flags, folder=tmp_path))
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# Results\n\nbefore\n\n<!-- tables -->\n## The paper's tables")
    assert text.endswith("```\n\n<!-- /tables -->\n\n## After\n") and "stale" not in text
    assert "| no crop | 0.335, 4.25 | 0.300 ± 0.000 | - | - | 3.50 ± 0.00 |" in text
    assert "| random crop, 384x512 | 0.377, 4.62 | 0.300, 1 of 2 ∅ |" in text
    assert "| full 1x1 | 0.308, 53 ms | 0.300 ± 0.000 | - | - | 3.50 ± 0.00 | 4.50, - |" in text
    assert "| full 3x3 < mix | +0.000 ± 0.000, undecided at this budget | - | - |" in text
    assert bench.command("crop_none-0") in text and "python export.py ..." in text
    assert str(tmp_path) not in text + (tmp_path / "results.jsonl").read_text()
    for name in ("table4.png", "table3.png"):
        assert cv2.imread(str(tmp_path / name)).shape[1] == 1000 and name in text
    tables.render(bench)
    assert (tmp_path / "results.md").read_text() == text
