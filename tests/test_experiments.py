"""What the experiments' notebooks do not show: edge cases, small runs, and what names a run."""
import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aueditnet.data import DISFA, Codes
from aueditnet.editor import ToyWorld
from aueditnet.evaluation import EvaluationSet, icc31, off_diagonal, summarise
from aueditnet.experiments import ablations, benchmark, co_occurrence, comparison, cross_validation, domain_shift, external_validation, response
from aueditnet.facs import AUS
from aueditnet.files import weights
from aueditnet.files.errors import InputError
from aueditnet.files.io import data_dir
from aueditnet.files.reports import Measurement, Report
from aueditnet.pipeline import FaceModel
from aueditnet.runs.train import train
from aueditnet.training import frozen_networks


@pytest.fixture(scope="module")
def codes():
    world = ToyWorld()
    seen = world.person < 18
    return Codes(world.w[seen], world.y[seen], world.person[seen])


@pytest.fixture(scope="module")
def model():
    return FaceModel.from_pretrained()


def nudged(network):
    """The same network with other weights in its first entry."""
    other = deepcopy(network)
    next(iter(other.state_dict().values())).add_(1e-3)
    return other


def test_a_runs_name_depends_on_all_that_decides_its_result(model, codes, monkeypatch):
    """A finished variant must not be returned when an evaluator, a network of the loss or a test picture changed."""
    settings, networks = {"steps": 200}, frozen_networks(model)
    pictures, one = np.zeros((3, 4, 4, 3), np.uint8), np.array([1])
    data = EvaluationSet(pictures, one - 1, one, np.zeros((1, 12), np.float32), np.array(["SN003"]), {"SN003": 2})
    def key(settings=settings, codes=codes, networks=networks, model=model, data=data):
        return ablations.run_key(settings, codes, networks, SimpleNamespace(model=model, data=data))
    first = key()
    assert first == key(dict(settings), networks=frozen_networks(model), model=FaceModel.from_pretrained())
    parts = ("evaluator", "evaluator_b", "identity_evaluator")
    others = {key(model=model.with_parts(**{part: nudged(getattr(model, part))})) for part in parts}
    others |= {key(networks=networks | {"au_net": nudged(networks["au_net"])}), key({"steps": 201}),
               key(codes=replace(codes, y=codes.y + 1)), key(data=replace(data, pictures=pictures + 1))}
    monkeypatch.setattr(ablations, "STRENGTHS", (0.5,))
    assert len(others | {first, key()}) == 9


def test_a_finished_variant_is_read_from_its_folder(tmp_path):
    report = Report({"single branch": {"icc_a": Measurement(0.5, 0.4, 0.6)}}, {}, details={"single branch": {"group": "editors"}})
    report.save(tmp_path / "single-branch.json")
    found = ablations.run_variant("single branch", None, None, None, None, tmp_path)   # neither trained nor measured
    assert found.systems == report.systems


def test_variants(codes):
    every = ablations.variants()
    assert all(v.minus is None or list(every).index(v.minus) < i for i, v in enumerate(every.values()))
    few, none = ablations.training_set(every["3 people"], codes)
    more, _ = ablations.training_set(every["6 people"], codes)
    assert none is None and len(few.person.unique()) == 3 and set(few.person.tolist()) < set(more.person.tolist())
    with pytest.raises(InputError, match="18 are there"):
        ablations.training_set(ablations.Variant("people", people=19), codes)
    with pytest.raises(InputError, match="not among the variants"):
        ablations.main(only=["nothing"])
    with pytest.raises(InputError, match="at least one"):
        ablations.main(steps=0)


def test_pair_leak():
    leak = np.eye(12) + 0.01
    assert ablations.pair_leak(leak) == pytest.approx(0.01 / 1.01)


def test_labels_that_do_not_allow_a_correlation():
    with pytest.raises(InputError, match="AU6 and AU12"):
        co_occurrence.reweight(np.eye(12) * 2, 0.5)
    assert co_occurrence.sample_frames([0.5, 0.25, 0.25], 4).tolist() == [0, 0, 1, 2]


def test_unbalanced_pairs_resume():
    labels = {3: np.zeros((5, 12)), 8: np.zeros((2, 12))}
    sampler, other = co_occurrence.UnbalancedPairs(labels), co_occurrence.UnbalancedPairs(labels, 5)
    sampler.sample(3)
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = sampler.sample(20)
    other.load_state_dict(state)
    assert other.sample(20) == expected
    assert all(max(a, b) < {3: 5, 8: 2}[s] for s, a, b in expected) and {s for s, _, _ in expected} == {3, 8}


