"""Data of the pretraining are named by content, its caches are written by several processes at once, its pictures are read one way."""
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT

from aueditnet.align import align_face
from aueditnet.data import DISFA
from aueditnet.experiments import cross_validation
from aueditnet.files import weights
from aueditnet.files.errors import InputError
from aueditnet.files.io import sha256
from aueditnet.inversion import to_tensor
from aueditnet.pretraining import cards, landmark_network
from aueditnet.evaluation import EvaluationSet
from aueditnet.pretraining.au_estimators import EVALUATORS, fit_calibration, labelled_frames
from aueditnet.pretraining.augment import Augment, PictureLoss, fit_network, picture_hash, predict
from aueditnet.pretraining.cards import EARLIER, training_data, write_editor_card
from aueditnet.recognition import AUNet
from aueditnet.synth import identities
from aueditnet.synth.identities import IdentitySet

SYNTHDISFA = ROOT / "data" / "synthdisfa"
PARTS = "ActionUnit_Labels", "Videos_LeftCamera", "Landmark_Points"


@pytest.fixture
def dataset(tmp_path):
    """A copy of synthdisfa's videos, labels and landmarks."""
    for part in PARTS: shutil.copytree(SYNTHDISFA / part, tmp_path / "disfa" / part)
    return tmp_path / "disfa"


def test_training_data_are_named_by_their_content(dataset):
    name = training_data(dataset)
    assert name == training_data(SYNTHDISFA)
    (dataset / "Videos_LeftCamera").rename(dataset / "Video_LeftCamera")   # another spelling that DISFA's reader knows
    assert training_data(dataset) == name
    label = dataset / "ActionUnit_Labels" / "SN001" / "SN001_au12.txt"
    first, rest = label.read_text().split("\n", 1)
    label.write_text(f"1,{5 - int(float(first.split(',')[1]))}\n{rest}")
    assert training_data(dataset) != name
    shutil.copy(SYNTHDISFA / "ActionUnit_Labels" / "SN001" / "SN001_au12.txt", label)
    assert training_data(dataset) == name
    points = dataset / "Landmark_Points" / "SN001.npz"
    np.savez(points, pts=np.load(points)["pts"] + 0.5)
    assert training_data(dataset) != name
    shutil.copy(SYNTHDISFA / "Landmark_Points" / "SN001.npz", points)
    videos = sorted((dataset / "Video_LeftCamera").iterdir())[:2]
    for old, new in zip(videos, [videos[1].with_suffix(".tmp"), videos[0]]): old.rename(new)   # two videos change places
    videos[1].with_suffix(".tmp").rename(videos[1])
    assert training_data(dataset) != name


def test_the_bundled_estimator_is_known_to_be_trained_on_the_bundled_data():
    header = weights.load("heads128-au")[1]
    assert EARLIER.get(header["pictures"], header["pictures"]) == training_data(SYNTHDISFA)
    assert cards.train_one("au") is None   # nothing to train


