"""Runs on a whole data set: settings are checked, people are kept apart, missing networks are named, a killed run goes on, labels keep their origin."""
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from aueditnet.data import DISFA, FOLDS, SUBJECTS, TEST, TRAIN, BatchConfig, Codes, PairBatches, PictureFolder, fold_of
from aueditnet.runs.evaluate import evaluate_model
from aueditnet.files.errors import InputError
from aueditnet.files.io import cache_dir, data_dir
from aueditnet.files.model_folder import ModelFolder
from aueditnet.losses import LossConfig
from aueditnet.pipeline import FaceModel, Pipeline
from aueditnet.pretraining import readers
from aueditnet.pretraining.au_estimators import labelled_frames
from aueditnet.pretraining.readers import READERS, validation_frames, reader_people, train_readers
from aueditnet.recognition import AUNet
from aueditnet.runs.importing import import_model, seeded_checkpoint
from aueditnet.runs.labelling import label
from aueditnet.runs.train import add_to_card, joined, load_config, train, training_people
from aueditnet.training import EditorTask, TrainConfig, training_subjects

PEOPLE = ["SN001", "SN006", "SN003"]   # one of each fold
SMALL = TrainConfig(steps=6, every=8, batch=BatchConfig(pairs=4), loss=LossConfig(size=16, rendered=2, unseen=2), sizes=dict(hidden=16, embed=8, rank=2))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Caches of their own, one thread, no worker processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUEDITNET_HOME", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three people of synthdisfa in a folder of their own."""
    root, source = tmp_path_factory.mktemp("data") / "DISFA", data_dir() / "synthdisfa"
    for s in PEOPLE:
        shutil.copytree(source / "ActionUnit_Labels" / s, root / "ActionUnit_Labels" / s)
        for file in (f"Videos_LeftCamera/LeftVideo{s}_comp.avi", f"Landmark_Points/{s}.npz"):
            (root / file).parent.mkdir(exist_ok=True)
            shutil.copy(source / file, root / file)
    return root


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An imported model: encoder and generator only."""
    folder = tmp_path_factory.mktemp("models")
    seeded_checkpoint(folder / "e4e.pt", size=16, dim=16)
    return import_model(folder / "e4e.pt", folder / "bare")


@pytest.fixture(scope="module")
def ready(bare, data, tmp_path_factory):
    """The same model with its readers."""
    folder = tmp_path_factory.mktemp("models") / "ready"
    train_readers(bare, data, folder, steps=3, frames_per_subject=6, device="cpu")
    return folder


@pytest.fixture(scope="module")
def run(ready, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(ready, data, folder, SMALL, frames_per_subject=8, device="cpu")
    return folder


# settings

def written(folder, content):
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "config.json"


def test_settings_survive_a_file(tmp_path):
    for config in (TrainConfig(), SMALL, TrainConfig(lr=1e-3, seed=4, loss=LossConfig(perceptual=1.5))):
        assert load_config(written(tmp_path, asdict(config))) == config
    assert load_config(written(tmp_path, {"lr": 1, "call": {"model": "x"}})) == TrainConfig(lr=1.0)
    assert load_config(written(tmp_path, {})) == TrainConfig()


WRONG = {
    "misspelt": ({"stps": 3}, "config.json: unknown setting 'stps', did you mean steps?"),
    "misspelt inside": ({"loss": {"pixls": 3}}, "config.json, loss: unknown setting 'pixls', did you mean pixels?"),
    "unknown": ({"zzz": 3}, "config.json: unknown setting 'zzz', known are steps, every"),
    "unknown size": ({"sizes": {"hiden": 3}}, "config.json, sizes: unknown setting 'hiden', did you mean hidden?"),
    "text for a number": ({"lr": "fast"}, 'config.json: lr is "fast", a number expected'),
    "fraction for a whole number": ({"steps": 1.5}, "config.json: steps is 1.5, a whole number expected"),
    "truth value": ({"steps": True}, "config.json: steps is true, a whole number expected"),
    "number for a group": ({"loss": 3}, "config.json: loss is 3, an object"),
    "infinite": ('{"lr": Infinity}', "config.json: lr is Infinity, a number expected"),
    "null": ({"batch": {"pairs": None}}, "config.json: batch.pairs is null, a whole number expected"),
    "no steps": ({"steps": 0}, "config.json: steps is 0, at least 1 expected"),
    "negative": ({"loss": {"unseen": -1}}, "config.json: loss.unseen is -1, at least 0 expected"),
    "share above one": ({"batch": {"mirror": 1.5}}, "config.json: batch.mirror is 1.5, at most 1 expected"),
    "dropout above one": ({"sizes": {"dropout": 2.0}}, "config.json: sizes.dropout is 2, at most 1 expected"),
    "no hidden layer": ({"sizes": {"hidden": 0}}, "config.json: sizes.hidden is 0, at least 1 expected"),
    "more pictures than pairs": ({"batch": {"pairs": 8}}, "loss.rendered . loss.unseen is 24, more than the 8 pairs"),
    "a list": ([1], "config.json: the content is .1., an object"),
    "torn": ('{"steps": 3', "config.json: not readable as JSON")}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_settings_name_file_and_key(tmp_path, kind):
    content, match = WRONG[kind]
    with pytest.raises(InputError, match=match): load_config(written(tmp_path, content))


def test_a_missing_file_of_settings(tmp_path):
    with pytest.raises(InputError, match="none.json: no such file"): load_config(tmp_path / "none.json")


# people

def test_folds():
    assert {s: fold for fold, people in FOLDS.items() for s in people} == fold_of(SUBJECTS)
    other = fold_of(["b", "a", "c", "SN001", "d"])
    assert [other[s] for s in ("a", "b", "c", "d", "SN001")] == ["P1", "P2", "P3", "P1", "P1"]
    everybody = type("Data", (), {"subjects": SUBJECTS})
    for fold in FOLDS: assert training_people(everybody, fold) == training_subjects(fold)
    assert training_subjects("P3") == TRAIN
    assert reader_people(everybody, "P3") == (FOLDS["P1"], FOLDS["P2"], FOLDS["P3"])
    assert [set(g) for g in reader_people(everybody, "P1")] == [set(FOLDS["P2"]), set(FOLDS["P3"]), set(FOLDS["P1"])]


@pytest.mark.parametrize("how, match", [(dict(fold="P4"), "fold 'P4': not one of P1, P2, P3"), (dict(subjects=["SN003"]), "SN003: in the test fold P3; leave them out"),
                                        (dict(subjects=["SN099"]), "SN099"), (dict(config=replace(SMALL, steps=0)), "steps is 0, at least 1"), (dict(device="tpu"), "device 'tpu': not one of auto")])
def test_train_refuses_what_cannot_be_used(bare, data, tmp_path, how, match):
    with pytest.raises(InputError, match=match): train(bare, data, tmp_path / "run", **{"device": "cpu", "config": SMALL} | how)
    assert not (tmp_path / "run").exists()


def test_train_refuses_folders_and_estimators_that_cannot_be_used(bare, data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, name a folder for the run"): train(bare, data, tmp_path / "file", SMALL)
    with pytest.raises(InputError, match="no such folder"): train(bare, tmp_path / "nowhere", tmp_path / "run", SMALL)
    with pytest.raises(InputError, match="trained on 9 people of test fold P1: give another one"): train("heads128", data, tmp_path / "run", SMALL, "P1")
    shutil.copytree(bare, tmp_path / "model")
    before = {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()}
    with pytest.raises(InputError, match="model: holds a model; name another folder for the run"): train(tmp_path / "model", data, tmp_path / "model", SMALL)
    assert {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()} == before


# the run

def test_a_run_is_a_folder(run, ready):
    assert sorted(f.name for f in run.iterdir()) == ["checkpoint.pt", "config.json", "history.csv", "model"]
    assert load_config(run / "config.json") == SMALL
    call = json.loads((run / "config.json").read_text())["call"]
    assert call["fold"] == "P3" and call["frames_per_subject"] == 8 and call["model"] == str(ready)
    rows = (run / "history.csv").read_text().splitlines()
    assert len(rows) == 1 + SMALL.steps and "au_image" in rows[0] and "identity" not in rows[0]
    model = ModelFolder(run / "model")
    assert set(model.config["parts"]) == {"generator", "encoder", "latent_avg", "au_net", "evaluator", "evaluator_b", "editor"}
    assert model.config["label_origin"] == "manual" and model.load("editor")[1]["subjects"] == ["SN001", "SN006"]
    card = (run / "model" / "README.md").read_text()
    assert "## Editor" in card and "| steps | 6 |" in card and "e4e.pt" in card and "## Part evaluator_b" in card   # where the networks come from stays


def test_a_model_without_readers_is_trained_without_their_terms(bare, data, tmp_path, caplog):
    caplog.set_level("INFO", "aueditnet")
    model = train(bare, data, tmp_path / "run", SMALL, frames_per_subject=6, device="cpu")
    said = caplog.text
    assert "left out of the loss: au_image, the model has no au_net: " in said and "aueditnet train-reader" in said and "left out of the loss: identity" in said
    edit = Pipeline.from_pretrained(tmp_path / "run" / "model").edit(DISFA(data, ["SN003"]).frame("SN003", 0), {"AU12": 3}, align=True)
    assert edit.measured == {} and np.isnan(edit.identity) and edit.image.shape == (16, 16, 3) and "not measured" in repr(edit)
    assert "au_image" not in model.meta["editor"]["terms"]


def test_a_killed_run_goes_on_and_other_settings_are_refused(ready, data, run, tmp_path, monkeypatch):
    short = replace(SMALL, checkpoint_every=2)
    calls = []
    loss = EditorTask.loss
    def failing(self, i):
        calls.append(i)
        if i == 3 and len(calls) < 5: raise KeyboardInterrupt
        return loss(self, i)
    monkeypatch.setattr(EditorTask, "loss", failing)
    with pytest.raises(KeyboardInterrupt): train(ready, data, tmp_path / "run", short, frames_per_subject=8, device="cpu")
    train(ready, data, tmp_path / "run", short, frames_per_subject=8, device="cpu")
    assert calls == [0, 1, 2, 3, 2, 3, 4, 5]
    w = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    one, two = (FaceModel.from_pretrained(folder / "model").editor.edit(w, torch.ones(12)) for folder in (run, tmp_path / "run"))
    assert torch.equal(one, two)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(InputError, match="other seed"): train(ready, data, tmp_path / "run", replace(short, seed=1), frames_per_subject=8, device="cpu")
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_picture_of_the_loss_is_no_larger_than_the_generators(bare, data, tmp_path):
    model = train(bare, data, tmp_path / "run", replace(SMALL, steps=1, loss=replace(SMALL.loss, size=128)), frames_per_subject=4, device="cpu")
    assert load_config(tmp_path / "run" / "config.json").loss.size == 16 == model.size


@pytest.mark.parametrize("change, match", [(dict(loss=replace(SMALL.loss, size=12)), "loss.size is 12, the generator has the sizes 4, 8, 16"),
                                           (dict(sizes={"hidden": 0}), "sizes.hidden is 0"), (dict(sizes={"dropout": 2.}), "sizes.dropout is 2")])
def test_settings_that_do_not_fit_the_model_are_refused_before_a_frame_is_read(bare, data, tmp_path, monkeypatch, change, match):
    monkeypatch.setattr("aueditnet.runs.train.labelled_codes", lambda *args: pytest.fail("frames are read"))
    with pytest.raises(InputError, match=match): train(bare, data, tmp_path / "run", replace(SMALL, **change), device="cpu")


def state(model):
    """What a caller sees of a model: its parts, their places and weights, their descriptions."""
    parts = {name: (id(part), str(next(part.parameters()).device)) for name, part in model.parts.items() if isinstance(part, torch.nn.Module)}
    return list(model.parts), parts, json.dumps(model.meta, sort_keys=True), model.placement, model.label_origin


def test_a_given_model_is_left_as_it_was(ready, data, tmp_path):
    model = FaceModel.from_pretrained(ready)
    model.inverter, model.au_net, model.evaluator, model.evaluator_b, model.editor   # loaded
    before = state(model)
    trained = train(model, data, tmp_path / "run", replace(SMALL, steps=1), frames_per_subject=4, device="cpu")
    assert state(model) == before and model.editor is None and trained.editor is not None and trained.au_net is model.au_net
    again = train_readers(model, data, tmp_path / "readers", steps=1, frames_per_subject=4, device="cpu")
    assert state(model) == before and again.au_net is not model.au_net


# a folder of pictures, with people of its own

NINE = [f"{k:05d}" for k in range(9)]


def table_of(folder, source, frames, subject=None):
    """Pictures of synthdisfa's frames and labels.csv with their landmarks. frames: {name of the file: (subject, frame)}."""
    rows = [f"image,{'subject,' if subject else ''}" + ",".join(f"AU{n}" for n in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)) + "," +
            ",".join(f"{a}_{k}" for a in "xy" for k in range(68))]
    for name, (s, i) in frames.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.frame(s, i)).save(folder / name)
        who = [subject(name)] if subject else []
        rows.append(",".join([name, *who, *(f"{v:g}" for v in source.labels(s)[i]), *(f"{v:.2f}" for v in source.landmarks(s)[i].T.ravel())]))
    (folder / "labels.csv").write_text("# labels: predicted by X\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    source = DISFA(data_dir() / "synthdisfa", [s for s in SUBJECTS[:9]])
    frames = {f"{name}/{i:02d}.png": (s, i) for name, s in zip(NINE, source.subjects) for i in (0, 20, 40)}
    return table_of(tmp_path_factory.mktemp("nine") / "faces", source, frames)


@pytest.fixture(scope="module")
def nine_model(bare, nine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nine") / "model"
    train_readers(bare, nine, folder, steps=2, device="cpu")
    return folder


def test_nine_people_from_readers_to_evaluation(nine, nine_model, tmp_path):
    """The estimator's three people are all of P1, although dealt out among themselves one of them would be in P3."""
    model = train(nine_model, nine, tmp_path / "run", replace(SMALL, steps=2, every=1), device="cpu")
    assert model.evaluator is not None   # loaded, with its description
    assert model.meta["au_net"]["subjects"] == NINE[0::3] and model.meta["evaluator"]["subjects"] == NINE[1::3]
    assert model.meta["editor"]["subjects"] == sorted(NINE[0::3] + NINE[1::3])
    found = evaluate_model(FaceModel.from_pretrained(tmp_path / "run" / "model"), nine, None, 2)
    assert found["frames"].settings["subjects"] == NINE[2::3]
    with pytest.raises(InputError, match="the AU estimator was trained on 3 people of test fold P1"):
        train(nine_model, nine, tmp_path / "other", replace(SMALL, steps=2, every=1), "P1", device="cpu")


def test_subjects_do_not_change_the_folds(nine, nine_model, tmp_path):
    config = replace(SMALL, steps=1, every=1)
    with pytest.raises(InputError, match="00002: in the test fold P3"): train(nine_model, nine, tmp_path / "run", config, subjects=["00002", "00003"], device="cpu")
    model = train(nine_model, nine, tmp_path / "run", config, subjects=["00003", "00006", "00007"], device="cpu")   # alone, 00007 would be in P3
    assert model.meta["editor"]["subjects"] == ["00003", "00006", "00007"]
    with pytest.raises(InputError, match="no subjects for the evaluators: none of the people is in fold P2"):
        train_readers(nine_model, nine, tmp_path / "readers", subjects=["00000", "00003", "00005"], steps=1)
    with pytest.raises(InputError, match="00009: not in the dataset"): train_readers(nine_model, nine, tmp_path / "readers", subjects=["00009"], steps=1)


def test_people_without_landmarks_are_skipped(nine, bare, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "aueditnet")
    usable = PictureFolder.usable
    monkeypatch.setattr(PictureFolder, "usable", lambda self, s: usable(self, s) & (s != "00003"))
    monkeypatch.setattr("aueditnet.pretraining.readers.complete_landmarks", lambda dataset, people: dataset)
    monkeypatch.setattr("aueditnet.runs.streaming.complete_landmarks", lambda dataset, *args: dataset)
    model = train_readers(bare, nine, tmp_path / "model", steps=1, device="cpu")
    assert "skipped, no frame has landmarks for the alignment: 00003" in caplog.text
    assert model.meta["au_net"]["subjects"] == ["00000", "00006"]


def test_a_folder_of_one_picture_a_person(bare, tmp_path):
    """FFHQ's layout: 00000/00000.png, without names of people."""
    source = DISFA(data_dir() / "synthdisfa", SUBJECTS[:6])
    folder = table_of(tmp_path / "ffhq", source, {f"00000/{k:05d}.png": (s, 20) for k, s in enumerate(source.subjects)})
    config = replace(SMALL, steps=1, every=1)
    with pytest.raises(InputError, match="all of the dataset's people|in the test fold"): train(bare, folder, tmp_path / "run", config, "P1", device="cpu")
    model = train(bare, folder, tmp_path / "run", config, "P1", device="cpu", each_file=True, confidence=0.5)
    assert len(model.meta["editor"]["subjects"]) == 4
    assert json.loads((tmp_path / "run" / "config.json").read_text())["call"]["each_file"] is True


def test_options_of_pictures_are_refused_for_disfa(bare, data, tmp_path):
    with pytest.raises(InputError, match="has DISFA's layout; each_file and confidence are for folders"):
        train(bare, data, tmp_path / "run", SMALL, each_file=True, confidence=0.5)


def test_sections_of_a_card_are_replaced(tmp_path):
    (tmp_path / "README.md").write_text("# name\n\ntext\n")
    for value in (1.0, 2.0):
        add_to_card(tmp_path, "One", {"a": value})
        add_to_card(tmp_path, "Two", {"b": "x"}, "Words.")
    text = (tmp_path / "README.md").read_text()
    assert text.count("## One") == text.count("## Two") == 1 and "| a | 2 |" in text and "text" in text and "Words." in text


# readers

def test_readers_have_people_and_crop_of_their_own(ready, bare):
    model = FaceModel.from_pretrained(ready)
    assert {part: getattr(model, part).zoom for part in READERS} == dict.fromkeys(READERS, 1.0)
    assert [model.meta[part]["subjects"] for part in READERS] == [["SN001"], ["SN006"], ["SN006"]]
    assert all(model.meta[part]["figures"]["pictures"] == 6 and model.meta[part]["labels"] == "manual" for part in READERS)
    assert model.identity_evaluator is None and set(ModelFolder(bare).config["parts"]) == {"generator", "encoder", "latent_avg"}
    assert not list((cache_dir() / "readers").glob("*.pt"))   # checkpoints are deleted when the weights are saved


def test_readers_go_into_the_models_own_folder(bare, data, tmp_path):
    shutil.copytree(bare, tmp_path / "own")
    train_readers(tmp_path / "own", data, steps=2, frames_per_subject=4, device="cpu")
    assert {"au_net", "evaluator", "evaluator_b"} <= set(ModelFolder(tmp_path / "own").config["parts"])
    with pytest.raises(InputError, match="name a folder"): train_readers("heads128", data, steps=2)
    with pytest.raises(InputError, match="no subjects for the evaluators: none of the people is in fold P2"):
        train_readers(tmp_path / "own", data, subjects=["SN001", "SN003"], steps=2)


def test_killed_readers_go_on(bare, data, tmp_path, monkeypatch, ready):
    with monkeypatch.context() as patch:
        patch.setattr(readers, "save_readers", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): train_readers(bare, data, tmp_path / "model", steps=4, frames_per_subject=4, device="cpu")
    monkeypatch.setattr("aueditnet.pretraining.augment.NetworkTask.loss", lambda *args: pytest.fail("a finished reader is trained again"))
    model = train_readers(bare, data, tmp_path / "model", steps=4, frames_per_subject=4, device="cpu")
    assert all(isinstance(getattr(model, part), torch.nn.Module) for part in READERS)


def test_frames_that_choose_the_weights():
    nine = np.repeat(TEST, 3)
    assert sorted(set(nine[validation_frames(nine)])) == [TEST[2], TEST[6]]
    one = validation_frames(np.repeat(["a", "b"], 8))
    assert one.sum() == 4 and one[[6, 7, 14, 15]].all()


def test_figures_are_left_out_without_people_of_the_test_fold(bare, data, tmp_path):
    model = train_readers(bare, data, tmp_path / "model", subjects=["SN001", "SN006"], steps=2, frames_per_subject=4, device="cpu")
    assert "figures" not in model.meta["evaluator"]


# evaluation of a model that lacks parts

def test_evaluation_leaves_out_what_cannot_be_measured(run, data, tmp_path, monkeypatch):
    found = evaluate_model(FaceModel.from_pretrained(run / "model", device="cpu"), data, tmp_path / "all.json", 3)
    system = found["frames"].systems["AUEditNet"]
    assert {"icc_a", "icc_b", "psnr_face"} <= set(system) and not {"identity_source", "distance"} & set(system)
    model = FaceModel.from_pretrained(run / "model", evaluator_b=None)
    found = evaluate_model(model, data, None, 3, subjects=["SN003"])
    assert "icc_b" not in found["frames"].systems["AUEditNet"] and found["frames"].settings["subjects"] == ["SN003"]
    with pytest.raises(InputError, match="has no evaluator .*aueditnet train-reader"): evaluate_model(FaceModel.from_pretrained(run / "model", evaluator=None), data, None, 3)


def test_people_that_were_trained_on_are_not_measured(run, data):
    model = FaceModel.from_pretrained(run / "model")
    with pytest.raises(InputError, match="the editor was trained on SN001"): evaluate_model(model, data, None, 3, "P1")
    with pytest.raises(InputError, match="the editor was trained on SN006"): evaluate_model(model, data, None, 3, subjects=["SN006", "SN003"])
    other = model.with_parts(editor=torch.nn.Identity())
    other.meta["editor"] = {"fold": "P2"}
    with pytest.raises(InputError, match="the evaluator was trained on SN006"): evaluate_model(other, data, None, 3)   # the editor's own fold
    with pytest.raises(InputError, match="the editor was trained on SN001"): evaluate_model(FaceModel.from_pretrained(), None, None, 3, "P1")


# labels

@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("faces"), DISFA(data_dir() / "synthdisfa", ["SN003", "SN004"])
    for s in source.subjects:
        (folder / s).mkdir()
        for i in (0, 40): Image.fromarray(source.frame(s, i)).save(folder / s / f"{i:04d}.png")
    Image.new("RGB", (200, 200), "grey").save(folder / "SN003" / "grey.png")
    shutil.copy(source.video_file("SN004"), folder / "SN004" / "clip.avi")
    return folder


def test_labels_of_another_program(faces, tmp_path):
    lines = ["input,confidence,success," + "AU01_r,AU12_r", "SN003/0000.png,0.95,1,1.5,3", "SN003/0040.png,0.2,1,1,1", "SN004/0000.png,0.9,0,1,1", "SN004/0040.png,0.9,1,0,4.5"]
    (tmp_path / "of.csv").write_text("\n".join(lines) + "\n")
    table = label(faces, tmp_path / "of.csv", tmp_path / "labels.csv")
    assert table.read_text().startswith("# labels: predicted by OpenFace\n")
    data = PictureFolder(faces, table)
    assert data.subjects == ["SN003", "SN004"] and data.label_origin == "predicted by OpenFace"
    assert data.labels("SN004").tolist()[0][6] == 4.5 and np.isnan(data.labels("SN003")[0, 1])


def test_labels_of_a_model(faces, ready, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "aueditnet")
    monkeypatch.setattr("aueditnet.runs.labelling.is_video", lambda file: False)   # a video's frames take long
    model = FaceModel.from_pretrained(ready)
    before = state(model)
    table = label(faces, model, tmp_path / "labels.csv", "cpu", workers=0)
    assert state(model) == before
    said = caplog.text
    assert "4 of 5 frames labelled" in said and "grey.png: no face found" in said and f"labels predicted by {ready.parent.name}/ready" in said
    data = PictureFolder(faces, table)
    assert data.usable("SN003").all() and data.n_frames("SN004") == 2 and (0 <= data.labels("SN003")).all() and (data.labels("SN003") <= 5).all()
    monkeypatch.setattr("aueditnet.runs.labelling.detect_landmarks", lambda *args: pytest.fail("a reading is made again"))
    text = table.read_text()
    shutil.copytree(ready, tmp_path / "renamed")   # the same network: its readings are there
    assert label(faces, str(tmp_path / "renamed"), tmp_path / "second.csv", "cpu", workers=0).read_text().splitlines()[1:] == text.splitlines()[1:]
    assert label(faces, model, table, "cpu", workers=0).read_text() == text   # from the cache, over its own table


def test_labels_are_not_lost_or_mistaken(faces, bare, tmp_path):
    (tmp_path / "labels.csv").write_text("# labels: manual\nimage,AU1\nSN003/0000.png,1\n")
    with pytest.raises(InputError, match="is there and was not made by `aueditnet label`"): label(faces, bare, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("# labels: predicted by X\nimage,AU1\nSN003/0000.png,1\n")
    with pytest.raises(InputError, match="the table and the result are one file"): label(faces, tmp_path / "labels.csv", tmp_path / "labels.csv")
    with pytest.raises(InputError, match="has no au_net"): label(faces, bare, tmp_path / "other.csv")
    with pytest.raises(InputError, match="no such folder"): label(tmp_path / "none", bare)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures or videos"): label(tmp_path / "empty", FaceModel.from_pretrained(bare, au_net=AUNet((4, 4), 32, 4)))


def test_training_on_pseudo_labels(bare, tmp_path):
    """A folder of pictures and labels.csv takes the place of DISFA; the origin of the labels goes into the model."""
    source = DISFA(data_dir() / "synthdisfa", ["SN001", "SN006"])
    rows = ["image,subject," + ",".join(f"AU{n}" for n in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)) + "," + ",".join(f"{a}_{k}" for a in "xy" for k in range(68))]
    for s in source.subjects:
        for i in range(0, 80, 16):
            Image.fromarray(source.frame(s, i)).save(tmp_path / f"{s}-{i}.png")
            rows.append(",".join([f"{s}-{i}.png", s.replace("SN", "person"), *(f"{v:g}" for v in source.labels(s)[i]), *(f"{v:.2f}" for v in source.landmarks(s)[i].T.ravel())]))
    (tmp_path / "labels.csv").write_text("# labels: predicted by py-feat\n" + "\n".join(rows) + "\n")
    model = train(bare, tmp_path, tmp_path.parent / "pseudo", replace(SMALL, every=1, steps=2), device="cpu")
    assert model.meta["editor"]["subjects"] == ["person001", "person006"]
    assert ModelFolder(tmp_path.parent / "pseudo" / "model").config["label_origin"] == "predicted by py-feat"


def test_frames_of_readers_are_those_of_the_bundled_estimator(data):
    """Read by worker processes, the same pictures, labels and people as `labelled_frames` reads in one process."""
    dataset = DISFA(data, ["SN001", "SN006"])
    streamed, plain = readers.reader_frames(dataset, dataset.subjects, 64, 1.0, 5), labelled_frames(dataset, dataset.subjects, 1, 64, 1.0, 5)
    assert streamed[0].shape == (10, 64, 64, 3) and all(np.array_equal(a, b) for a, b in zip(streamed, plain))


def test_evaluation_needs_two_frames_of_a_person(nine, nine_model, tmp_path):
    train(nine_model, nine, tmp_path / "run", replace(SMALL, steps=1, every=1), device="cpu")
    model = FaceModel.from_pretrained(tmp_path / "run" / "model")
    source = DISFA(data_dir() / "synthdisfa", SUBJECTS[:9])
    frames = {f"{name}/{i:02d}.png": (s, i) for name, s in zip(NINE, source.subjects) for i in ((20,) if name == "00005" else (0, 20))}
    found = evaluate_model(model, table_of(tmp_path / "some", source, frames), None, 2)
    assert found["frames"].settings["subjects"] == ["00002", "00008"]
    folder = table_of(tmp_path / "ffhq", source, {f"00000/{k:05d}.png": (s, 20) for k, s in enumerate(source.subjects)})
    with pytest.raises(InputError, match="no subject of the test fold has two frames"): evaluate_model(model, folder, None, 2, each_file=True)


# other labelled pictures beside those of a dataset

def some_codes(n=6, people=2, on_disk=None):
    g = torch.Generator().manual_seed(n)
    w, mirrored = torch.randn(2, n, 4, 8, generator=g)
    pictures = torch.randint(0, 256, (n, 3, 8, 8), generator=g).byte()
    if on_disk:
        from aueditnet.files.latents import Rows, ShardWriter
        def stored(name, rows):
            writer = ShardWriter(on_disk / name, {}, n, rows.shape[1:], 4, rows.dtype)
            for at in range(0, n, 4): writer.add(range(at, min(n, at + 4)), rows[at:at + 4])
            return Rows([(writer.finish(), range(n))])
        w, mirrored, pictures = stored("w", w), stored("mirrored", mirrored), stored("pictures", pictures)
    return Codes(w, torch.rand(n, 12, generator=g) * 5, torch.arange(people).repeat_interleave(n // people), mirrored, pictures)


def test_codes_are_joined(tmp_path):
    a, b = some_codes(6, 2), some_codes(8, 2)
    both = joined(a, b)
    assert both.spans() == {0: (0, 3), 1: (3, 3), 2: (6, 4), 3: (10, 4)}
    for name in ("w", "y", "mirrored", "pictures"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(a, name), getattr(b, name)]))
    bare = joined(*(replace(c, mirrored=None, pictures=None) for c in (a, b)))
    assert bare.mirrored is None and bare.pictures is None
    with pytest.raises(InputError, match="mirrored of some of them are missing"): joined(a, replace(b, mirrored=None))
    with pytest.raises(InputError, match="pictures of shape"): joined(a, replace(b, pictures=b.pictures[..., :4]))


def test_joined_codes_stay_on_disk(tmp_path):
    a, b = some_codes(6, 2, tmp_path), some_codes(8, 2)
    both, plain = joined(a, b), joined(a.loaded(), b)
    assert not isinstance(both.w, torch.Tensor) and not isinstance(both.pictures, torch.Tensor)
    for name in ("w", "mirrored", "pictures"):
        ours, theirs = getattr(both, name), getattr(plain, name)
        assert len(ours) == 14 and ours.shape == theirs.shape
        for which in (slice(None), slice(4, 9), torch.tensor([13, 0, 6, 5]), 7): assert torch.equal(ours[which], theirs[which])
    assert torch.allclose(both.w.std(0), plain.w.std(0), atol=1e-5) and torch.equal(both.loaded().w, plain.w)
    batches = [PairBatches(codes, BatchConfig(pairs=6), 2, seed=1).next_batch() for codes in (both, plain)]
    assert all(torch.equal(one, batches[1][key]) for key, one in batches[0].items())
    assert both.digest() == joined(a, b).digest() != joined(a, replace(b, w=b.w + 1)).digest()


def test_a_run_with_further_pictures_says_so(ready, data, tmp_path, caplog):
    caplog.set_level("INFO", "aueditnet")
    def renders(people, inverter, side):
        assert side == 16 and set(people) == {"SN001", "SN006"}
        shape = inverter.generator.n_levels, inverter.generator.style_dim
        g = torch.Generator().manual_seed(0)
        return Codes(torch.randn(8, *shape, generator=g), torch.rand(8, 12, generator=g) * 8 - 2, torch.arange(2).repeat_interleave(4),
                     torch.randn(8, *shape, generator=g), torch.zeros(8, 3, 16, 16).byte())
    model = train(ready, data, tmp_path / "run", SMALL, frames_per_subject=8, device="cpu", more=renders)
    assert model.meta["editor"]["more"] == {"pictures": 8, "of": "renders"} and model.meta["editor"]["frames"] == 16
    said, card = caplog.text, (tmp_path / "run/model/README.md").read_text()
    assert "16 frames of 2 people" in said and "8 further labelled pictures (renders)" in said
    assert "| trained on | 16 frames of 2 people" in card and "| further pictures | 8 of `renders` |" in card


def test_more_requests_than_pairs_are_refused(bare, data, tmp_path):
    with pytest.raises(InputError, match="loss.rendered . batch.requests is 5, more than the 4 pairs"):
        train(bare, data, tmp_path / "run", replace(SMALL, batch=BatchConfig(pairs=4, requests=3)), device="cpu")
    with pytest.raises(InputError, match="batch.requests is -1"):
        train(bare, data, tmp_path / "run", replace(SMALL, batch=BatchConfig(pairs=4, requests=-1)), device="cpu")