def test_both_spaces_on_one_table(model):
    """Latent-space and image-space editors on a few edits: references, differences, properties."""
    data = EvaluationSet.frame_pairs(DISFA(data_dir() / "synthdisfa"), model.size, model.zoom, ("SN003", "SN017"), 3)
    editors = {name: comparison.load_editor(name) for name in ("AUEditNet", "GANimation")}
    report = comparison.compare(model, data, editors, n=20)
    assert list(report.systems) == [comparison.BASELINE_W, comparison.BASELINE_FRAME, *editors, "reconstruction bound", "ground truth"]
    assert report.systems["ground truth"]["distance"].value == 0 and report.systems["reconstruction bound"]["distance"].value > 0.05
    assert report.systems[comparison.BASELINE_FRAME]["identity_source"].value == pytest.approx(1, abs=1e-4)
    difference = report.differences["GANimation"]["icc_a"].value
    assert difference == pytest.approx(report.systems["GANimation"]["icc_a"].value - report.systems["AUEditNet"]["icc_a"].value, abs=1e-6)
    faces = data.pictures[[*data.neutral.values()]]
    latent, image = (comparison.properties(model, name, editor, faces) for name, editor in editors.items())
    assert np.isinf(latent["zero_edit"]) and image["zero_edit"] > 25   # without a request AUEditNet returns the inversion, bit for bit
    table = comparison.comparison_table({"frames": report, "grid": report})
    assert len(table.splitlines()) == 2 + len(report.systems) and "nan" not in table


def readings(rng, n, people, shift=0.):
    return {"a": rng.uniform(0, 5, (n, 12)) + shift, "leak": rng.normal(0, 1, (people, 12, 12))}


def edits_of(subjects, rng, each=4):
    """An evaluation set of some subjects without pictures."""
    who = np.repeat(subjects, each)
    rows = np.zeros(len(who), int)
    neutral = {s: 0 for s in subjects}
    return EvaluationSet(np.zeros((1, 4, 4, 3), np.uint8), rows, rows, rng.uniform(0, 5, (len(who), 12)), who, neutral)


def test_folds_are_pooled_over_people():
    """The pooled values are those of all edits together; differences are paired, intervals are over all people."""
    rng = np.random.default_rng(0)
    sets = [edits_of(subjects, rng) for subjects in (["a", "b", "c"], ["d", "e"])]
    found = [{"AUEditNet": readings(rng, len(s.labels), len(s.neutral)), "other": readings(rng, len(s.labels), len(s.neutral)),
              "ground truth": {"a": s.labels}} for s in sets]
    pool = comparison.pooled(sets, [Report({}, {}, readings=part) for part in found], "AUEditNet", n=50)
    assert pool.settings == {"edits": 20, "subjects": ["a", "b", "c", "d", "e"]} and list(pool.differences) == ["other"]
    joined = {name: {key: np.concatenate([part[name][key] for part in found]) for key in found[0][name]} for name in found[0]}
    labels = np.concatenate([s.labels for s in sets])
    icc = {name: icc31(labels, part["a"]).mean() for name, part in joined.items()}
    assert {name: m["icc_a"].value for name, m in pool.systems.items()} == pytest.approx(icc)
    assert pool.differences["other"]["icc_a"].value == pytest.approx(icc["other"] - icc["AUEditNet"])
    assert pool.systems["other"]["leakage"].value == pytest.approx(off_diagonal(joined["other"]["leak"].mean(0)))
    table = comparison.comparison_table({"frames": pool})
    assert table.startswith("| 20 edits of frames | ICC, evaluator A |") and "grid" not in table and "zero edit" not in table
    assert len(comparison.difference_table({"frames": pool}).splitlines()) == 3


def test_pseudo_labels_are_compared_with_labelled_frames():
    rng = np.random.default_rng(0)
    data = edits_of(["a", "b", "c"], rng)
    exact, off = ({"a": data.labels + shift} for shift in (0., 1.))
    found = {"linear": off, "linear, pseudo-labels": exact, "AUEditNet": exact, "AUEditNet, pseudo-labels": off, "Ling": off}
    report = Report({name: summarise(data, part, n=20) for name, part in found.items()}, {}, readings=found)
    more = comparison.supervision(report, data, 20).differences
    assert {name: m["mae_a"].value for name, m in more.items()} == pytest.approx({"linear, pseudo-labels": -1, "AUEditNet, pseudo-labels": 1})