def test_landmarks_are_cached_by_content_and_written_by_several_processes(tmp_path, monkeypatch):
    calls = []
    def points(seed, n, shift=0.): calls.append(seed); return np.full((n, 68, 2), seed + shift, np.float32)
    monkeypatch.setitem(landmark_network.SETS, "toy", (5, 30, 2))
    monkeypatch.setattr(landmark_network, "set_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(landmark_network, "identity_landmarks", points)
    found = []
    threads = [threading.Thread(target=lambda: found.append(landmark_network.set_landmarks("toy"))) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(found) == 4 and all(np.array_equal(f, found[0]) for f in found) and found[0].shape == (60, 68, 2)
    assert len(list((tmp_path / "toy").iterdir())) == 1   # no other file, no file in parts
    del calls[:]
    landmark_network.set_landmarks("toy")
    assert calls == [5, 12, 19, 27, 34]   # some people, who name the file
    monkeypatch.setattr(landmark_network, "identity_landmarks", lambda seed, n: points(seed, n, 0.5))
    assert landmark_network.set_landmarks("toy")[0, 0, 0] == 5.5   # other landmarks, another file
    assert len(list((tmp_path / "toy").iterdir())) == 2
    monkeypatch.setattr(landmark_network, "identity_landmarks", lambda seed, n: points(seed, n, 0.5 * (seed == 34)))
    assert landmark_network.set_landmarks("toy")[-1, 0, 0] == 34.5   # only the last person's differ
    assert len(list((tmp_path / "toy").iterdir())) == 3


# rendered sets

def write_shards(folder, shards, each=3, value=lambda person: person):
    """A set of two people a shard; every picture has the value of its person."""
    folder.mkdir(exist_ok=True)
    for i in shards:
        person = np.repeat([2 * i, 2 * i + 1], each)
        np.save(folder / f"{i:05d}.npy", np.array([np.full((8, 8, 3), value(p), np.uint8) for p in person]))
        np.savez(folder / f"{i:05d}.npz", y=np.zeros((len(person), 12), np.float32), person=person)
    return folder


def test_a_set_is_named_by_all_its_pictures(tmp_path):
    names = [picture_hash(IdentitySet(write_shards(tmp_path / str(k), range(4), value=value)))
             for k, value in enumerate([lambda p: p, lambda p: p, *(lambda p, q=q: p + (p == q) for q in range(8))])]
    assert names[0] == names[1] and len(set(names)) == 9
    assert names[0] != picture_hash(IdentitySet(write_shards(tmp_path / "short", range(3))))


def test_hashes_of_files_are_kept_and_renewed(tmp_path, monkeypatch):
    people, calls = IdentitySet(write_shards(tmp_path, range(3))), []
    monkeypatch.setattr(identities, "sha256", lambda file: calls.append(file.name) or sha256(file))
    first = people.fingerprint()
    assert len(calls) == 6 and IdentitySet(tmp_path).fingerprint() == first and len(calls) == 6
    write_shards(tmp_path, [1], value=lambda p: 77)
    assert IdentitySet(tmp_path).fingerprint() != first and set(calls[6:]) <= {"00001.npy", "00001.npz"} and "00001.npy" in calls[6:]
    (tmp_path / "hashes.json").write_text("{ torn")
    write_shards(tmp_path, [1])
    assert IdentitySet(tmp_path).fingerprint() == first


def test_a_set_with_a_gap_is_refused(tmp_path):
    write_shards(tmp_path, [0, 2])
    with pytest.raises(InputError, match="shard 1 is missing; run `aueditnet pretrain --stage render` again"):
        IdentitySet(tmp_path)
    assert len(IdentitySet(write_shards(tmp_path, [1]))) == 18


@pytest.mark.parametrize("other", [(100, 0), (100, 1), (125, 0), (150, 1), (199, 1)])
def test_the_folder_of_a_set_is_named_by_pictures_of_several_people(monkeypatch, other):
    """The renderer changes for one picture of one person."""
    names = []
    monkeypatch.setitem(identities.SETS, "toy", (100, 100, 10))
    for changed in (None, other):
        def rendered(seed, n, draw): return np.array([(seed, i, 7 * ((seed, i) == changed)) for i in range(n)]), np.zeros((n, 12))
        monkeypatch.setattr(identities, "render_identity", rendered)
        identities._set_hash.cache_clear()
        names.append(identities.set_folder("toy"))
    identities._set_hash.cache_clear()
    assert names[0] != names[1]


# a kill between the last step and the saving of the weights

class Brightness(torch.nn.Module):
    """A loss that counts its calls."""
    calls = 0

    def forward(self, network, rng):
        Brightness.calls += 1
        return network(torch.from_numpy(rng.standard_normal((4, 3, 8, 8), np.float32))).square().mean()


def small_network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2))


def small_fit(steps, file, seed=0):
    return fit_network(small_network(), Brightness(), lambda network: network[2].bias.detach().sum(), steps, seed, file=file)


def killed(*args, **more): raise KeyboardInterrupt


