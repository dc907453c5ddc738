"""The evaluation protocol: known answers in a toy world, and what a user may give that cannot be used."""
import json

import cv2
import numpy as np
import pytest
import torch

from aueditnet.evaluation import (
    Evaluation, EvaluationSet, agreement, bootstrap_subjects, change, evaluate, face_box, icc31, leakage_matrix, mae, mse, psnr,
    read_counterfactual, response_curve, round_trip, summarise)
from aueditnet.facs import AUS
from aueditnet.runs.evaluate import evaluate_model as main
from aueditnet.files.errors import InputError
from aueditnet.files.reports import Measurement, Report, load_record, plain, save_record
from aueditnet.inversion import to_tensor
from aueditnet.pipeline import FaceModel


class ToyInverter:
    """A picture of 16 px is a mosaic of 4x4 tiles; its third row is the twelve intensities, the others are the person."""
    size, zoom = 16, 1.25

    def invert(self, x):
        return torch.nn.functional.avg_pool2d(to_tensor(x), 4).permute(0, 2, 3, 1).reshape(len(x), 4, 12)

    def synthesize(self, w):
        return torch.nn.functional.interpolate(w.reshape(len(w), 4, 4, 3).permute(0, 3, 1, 2), scale_factor=4)


class ToyEditor:
    def __init__(self, leak=torch.eye(12)):
        self.leak = leak

    def estimate(self, w):
        return w[:, 2] * 5 + 2.5

    def edit(self, w, target, source=None):
        edited = w.clone()
        edited[:, 2] += torch.nan_to_num(target - self.estimate(w)) @ self.leak / 5
        return edited


class ToyIdentity:
    def stages(self, x):
        return [torch.nn.functional.adaptive_avg_pool2d(x[..., :48, :], 4)]

    def __call__(self, x):
        return torch.nn.functional.normalize(self.stages(x)[0].flatten(1))


def toy_evaluator(x):
    return ToyEditor().estimate(ToyInverter().invert(x))


TOY = FaceModel(ToyInverter(), ToyEditor(), toy_evaluator, ToyIdentity(), evaluator_b=lambda x: 1 + toy_evaluator(x))


def toy_pictures(intensities, seed):
    person = torch.rand(1, 4, 12, generator=torch.Generator().manual_seed(seed)) - 0.5
    w = person.repeat(len(intensities), 1, 1)
    w[:, 2] = (torch.as_tensor(intensities).float() - 2.5) / 5
    return TOY.synthesize(w)


class ToyDISFA:
    """Three toy people; the face fills the middle 16 pixels of a 24 pixel frame."""
    subjects, label_origin = ["SN003", "SN004", "SN005"], "manual"

    def labels(self, s):
        return np.random.default_rng(int(s[2:])).choice(6, (30, 12), p=[.75, .05, .05, .05, .05, .05]).astype(np.float32)

    def frame(self, s, i):
        return np.pad(toy_pictures(self.labels(s)[[i]], int(s[2:]))[0], ((4, 4), (4, 4), (0, 0)), "edge")

    def usable(self, s):
        return np.ones(30, bool)

    def landmarks(self, s):
        points = np.zeros((30, 68, 2), np.float32)   # eyes 5 px apart: a crop of 2 * 2 * 5 / 1.25 = 16 px
        points[:, 36:42], points[:, 42:48], points[:, [48, 54]] = (9, 11.3), (14, 11.3), (11.5, 13.3)
        return points


@pytest.fixture(scope="module")
def frames():
    return EvaluationSet.frame_pairs(ToyDISFA(), 16, subjects=ToyDISFA.subjects)