def test_systems_are_trained_once(codes, model, tmp_path, monkeypatch):
    """A run is named by its data, budget and fold; what is trained is found."""
    monkeypatch.setattr(cross_validation, "frozen_networks", lambda model: {})
    monkeypatch.setattr(cross_validation, "fit_gain", lambda model, codes, editor: setattr(editor, "response", torch.arange(8.).repeat(12, 1) * 2))
    def train(name, codes=codes, fold="P1", steps=2): return cross_validation.train_system(name, fold, codes, model, tmp_path, steps)
    files = [train("linear"), train("AUEditNet"), train("AUEditNet", steps=3), train("AUEditNet", fold="P2"),
             train("AUEditNet", replace(codes, y=codes.y + 1)), train("single branch"), train("AUEditNet, counterfactual")]
    assert len(set(files)) == 7 and not list(tmp_path.rglob("checkpoint.pt"))
    monkeypatch.setattr(cross_validation, "fit_editor", None)
    assert train("AUEditNet") == files[1]
    header = weights.load(files[1])[1]
    assert (header["steps"], header["frames"], header["fold"]) == (2, len(codes.y), "P1") and set(header["terms"]) > {"latent"}
    for name, file in zip(("linear", "AUEditNet"), files):
        editor = cross_validation.load_system(name, file)
        assert editor.edit(codes.w[:2], torch.zeros(12)).shape == codes.w[:2].shape and editor.response[0, 5] == 10


def test_every_fold_has_its_own_networks_and_people(monkeypatch, tmp_path):
    """Image-space editors and pseudo-labels for P3 only; the bundled AUEditNet where the budget is its own."""
    trained = []
    def train(name, fold, codes, model, out, steps):
        trained.append((name, fold, codes, model))
        return tmp_path / name
    monkeypatch.setattr(cross_validation, "train_system", train)
    monkeypatch.setattr(cross_validation, "fold_estimator", lambda data, fold: f"estimator of {fold}")
    monkeypatch.setattr(cross_validation, "fold_model", lambda au: au)
    monkeypatch.setattr(cross_validation, "check_estimator", lambda *_: None)
    monkeypatch.setattr(cross_validation, "training_codes", lambda system, model, dataset, fold: (system.data, fold))
    monkeypatch.setattr(cross_validation.weights, "load", lambda file: (None, {"steps": 1, "seconds": 1}))
    systems = cross_validation.SYSTEMS
    files = cross_validation.fold_files("P3", systems)
    assert list(files) == list(systems) and files["AUEditNet"] == "heads128-editor" and len(trained) == len(systems) - 1
    cross_validation.fold_files("P3", ["AUEditNet"], steps=7)
    assert trained[-1][:2] == ("AUEditNet", "P3")   # another budget: another editor
    trained.clear()
    assert list(cross_validation.fold_files("P1", systems)) == cross_validation.in_three_folds() == [name for name, *_ in trained]
    assert not set(cross_validation.in_three_folds()) & {"GANimation", "Ling", "ICface", "linear, pseudo-labels", "AUEditNet, counterfactual"}
    assert all(run == (run[0], "P1", (systems[run[0]].data, "P1"), "estimator of P1") for run in trained)


def test_estimator_of_a_fold(tmp_path):
    data = data_dir() / "synthdisfa"
    au = cross_validation.fold_estimator(data, "P1", tmp_path, steps=12, start=None)
    with pytest.raises(InputError, match="was trained on 9 people of test fold P2"):
        train(cross_validation.fold_model(au), data, tmp_path / "run", fold="P2")
    assert cross_validation.fold_estimator("anywhere", "P3", tmp_path) == "heads128-au"


def test_shifts_change_what_they_name():
    still, raised = np.zeros(12, np.float32), np.zeros(12, np.float32)
    raised[[AUS.index(au) for au in ("AU1", "AU2", "AU5", "AU26")]] = 3
    shots = {name: domain_shift.shifted("SN008", shift, [still, raised]).astype(float) for name, shift in domain_shift.SHIFTS.items()}
    plain = shots["as trained"]
    for name, s in shots.items():
        assert s.shape == (2, 128, 128, 3)
        assert name in ("as trained", "wrinkles off") or abs(s[0] - plain[0]).mean() > 3, name
    change = abs(plain[1] - shots["wrinkles off"][1])
    assert change.max() > 8 and change.mean() < 3   # folds only
    data = domain_shift.shifted_set(domain_shift.Shift(), ["SN008"], mixes=2)
    assert (len(data.pictures), len(data.labels), data.neutral) == (3, 2, {"SN008": 0})
    assert (data.pictures[0] == plain[0]).all()