def test_a_finished_run_is_not_trained_again_before_its_weights_are_saved(tmp_path):
    (one, record), Brightness.calls = small_fit(20, tmp_path / "run.pt"), 0
    again, same = small_fit(20, tmp_path / "run.pt")
    assert Brightness.calls == 0 and record == same
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in one.state_dict().items())


def test_a_score_that_is_not_a_number_is_a_clear_error():
    with pytest.raises(InputError, match="the score at step 4 is NaN: check pictures and labels"):
        fit_network(small_network(), Brightness(), lambda network: float("nan"), 20, 0)


def test_landmark_weights_survive_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path))
    monkeypatch.setattr(landmark_network, "rendered_set", lambda name: None)
    monkeypatch.setattr(landmark_network, "set_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(landmark_network, "identity_landmarks", lambda seed, n: np.zeros((n, 68, 2)))
    monkeypatch.setattr(landmark_network, "set_landmarks", lambda *_: None)
    monkeypatch.setattr(landmark_network, "learn_landmarks", lambda people, points, held_out, steps, file: small_fit(steps, file)[:1] + (None, {"best": 0.}))
    with monkeypatch.context() as patch:
        patch.setattr(weights, "save", killed)
        with pytest.raises(KeyboardInterrupt): landmark_network.landmark_weights(20)
    Brightness.calls = 0
    file = landmark_network.landmark_weights(20)
    assert Brightness.calls == 0 and [f.name for f in file.parent.iterdir()] == [file.name]


@pytest.fixture
def toy_plans(tmp_path, monkeypatch):
    """Plans of two tiny networks, threads in the place of processes, empty folders of weights and caches."""
    def train(data, steps, file):
        network, record = small_fit(steps, file)
        return network, {}, record
    def plans(steps=20): return {name: cards.Plan("synthdisfa", steps, 0, train, "") for name in ("identity", "au")}
    (tmp_path / "weights").mkdir()
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("aueditnet.files.weights.data_dir", lambda: tmp_path)
    monkeypatch.setattr(cards, "process_pool", ThreadPoolExecutor)
    monkeypatch.setattr(cards, "training_data", lambda data: "0" * 16)
    monkeypatch.setattr(cards, "write_cards", lambda names: None)
    monkeypatch.setattr(cards, "plans", plans)
    return plans


def test_trained_networks_survive_a_kill_before_they_are_saved(toy_plans, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(weights, "save", killed)
        with pytest.raises(KeyboardInterrupt): cards.main(["au"])
    assert len(list((tmp_path / "cache" / "evaluators").glob("au-*.pt"))) == 1
    Brightness.calls = 0
    cards.main(["au"])
    assert Brightness.calls == 0 and list((tmp_path / "cache" / "evaluators").iterdir()) == []
    assert weights.load("heads128-au")[1]["steps"] == 20


def test_a_network_is_saved_when_it_is_ready(toy_plans, monkeypatch):
    """The first network fails after the second one is saved."""
    save, saved = weights.save, threading.Event()
    def first(data, steps, file): raise RuntimeError(f"second one saved: {saved.wait(20)}")
    plans = {name: replace(plan, train=first) if name == "identity" else plan for name, plan in toy_plans().items()}
    monkeypatch.setattr(cards, "plans", lambda: plans)
    monkeypatch.setattr(weights, "save", lambda *args: (save(*args), saved.set()))
    with pytest.raises(RuntimeError, match="second one saved: True"): cards.main()
    assert weights.load("heads128-au")[1]["steps"] == 20


@pytest.mark.parametrize("change", ["steps", "seed", "data"])
def test_a_network_of_another_plan_is_trained_anew(toy_plans, monkeypatch, change):
    cards.main(["au"])
    assert cards.train_one("au") is None
    if change == "data": monkeypatch.setattr(cards, "training_data", lambda data: "1" * 16)
    else: monkeypatch.setattr(cards, "plans", lambda: {name: replace(plan, **{change: 10}) for name, plan in toy_plans().items()})
    Brightness.calls = 0
    header = cards.train_one("au")[1]
    assert Brightness.calls == (10 if change == "steps" else 20) and header["steps"] == Brightness.calls


def test_estimators_of_folds_are_named_by_data_and_recipe(dataset, tmp_path, monkeypatch):
    """Another label, length, start or augmentation: another file. The same: no training. A kill loses nothing."""
    calls = []
    def train_au(data, steps, start, fold, file):
        calls.append(fold)
        network, record = small_fit(steps, file)
        return network, {}, record
    monkeypatch.setattr(cross_validation, "train_au", train_au)
    def estimator(fold="P1", steps=20, start=None): return cross_validation.fold_estimator(dataset, fold, tmp_path, steps, start)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "save", killed)
        with pytest.raises(KeyboardInterrupt): estimator()
    Brightness.calls = 0
    files = [estimator()]
    assert Brightness.calls == 0 and estimator() == files[0] and calls == ["P1"] * 2 and not list(tmp_path.glob("*.pt"))
    files += [estimator("P2"), estimator(steps=21), estimator(start=lambda: {"w": torch.zeros(1)}), estimator(start=lambda: {"w": torch.ones(1)})]
    with monkeypatch.context() as patch:
        patch.setattr(cross_validation, "STRONG", Augment())
        files.append(estimator())
    label = dataset / "ActionUnit_Labels" / "SN001" / "SN001_au12.txt"
    label.write_text(label.read_text().replace("1,0", "1,3", 1))
    files.append(estimator())
    assert len(set(files)) == len(files) == 7 == len(calls) - 1


def test_frames_are_read_and_aligned_one_way():
    subjects, disfa = ["SN001", "SN002"], DISFA(SYNTHDISFA, ["SN001", "SN002"])
    x, y, who = labelled_frames(SYNTHDISFA, subjects, every=40)
    expected = [(align_face(frame, points, 128, 1.25), labels, s) for s in subjects
                for i, (frame, points, labels) in enumerate(zip(disfa.frames(s), disfa.landmarks(s), disfa.labels(s))) if i % 40 == 0]
    assert np.array_equal(x, [frame for frame, _, _ in expected]) and np.array_equal(y, [labels for _, labels, _ in expected])
    assert who.tolist() == [s for _, _, s in expected]


def test_augmentation_keeps_what_is_switched_off_and_repeats_itself():
    faces = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    still = Augment(shift=0, scale=0, roll=0, light=0, colour=0, degraded=0, noise=0)
    out, x = still(faces, np.random.default_rng(0)), to_tensor(faces)
    same, mirrored = ((a - x).abs().amax((1, 2, 3)) < 1e-6 for a in (out, out.flip(3)))
    assert (same | mirrored).all() and same.any() and mirrored.any()
    assert torch.equal(*(Augment(smallest=16)(faces, np.random.default_rng(5)) for _ in range(2)))


def test_losses_are_named_by_pictures_labels_and_settings():
    faces, y = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), np.zeros((8, 12), np.float32)
    names = [PictureLoss(*args, **more).fingerprint() for args, more in
             [((faces, y, Augment()), {}), ((faces, y, Augment()), {}), ((faces[::-1], y, Augment()), {}), ((faces, y + 1, Augment()), {}),
              ((faces, y, Augment(noise=0)), {}), ((faces, y, Augment()), dict(batch=8)), ((faces, y, Augment()), dict(weight=np.ones(8)))]]
    assert names[0] == names[1] and len(set(names)) == 6
    assert picture_hash(faces) != picture_hash(faces, 1)