@pytest.fixture
def grid(tmp_path):
    """Two toy people, neutral and with every AU alone at 3 and 5."""
    truth = np.concatenate([np.zeros((1, 12)), 3 * np.eye(12), 5 * np.eye(12)])
    lines = [["image", "subject", *AUS]]
    for s in ("SN003", "SN004"):
        for i, (picture, row) in enumerate(zip(toy_pictures(truth, int(s[2:])), truth)):
            lines.append([f"{s}-{i}.png", s, *row])
            cv2.imwrite(f"{tmp_path}/{s}-{i}.png", picture[..., ::-1])
    (tmp_path / "truth.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))
    return tmp_path


def test_icc_by_hand():
    assert icc31([1., 2., 4.], [1., 2., 4.]) == pytest.approx(1)
    assert icc31([1., 2., 3.], [3., 2., 1.]) == pytest.approx(-1)
    assert np.isnan(icc31([0., 0.], [1., 1.])) and np.isnan(icc31([1.], [1.]))
    columns = np.random.default_rng(0).normal(size=(2, 30, 4))
    assert icc31(*columns)[2] == pytest.approx(icc31(columns[0, :, 2], columns[1, :, 2]))
    shrout_fleiss = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    assert icc31(shrout_fleiss) == pytest.approx(0.715, abs=5e-4) and icc31(shrout_fleiss, mean=True) == pytest.approx(0.909, abs=5e-4)
    x = np.random.default_rng(0).uniform(0, 5, 300)
    assert icc31(x, x + 2) == pytest.approx(1) and abs(icc31(x, 0 * x)) < 1e-9
    assert (mae(x, x + 2), mse(x, x + 2)) == (pytest.approx(2), pytest.approx(4))


def test_agreement():
    draw = np.random.default_rng(0)
    y, noise = draw.uniform(0, 5, (500, 12)), draw.normal(0, 0.3, (2, 500, 12))
    alike, copies = agreement(y + noise[0], y + noise[1], y), agreement(y + noise[0], y + noise[0], y)
    assert all(icc > 0.9 and abs(error) < 0.2 for icc, error in alike.values())
    assert all(icc > 0.999 and error > 0.999 for icc, error in copies.values())
    assert all(np.isnan(error) for _, error in agreement(y, y + noise[0]).values())


def test_bootstrap():
    rng, who = np.random.default_rng(0), np.repeat(np.arange(9), 40)
    truth = rng.uniform(0, 5, 360)
    read = truth + rng.normal(0, 1.0, 9)[who] + rng.normal(0, .2, 360)
    interval = bootstrap_subjects(mae, who, truth, read)
    assert interval == bootstrap_subjects(mae, who, truth, read)
    assert interval[0] < mae(truth, read) < interval[1]
    assert np.isnan(bootstrap_subjects(mae, np.zeros(360), truth, read)).all()


def test_pictures():
    grey = np.full((128, 128, 3), 100, np.uint8)
    assert psnr(grey, grey + 10) == pytest.approx(20 * np.log10(255 / 10)) and np.isinf(psnr(grey, grey))
    assert face_box(128) == (slice(32, 128), slice(26, 102))


def test_exact_and_half_editor(frames):
    report = evaluate(TOY, frames, {"exact": TOY.editor, "half": ToyEditor(torch.eye(12) / 2)}, minus="exact", n=200)
    systems = report.systems
    assert list(systems) == ["no-edit baseline", "exact", "half", "reconstruction bound", "ground truth"]
    for row in systems.values():
        assert row["icc_a"].value == pytest.approx(row["icc_b"].value, abs=1e-5)   # ICC ignores a constant
    assert systems["exact"]["mae_b"].value == pytest.approx(1, abs=0.02)           # the MAE does not
    assert systems["exact"]["icc_a"].value > 0.99 and report.of_bound("exact") > 0.99
    bound, half, none = (systems[name]["mae_a"].value for name in ("reconstruction bound", "half", "no-edit baseline"))
    assert bound < half < none
    assert systems["ground truth"]["distance"].value == 0 and np.isinf(systems["ground truth"]["psnr_frame"].value)
    assert report.settings["edits"] == 72 and report.settings["labels"] == "manual" and report.settings["requested"].keys() == set(AUS)
    # a paired difference is the difference of the values
    assert list(report.differences) == ["half"] and report.differences["half"]["icc_a"].excludes_zero
    for key, m in report.differences["half"].items():
        assert m.value == pytest.approx(systems["half"][key].value - systems["exact"][key].value, abs=1e-6), key
    again = evaluate(TOY, frames, {"exact": TOY.editor, "half": ToyEditor(torch.eye(12) / 2)}, minus="exact", n=200)
    assert json.dumps(plain(again)) == json.dumps(plain(report))


def test_evaluator_that_reads_backwards(frames):
    backwards = FaceModel(TOY.inverter, TOY.editor, lambda x: 5 - toy_evaluator(x), TOY.identity_evaluator)
    report = evaluate(backwards, frames, n=20)
    assert report.systems["reconstruction bound"]["icc_a"].value < -0.9 and "icc_b" not in report.systems["AUEditNet"]


def test_strength_scales_the_displacement(frames):
    evaluation = Evaluation(TOY, frames)
    half = evaluation.edit(ToyEditor(torch.eye(12) / 2)).astype(float)
    assert abs(evaluation.edit(TOY.editor, 0.5) - half).max() <= 1 and abs(evaluation.edit(TOY.editor) - half).max() > 20


def test_leakage_as_it_was_put_there(frames):
    leak = torch.eye(12)
    leak[0, 1], leak[6, 6], leak[11, 10] = 0.3, 0.5, 0.2
    w = TOY.invert(toy_pictures(np.ones((5, 12)), 2))
    found = leakage_matrix(TOY, w, ToyEditor(leak))
    assert abs(found["aus"] - leak.numpy()).max() < 0.02
    assert found["identity"].max() < 1e-6 and found["light"].shape == (12,)
    report = Evaluation(TOY, frames).report({"leaky": ToyEditor(leak)}, references=False, with_leakage=True, n=20)
    assert report.systems["leaky"]["own"].by_au["AU12"] == pytest.approx(0.5, abs=0.02)
    assert report.systems["leaky"]["leakage"].value == pytest.approx(0.5 / 132, abs=0.002)
    same = toy_pictures(np.ones((3, 12)), 1)
    assert all(abs(v).max() < 1e-3 for name, v in change(TOY, same, same).items() if name != "pose")


def test_response_and_round_trip():
    class Hesitant(ToyEditor):
        """Moves half a unit less when more than 3 is requested."""
        def edit(self, w, target, source=None):
            return super().edit(w, torch.where(target > 3, target - 1.5, target), source)

    leak = torch.eye(12)
    leak[6, 6] = 0.5
    w = TOY.invert(toy_pictures(np.ones((5, 12)), 2))
    curve = response_curve(TOY, w, ToyEditor(leak))
    assert abs(curve["slope"] - leak.diagonal().numpy()).max() < 0.01
    assert curve["r2"].min() > 0.999 and (curve["monotonic"] == 1).all() and (curve["fall"] == 0).all()
    assert abs(response_curve(TOY, w, Hesitant())["fall"] - 0.5).max() < 0.03
    y = np.random.default_rng(0).uniform(0, 5, (5, 12)).astype(np.float32)
    home, short = (round_trip(TOY, w, y, editor) for editor in (TOY.editor, ToyEditor(torch.eye(12) / 2)))
    assert home["code"] < 1e-5 and home["aus"].max() == 0
    assert short["code"] == pytest.approx(0.5, abs=1e-4) and abs(short["aus"] - abs(y - 1).mean(0) / 4).max() < 0.03


def test_counterfactual_grid(grid):
    data = EvaluationSet.counterfactual(grid, 16)
    assert len(data.labels) == 48 and data.labels.any(1).all() and data.neutral == {"SN003": 0, "SN004": 1}
    exact = evaluate(TOY, data, n=20).systems["AUEditNet"]
    assert exact["psnr_face"].value > 45 and exact["mae_a"].value < 0.03 and exact["distance_single"].value == exact["distance"].value
    half = evaluate(TOY, EvaluationSet.counterfactual(grid, 16, ["SN004"]), {"half": ToyEditor(torch.eye(12) / 2)}, n=20)
    assert half.settings["subjects"] == ["SN004"]
    assert half.systems["half"]["mae_a"].value == pytest.approx((1.5 + 2.5) / 2 / 12, abs=0.02)
    few = EvaluationSet.counterfactual(grid, 16, every=5)
    assert len(few.labels) == 10 and len(few.pictures) == 12   # the other pictures need no inversion


def test_what_a_grid_may_lack(grid):
    file = grid / "truth.csv"
    good = file.read_text()

    def refused(text, reads):
        with pytest.raises(InputError, match=text):
            reads()

    refused("line 2: SN003-0.png is not 32x32 pixels", lambda: read_counterfactual(grid, size=32))
    refused("no pictures of SN031", lambda: read_counterfactual(grid, subjects=["SN031"]))
    file.write_text(good.replace("SN003-1.png,SN003,3.0", "SN003-1.png,SN003,much"))
    refused("truth.csv, line 3: AU1=much: not a number", lambda: read_counterfactual(grid))
    file.write_text(good + "\nSN004-99.png,SN004" + ",1" * 12)
    refused("SN004-99.png is missing or not a picture", lambda: read_counterfactual(grid))
    file.write_text(good + "\nSN004-1.png,SN004,1")
    refused("no value for AU2", lambda: read_counterfactual(grid))
    file.write_text(good.replace("SN003-0.png,SN003" + ",0.0" * 12 + "\n", ""))
    refused("no neutral picture of SN003", lambda: EvaluationSet.counterfactual(grid))
    refused("cannot be read", lambda: read_counterfactual(grid / "nowhere"))


def test_a_report_is_refused_before_anything_is_measured(tmp_path):
    for file, why in (("report.txt", "written as .json or .csv"), (tmp_path / "nowhere" / "report.json", "does not exist, make it first")):
        with pytest.raises(InputError, match=why):
            main(None, out=file)


def test_the_command_takes_people_and_leaves_out_a_grid_of_other_pictures(capsys):
    from test_devices import tiny_model
    record = main(tiny_model(), pairs=2, subjects=["SN001", "SN003"])   # pictures of 32 px; the grid's have 128
    assert "counterfactual" not in record and record["frames"].settings["subjects"] == ["SN001", "SN003"]
    assert record["leakage"]["aus"].shape == (12, 12) and "one requested AU changes" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(InputError, match="fold 'P4': not one of P1, P2, P3"):
        main(None, fold="P4")


def test_reports_as_files(tmp_path, frames):
    report = evaluate(TOY, frames, {"half": ToyEditor(torch.eye(12) / 2)}, minus="half", n=20)
    report.details["half"] = {"parameters": 144}
    report.save(tmp_path / "all.json")
    report.save(tmp_path / "table.csv")
    save_record(tmp_path / "record.json", frames=report, curve={"slope": np.ones(3), "undefined": [np.nan, np.inf]})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.json", "record.json", "table.csv"]   # nothing temporary
    again, record = Report.load(tmp_path / "all.json"), load_record(tmp_path / "record.json")
    assert plain(again) == plain(report) == plain(record["frames"]) and again.details == {"half": {"parameters": 144}}
    assert record["curve"] == {"slope": [1., 1., 1.], "undefined": [None, None]}
    assert np.isnan(again.systems["ground truth"]["psnr_frame"].value) and not again.readings
    header, *lines = (tmp_path / "table.csv").read_text().splitlines()
    assert header.startswith("system,icc_a,icc_a_low,icc_a_high,icc_a_AU1,") and len(lines) == len(report.systems)
    assert report.table().row_count > 12
    with pytest.raises(InputError, match="is written as .json"):
        save_record(tmp_path / "record.csv", frames=report)


def test_join_and_format():
    one, two = (Report({name: {"icc_a": Measurement(v, v - 0.1, v + 0.1)}}, {"edits": 3}, details={name: {}}) for name, v in (("a", 0.5), ("b", 0.7)))
    both = one | two
    assert list(both.systems) == ["a", "b"] == list(both.details) and both.settings == {"edits": 3}
    m = Measurement(-0.25, -0.4, -0.1)
    assert (f"{m:+.1f}", m.interval("+.1f"), m.excludes_zero) == ("-0.2", "-0.2 (-0.4 to -0.1)", True)
    assert f"{Measurement(np.inf):.2f}" == "" == Measurement(np.nan).interval() and not Measurement(0.1, -0.1, 0.3).excludes_zero


def test_paired_differences_are_certain_where_values_are_not():
    rng, who = np.random.default_rng(0), np.repeat([*"abcd"], 10)
    y = rng.integers(0, 6, (40, 12)).astype(np.float32)
    data = EvaluationSet(None, np.arange(40), np.arange(40), y, who, {s: k for k, s in enumerate("abcd")})
    good, poor = ({"a": y + s * rng.normal(size=y.shape), "identity_inversion": np.full(40, 0.9),
                   "leak": np.stack([np.eye(12) + s / 10] * 4)} for s in (0.1, 2.))
    assert summarise(data, good)["leakage"].value == pytest.approx(0.01)
    better = summarise(data, good, poor)
    assert better["icc_a"].low > 0 > better["mae_a"].high
    assert better["identity_inversion"] == Measurement(0, 0, 0)
    assert better["icc_a"].value == pytest.approx(summarise(data, good)["icc_a"].value - summarise(data, poor)["icc_a"].value)
    assert "icc_b" not in better and "colour" not in better


class Dull:
    """Reads 0 to 5 as 0 to 2.5, and knows it."""
    def __call__(self, x): return toy_evaluator(x) / 2

    def calibrated(self, readings): return readings * 2


def test_reports_have_calibrated_and_raw_readings(tmp_path, frames):
    dull = TOY.with_parts(evaluator=Dull())
    picture = frames.pictures[:3]
    np.testing.assert_allclose(dull.read(picture), TOY.read(picture))
    np.testing.assert_allclose(dull.read(picture, raw=True), TOY.read(picture) / 2)
    np.testing.assert_allclose(dull.read(picture, Dull()), dull.read(picture))
    report = evaluate(dull, frames, {}, n=20)
    truth = report.systems["ground truth"]
    assert truth["mae_a"].value < 0.05 < 0.1 < truth["mae_a_raw"].value
    assert truth["icc_a"].value > 0.99 > truth["icc_a_raw"].value
    for measure in ("icc", "mae"): assert truth[f"{measure}_b_raw"] == truth[f"{measure}_b"]   # nothing to calibrate there
    report.save(tmp_path / "table.csv")
    assert ",icc_a_raw,icc_a_raw_low," in (tmp_path / "table.csv").read_text().splitlines()[0]
    np.testing.assert_allclose(report.readings["ground truth"]["a_raw"] * 2, report.readings["ground truth"]["a"])
    assert sum(str(cell) == "not calibrated" for cell in report.table().columns[0].cells) == 2