def test_recognition_arithmetic():
    """Three people on a line, two pictures each: every distance is known."""
    line = np.zeros((6, 128), np.float32)
    line[:, 0] = 0, 0.1, 1, 1.2, 1.5, 1.6
    who = np.repeat([7, 8, 9], 2)
    same, different = external_validation.pair_distances(line, who)
    assert sorted(same) == pytest.approx([0.1, 0.1, 0.2], abs=1e-6) and len(different) == 12
    assert different.min() == pytest.approx(0.3, abs=1e-6)
    first, second = external_validation.lookalikes(line, who, 2)
    assert (first[:4], second[:4]) == ([8, 1, 9, 0], [7, 1, 8, 0])
    apart = np.repeat(np.eye(8, 128, dtype=np.float32), 3, axis=0) + np.random.default_rng(0).normal(0, 0.01, (24, 128))
    assert external_validation.verification(apart, np.repeat(np.arange(8), 3))["accuracy"] == 1


def test_monotonicity_of_known_readings():
    rng = np.random.default_rng(0)
    table = rng.normal(0, 1, (40, 12, 1, 9)) + np.zeros((40, 12, 6, 9))
    table[:, 0, :, 0] += np.arange(6)                # AU1 raises the inner brow
    table[:, 3, :, 3] += rng.normal(0, 1, (40, 6))   # AU5's reading is noise
    found = external_validation.monotonicity(table)
    assert (found["AU1"]["right steps"], found["AU2"]["spearman"]) == (5, 0)
    assert found["AU1"]["spearman"] == pytest.approx(1) and found["AU1"]["mean"] == pytest.approx(range(6))
    assert abs(found["AU5"]["spearman"]) < 0.3
    assert set(external_validation.EXPECTED) == set(AUS)
    assert {name for name, _ in external_validation.EXPECTED.values()} <= set(external_validation.READINGS)


def test_an_inverter_that_loses_nothing():
    try:
        external_validation.dlib_models(), external_validation.dlib_file("dlib_face_recognition_resnet_model_v1.dat")
    except InputError as missing:
        pytest.skip(str(missing))

    class Perfect:
        size, zoom = 128, 1.25

        def invert(self, pictures):
            return pictures

        def synthesize(self, w):
            return torch.from_numpy(w).permute(0, 3, 1, 2) / 127.5 - 1

    two = DISFA(data_dir() / "synthdisfa", subjects=["SN003", "SN004"])
    assert external_validation.inversion_distance(Perfect(), two, 2)["mean"] == pytest.approx(0, abs=1e-3)


def test_arithmetic_is_counted():
    conv, up = torch.nn.functional.conv2d, torch.nn.functional.conv_transpose2d
    with benchmark.Arithmetic() as seen:
        conv(torch.zeros(1, 4, 9, 9), torch.zeros(5, 4, 3, 3), padding=1)
    assert seen.flops == 2 * 81 * 5 * 4 * 9
    with benchmark.Arithmetic() as seen:
        up(torch.zeros(1, 4, 9, 9), torch.zeros(4, 5, 3, 3), stride=2), torch.zeros(2, 6) @ torch.zeros(6, 7)
    assert seen.flops == 2 * 81 * 5 * 4 * 9 + 2 * 2 * 6 * 7
    with benchmark.Arithmetic() as seen:
        up(torch.zeros(2, 4, 9, 9), torch.zeros(4, 5, 3, 3), stride=2)
    product, = seen.products
    for way, many in zip(benchmark.ways(*product), (1, 1, 4)):
        with benchmark.Arithmetic() as again:
            way()
        assert sum(again.products.values()) == many   # the same convolution, or its four parts


def test_a_case_that_does_not_run_is_a_line_of_the_table():
    lost = benchmark.measure_apart("no such case")
    assert "no such case" in lost["problem"]
    line = benchmark.row(lost)
    assert "did not run" in line and line.count("|") == len(benchmark.HEADER) + 1