def test_predictions_do_not_depend_on_the_batch():
    faces = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(768, 2)).train()
    one, two = (predict(network, faces, batch=n) for n in (3, 64))
    assert one.shape == (10, 2) and np.allclose(one, two) and not network.training
    assert not np.allclose(predict(network, faces, lambda x: 255 - x), two)


def test_the_card_of_an_editor_is_written_from_its_header(tmp_path, monkeypatch):
    from dataclasses import asdict
    from aueditnet.training import TrainConfig
    monkeypatch.setattr("aueditnet.files.weights.data_dir", lambda: tmp_path)
    header = dict(subjects=["SN001"], labels="manual", frames=3, seconds=2.4, training=asdict(TrainConfig(steps=7)), terms={"latent": [0.5, 0.25]})
    weights.save("heads128-editor", {"w": torch.zeros(1)}, header)
    write_editor_card()
    card = (tmp_path / "weights" / "heads128" / "editor.md").read_text()
    assert "seed 0" in card and "| config `lr` | 0.004 |" in card and "7 steps" in card
    assert "| loss term `latent`, first 20 steps and last 20 | 0.5000, 0.2500 |" in card


def test_the_configuration_of_the_bundled_model_is_written_for_new_networks(tmp_path, monkeypatch):
    """Other sizes than before: the folder loads with them, and keeps its other parts."""
    import json
    from aueditnet.files.model_folder import read_config
    from aueditnet.inversion import Encoder, Inverter
    from aueditnet.pretraining.export import REFINEMENT, write_config
    from aueditnet.stylegan2 import Generator
    for module in ("aueditnet.files.weights", "aueditnet.files.model_folder", "aueditnet.pretraining.export"): monkeypatch.setattr(f"{module}.data_dir", lambda: tmp_path)
    generator, encoder = Generator(16, 8, {4: 4, 8: 4, 16: 4}, 1), Encoder([[8, 8]] * 6, 8, (6, 6, 7, 8, 8), (1, 1, 1, 1))
    folder = tmp_path / "weights" / "heads128"
    for name, network in {"generator": generator, "encoder": encoder}.items(): weights.save(f"heads128-{name}", network.state_dict(), {})
    weights.save("heads128-preconditioner", {"axes": torch.eye(48, dtype=torch.int8)[:3]}, {})
    write_config(generator, encoder)
    inverter = Inverter.from_pretrained(folder)
    assert (inverter.size, inverter.size_in, inverter.zoom, inverter.steps) == (16, 16, 1.25, REFINEMENT) and inverter.generator.n_levels == 6
    old = read_config(ROOT / "data" / "weights" / "heads128" / "config.json")
    (folder / "config.json").write_text(json.dumps(old))
    parts = read_config(write_config(generator, encoder))["parts"]
    assert parts["generator"]["config"]["size"] == 16 and set(parts) == set(old["parts"]) and parts["editor"] == old["parts"]["editor"]


def test_the_model_of_a_fold_has_its_own_estimator(tmp_path):
    network = cross_validation.AUNet((4, 4), 32, 6)
    weights.save(tmp_path / "au.safetensors", network.state_dict(), {"subjects": ["SN001"]})
    model = cross_validation.fold_model(str(tmp_path / "au.safetensors"))
    assert model.au_net.config["hidden"] == 6 and model.meta["au_net"]["subjects"] == ["SN001"]
    assert cross_validation.fold_model("heads128-au").au_net.config["hidden"] == 128


def dull_readings(n=300, seed=0):
    """Pictures of one AU at each intensity, and readings as an evaluator's: weak and strong intensities are read too low."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, (n, 12)).astype(np.float32)
    read = np.interp(truth, range(6), [0.1, 0.7, 1.8, 2.9, 3.6, 4.2]) + rng.normal(0, 0.1, (n, 12))
    return read.astype(np.float32), truth


def test_calibration_makes_means_true():
    (read, truth), (other, other_truth) = dull_readings(), dull_readings(seed=1)
    network = AUNet((4, 4), size=32)
    network.calibration = torch.from_numpy(fit_calibration(read, truth))
    assert network.calibration.shape == (12, 6) and (network.calibration.diff(dim=1) > 0).all()
    means = lambda read: np.array([read[other_truth == v].mean() for v in range(6)])
    assert abs(means(network.calibrated(other)) - range(6)).max() < 0.05 < 0.7 < abs(means(other) - range(6)).max()


def test_calibration_stretches_no_more_than_twice_and_only_where_it_has_pictures():
    read, truth = dull_readings()
    assert (np.diff(fit_calibration(read / 10, truth)) >= 0.5 - 2e-3).all()     # a network that hardly reads anything
    backwards = fit_calibration(5 - read, truth)
    assert (np.diff(backwards) >= 0.5 - 2e-3).all()
    truth[:, 3] = np.nan                                                     # no labels, and few of one intensity
    truth[:, 5], read[:, 5] = 0, 0.2
    truth[:5, 5], read[:5, 5] = 5, 1
    curve = fit_calibration(read, truth)
    np.testing.assert_allclose(curve[3], range(6), atol=2e-3)
    np.testing.assert_allclose(curve[5], np.arange(6) + 0.2, atol=0.02)


def test_calibration_people_show_every_au_alone(monkeypatch):
    shots = [shot for shot in identities.draw_single_aus(60003, 61)]
    au = np.stack([shot[1] for shot in shots])
    assert au.shape == (61, 12) and not au[0].any() and ((au > 0).sum(1)[1:] == 1).all()
    assert sorted(zip(au[1:].argmax(1), au[1:].max(1))) == [(k, v) for k in range(12) for v in range(1, 6)]
    assert len({id(scene) for _, _, scene, _ in shots}) == len({id(person) for person, *_ in shots}) == 1
    few = [shot[1] for shot in identities.draw_single_aus(60003, 3)]
    np.testing.assert_array_equal(few, au[:3])


def test_bundled_evaluators_read_single_aus_of_unseen_people_as_they_are():
    """The figures of the cards, from the weights and the counterfactual pictures."""
    grid = EvaluationSet.counterfactual(SYNTHDISFA / "counterfactual", subjects=("SN003", "SN004"))
    rows = np.flatnonzero(grid.kind == "single")
    for name, (kind, *_) in EVALUATORS.items():
        state, header = weights.load(f"heads128-{name}")
        network = kind.from_state_dict(state)
        for which in ("raw", "calibrated"):
            means = np.mean([*header["figures"]["single"][which].values()], 0)
            worst = abs(means - range(6)).max()
            assert worst < 0.27 if which == "calibrated" else worst > 0.5
        read = predict(network, grid.pictures[grid.target[rows]])
        k = grid.labels[rows].argmax(1)
        strong = grid.labels[rows].max(1) == 5
        bias = [abs(values[np.arange(len(rows)), k][strong].mean() - 5) for values in (network.calibrated(read), read)]
        assert bias[0] < 0.35 < bias[1], bias


def test_the_weights_of_losses_follow_the_crop_of_the_pictures(monkeypatch):
    """Generator training and the landmark features take the crop zoom from the set of pictures."""
    from aueditnet.pretraining import generator_training
    from aueditnet.pretraining.recipes import Points, PointsTask
    from aueditnet.recognition import AUNet, resized
    zooms, people = [], type("People", (), {"zoom": 1.1, "__len__": lambda self: 4, "__getitem__": lambda self, i: np.zeros(
        (len(i), 32, 32, 3), np.uint8), "fingerprint": lambda self: "four black pictures"})()
    monkeypatch.setattr(generator_training, "pyramid_loss", lambda made, real, zoom=None: zooms.append(zoom) or (made - real).square().mean())
    config = generator_training.JointConfig(32, 8, {k: 8 for k in (4, 8, 16, 32)}, {k: 8 for k in (4, 8, 16, 32)}, (8,) * 5, (1, 1, 1, 1), (8, 8),
                                            ((32, 1),), 1, reconstructions=4, samples=4)
    start = AUNet().state_dict()   # of a landmark network all but the last layer
    task = PointsTask(config, people, lambda: start)
    learner = type("Learner", (), {"callback": lambda *args: None})()
    for step in (0, 1):
        task.before_step(step)
        task.training_step(learner)
    assert zooms == [1.1, 1.1] and task.frozen.net.zoom == 1.1
    x = torch.rand(1, 3, 128, 128)
    wide = torch.nn.functional.pad(resized(x, 128), [16] * 4, "replicate")      # the same face at zoom 1: 160 pixels
    for a, b in zip(Points(start, 1.25)(x), Points(start, 1.)(wide)): assert torch.allclose(a, b, atol=1e-4)
    assert generator_training.JointTask(config, [0] * 4).zoom == 1.25