def test_responses_of_known_readers():
    """Evaluators that read the intensity twice as high, which a calibration puts right: curves, errors and falls."""
    def pictures(k, value): return np.array([[k, value, face] for face in (-1, 0, 1)])
    def evaluator(offset): return SimpleNamespace(offset=offset, calibrated=lambda readings: readings / 2)
    def read(x, evaluator, raw):
        assert raw   # each picture is read once; what is calibrated comes of the same reading
        found = np.zeros((3, 12))
        found[:, x[0, 0]] = x[:, 1] + evaluator.offset + x[:, 2]
        if x[0, 0] == 2: found[:, 2] = np.minimum(found[:, 2], 9 - x[:, 1])   # AU4 falls again
        return 2 * found
    model = SimpleNamespace(evaluator=evaluator(0), evaluator_b=evaluator(0.5), read=read)
    found = response.responses(model, pictures)
    assert set(found) == {"a", "b", "a_raw", "b_raw"} and all(v.shape == (3, 12, 10) for v in found.values())
    m = response.summarise_responses(found, ["x", "y", "z"], n=100)
    assert (m["a 3"].by_au["AU1"], m["a 3"].low, m["a 3"].high) == (3, 2, 4) and m["b 3"].by_au["AU1"] == 3.5
    assert m["worst a"].by_au["AU1"] == 0 and m["worst a_raw"].by_au["AU1"] == 5
    assert m["fall a"].by_au["AU1"] == -1 and m["fall a"].value == m["fall a"].by_au["AU4"] > 0
    assert m["r2 a"].by_au["AU1"] == pytest.approx(1) and m["error b"].value == pytest.approx(0.5, abs=0.2)
    record = {"edits": Report({"AUEditNet": m}, {"requested": response.AT}), "renders": Report({}, {"requested": (0, 1)})}
    table = response.response_table(record).splitlines()
    assert len(table) == 3 and table[0].startswith("| requested, evaluator A | -2 |") and "(AU4)" in table[2]


def test_full_size_is_one_flag(model, tmp_path, monkeypatch, capsys):
    """The published settings with a stand-in of two steps; the header of the weights has the validation curve."""
    import runpy
    import sys
    torch.set_num_threads(1)
    full = cross_validation.FULL_SIZE
    assert (full["GANimation"].batch, full["GANimation"].lr, full["GANimation"].critic_steps) == (25, 1e-4, 5)
    assert (full["Ling"].batch, full["Ling"].lr, full["Ling"].critic_steps) == (16, 1e-4, 4)
    assert all((c.critic_width, c.critic_depth, c.augment) == (64, 6, 0) for c in full.values())
    assert cross_validation.FULL == dict(width=64, fold=1)
    pictures = torch.randint(0, 256, (8, 3, 128, 128), dtype=torch.uint8)
    few = Codes(torch.zeros(8, 1, 1), torch.arange(8.)[:, None].expand(-1, 12) % 6, torch.arange(8) // 4, None, pictures)
    monkeypatch.setattr(cross_validation, "training_codes", lambda *args: few)
    monkeypatch.setattr(cross_validation, "validation_faces", lambda codes: (pictures[:2], few.y[:2]))
    monkeypatch.setattr(cross_validation, "FULL", dict(width=4, fold=1))
    stand_in = dict(steps=2, batch=2, critic_width=4, critic_depth=3)
    monkeypatch.setattr(cross_validation, "FULL_SIZE", {name: replace(config, **stand_in) for name, config in full.items()})
    for name in full:
        state, header = weights.load(cross_validation.train_full_size(name, out=tmp_path))
        assert header["sizes"].items() >= dict(width=4, fold=1).items() and header["steps"] == 2
        assert [row["step"] for row in header["validation"]] == [1, 2]
    with pytest.raises(InputError, match="'linear': not one of GANimation, Ling, ICface"):
        cross_validation.train_full_size("linear")
    monkeypatch.setattr(sys, "argv", ["cross_validation", "AUEditNet", "--full-size"])
    with pytest.raises(InputError, match="'AUEditNet': not one of"):   # the flag reaches `train_full_size`
        runpy.run_module("aueditnet.experiments.cross_validation", run_name="__main__")


def test_validation_faces_are_people_of_no_fold():
    codes = Codes(torch.zeros(40, 1, 1), torch.rand(40, 12), torch.zeros(40), None, torch.zeros(40, 3, 32, 32, dtype=torch.uint8))
    pictures, requests = cross_validation.validation_faces(codes, 3)
    assert pictures.shape == (3, 3, 32, 32) and pictures.dtype == torch.uint8
    assert all((request == codes.y).all(1).any() for request in requests)   # intensities of training frames
    again, _ = cross_validation.validation_faces(codes, 2)
    assert torch.equal(again, pictures[:2]) and not torch.equal(pictures[0], pictures[1])
