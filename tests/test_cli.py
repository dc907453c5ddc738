"""The command line and bad input: one line that names the thing, exit code 2, nothing written and nothing overwritten."""
import ast
import errno
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
import typer
from conftest import NBS, child_env, says
from PIL import Image
from typer.testing import CliRunner

from aueditnet import cli
from aueditnet.cli import app
from aueditnet.commands import apps, faces, files, options, tables, training
from aueditnet.facs import AUS
from aueditnet.files import model_folder, weights
from aueditnet.files.errors import InputError
from aueditnet.files.model_folder import PARTS, REMEDIES

pytestmark = pytest.mark.usefixtures("home")
DATA = weights.data_dir() / "synthdisfa"
PREVIOUS = b"an earlier result"


QUICK = ("--steps", "12")       # hardly tuned: enough where the command is tested and not the picture
CROP = ("--no-align", "--refine", "0")      # a face crop, the encoder alone


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def snapshot(folder):
    """Every file below a folder with its content; links are not followed."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file() and not f.is_symlink()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder that holds one earlier result."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "out.png").write_bytes(PREVIOUS)
    monkeypatch.chdir(folder)
    return folder


def refused(here, *words, naming):
    """Run a command that must fail as bad input does."""
    before = snapshot(here)
    result = run(*words)
    says(result, naming)
    assert result.stderr.count("\n") == 1
    assert snapshot(here) == before
    return result


@pytest.fixture(scope="module")
def face(tmp_path_factory):
    """A bundled test subject's frame, as a camera sees it."""
    from aueditnet.data import DISFA
    file = tmp_path_factory.mktemp("face") / "face.png"
    Image.fromarray(DISFA(DATA, subjects=["SN003"]).frame("SN003", 0)).save(file)
    return file


@pytest.fixture(scope="module")
def crop(face):
    """The same face, aligned."""
    from aueditnet.align import cut_face
    file = face.parent / "crop.png"
    Image.fromarray(cut_face(face, 128, 1.25, True)).save(file)
    return file


@pytest.fixture(scope="module")
def two(face):
    """Two faces, the larger one on the left."""
    one = Image.open(face)
    both = Image.new("RGB", (one.width * 2, one.height), "grey")
    both.paste(one, (0, 0))
    both.paste(one.resize((one.width * 9 // 10, one.height * 9 // 10)), (one.width, 0))
    both.save(file := face.parent / "two.png")
    return file


@pytest.fixture
def tree(tmp_path):
    """A copy of the bundled data set made of links; single files can be replaced."""
    copy = tmp_path / "tree"
    for file in DATA.rglob("*"):
        if file.is_file() and "counterfactual" not in file.parts:
            target = copy / file.relative_to(DATA)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    return copy


def replace(file, content):
    file.unlink()
    file.write_bytes(content)


# What works

COMMANDS = ["demo", "edit", "transfer", "estimate", "invert", "label", "train-reader", "train", "evaluate", "ablate", "pretrain", "bench",
            "model", "model import", "model show", "weights", "weights list", "weights path", "weights fetch", "weights verify", "weights convert",
            "synthdisfa", "synthdisfa make", "lab", "course", "course export", "app"]
COMPUTING = ["demo", "edit", "transfer", "estimate", "invert", "train-reader", "train", "evaluate", "app"]     # with a model of the user's choice


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0 and "Usage" in result.stdout and len(result.stdout.splitlines()) > 5


def test_every_command_has_its_help_tested():
    def names(group, before=""):
        for name, command in group.commands.items():
            yield before + name
            yield from names(command, f"{before}{name} ") if hasattr(command, "commands") else ()
    assert list(names(typer.main.get_command(app))) == COMMANDS     # in the order of the help


def test_who_takes_a_model_and_a_device():
    taken = {name: {p.name for p in command.params} for name, command in typer.main.get_command(app).commands.items()}
    assert [name for name in taken if "model" in taken[name]] == sorted(COMPUTING, key=COMMANDS.index)
    assert {name for name in taken if "device" in taken[name]} == {*COMPUTING, "label"}


def test_what_a_command_imports_is_there():
    """Commands import when they run; here every name is looked up that any of them would import or take from a module."""
    missing = []
    trees = [ast.parse(Path(module.__file__).read_text()) for module in (cli, apps, faces, options, tables, training, files)]
    for function in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        modules = {}
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    home = importlib.import_module("." * node.level + (node.module or ""), "aueditnet")
                    if not hasattr(home, alias.name) and importlib.util.find_spec(f"{home.__name__}.{alias.name}") is None:
                        missing.append(f"{function.name}: {home.__name__}.{alias.name}")
                    elif importlib.util.find_spec(f"{home.__name__}.{alias.name}") if hasattr(home, "__path__") else None:
                        modules[alias.asname or alias.name] = importlib.import_module(f"{home.__name__}.{alias.name}")
        missing += [f"{function.name}: {node.value.id}.{node.attr}" for node in ast.walk(function) if isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name) and node.value.id in modules and not hasattr(modules[node.value.id], node.attr)]
    assert missing == []


def test_stages_of_pretraining(monkeypatch):
    """`all` runs the stages in their order, a name runs one."""
    from aueditnet.pretraining import cards, export, photo_readers, recipes
    from aueditnet.synth import identities
    done = []
    monkeypatch.setattr(identities, "render_set", lambda name: done.append(name))
    monkeypatch.setattr(cards, "main", lambda: done.append("evaluators"))
    monkeypatch.setattr(photo_readers, "main", lambda: done.append("photo-reader"))
    monkeypatch.setattr(recipes, "long_run", lambda folder: done.append(("joint", folder)))
    monkeypatch.setattr(export, "export", lambda folder: done.append(("export", folder)))
    assert run("pretrain", "--folder", "here").exit_code == 0
    assert done == [*identities.SETS, "evaluators", "photo-reader", ("joint", Path("here")), ("export", Path("here"))]
    done.clear()
    assert run("pretrain", "--stage", "evaluators").exit_code == 0 and done == ["evaluators"]


@pytest.fixture
def called(monkeypatch):
    """Put a stand-in of the same signature in a function's place; `passed` is what a command gives to it, {parameter: value}."""
    class Called:
        def __init__(self, target, result=None):
            real = pkgutil.resolve_name(target)
            self.signature, self.stand_in = inspect.signature(real), create_autospec(real, return_value=result)
            monkeypatch.setattr(target, self.stand_in)

        @property
        def passed(self):
            [call] = self.stand_in.call_args_list
            return dict(self.signature.bind(*call.args, **call.kwargs).arguments)
    return Called


def succeeds(*words):
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_model_import(here, called):
    importing = called("aueditnet.runs.importing.import_model", Path("ffhq"))
    assert "written to ffhq" in succeeds("model", "import", "--e4e", "e4e.pt", "--generator", "g.pt", "--arcface", "id.pth", "-o", "ffhq")
    assert importing.passed == {"e4e": Path("e4e.pt"), "out": Path("ffhq"), "generator": Path("g.pt"), "arcface": Path("id.pth")}
    for words in (["-o", "ffhq"], ["--e4e", "e4e.pt"]):
        assert run("model", "import", *words).exit_code == 2


def test_model_show():
    head, _, *rows = succeeds("model", "show", "heads128").splitlines()
    assert all(word in head for word in ("heads128", "128 px", "1.25"))
    assert [row.split()[0] for row in rows][:len(PARTS)] == list(PARTS)
    absent = {row.split()[0] for row in rows if not re.search(r"[A-Z]\w+ +\d+\.\d MB  present", row)}
    assert "latent_avg" in absent and absent <= {"latent_avg", "photo_reader"}
    assert REMEDIES["latent_avg"] in rows[list(PARTS).index("latent_avg")]


def test_train_reader(here, called):
    readers = called("aueditnet.pretraining.readers.train_readers")
    succeeds("train-reader", "--model", "ffhq", "--data", "disfa", "-o", "copy", "--fold", "P1", "--subjects", "SN001,SN002", "--steps", "5",
             "--frames-per-subject", "7", "--each-file", "--confidence", "0.5", "--device", "cuda")
    assert readers.passed == dict(model="ffhq", data=Path("disfa"), out=Path("copy"), fold="P1", subjects=["SN001", "SN002"], steps=5,
                                  frames_per_subject=7, each_file=True, confidence=0.5, device="cuda")
    readers.stand_in.reset_mock()
    succeeds("train-reader", "--model", "ffhq")
    assert readers.passed == dict(model="ffhq", data=None, out=None, fold="P3", device="auto")


def test_train(here, called):
    from aueditnet.training import TrainConfig
    train = called("aueditnet.runs.train.train")
    assert "run/model" in succeeds("train")
    assert train.passed == dict(model="heads128", data=None, out=Path("run"), config=TrainConfig(), fold="P3", device="auto")
    train.stand_in.reset_mock()
    load = called("aueditnet.runs.train.load_config", TrainConfig(steps=9, lr=0.5))
    succeeds("train", "--model", "user/ffhq", "--data", "disfa", "-o", "mine", "--fold", "P2", "--subjects", "SN001, SN002", "--steps", "5",
             "--frames-per-subject", "7", "--config", "other.json", "--each-file", "--confidence", "0.5", "--device", "cuda:1")
    assert list(load.passed.values()) == [Path("other.json")]
    assert train.passed == dict(model="user/ffhq", data=Path("disfa"), out=Path("mine"), config=TrainConfig(steps=5, lr=0.5), fold="P2",
                                subjects=["SN001", "SN002"], frames_per_subject=7, each_file=True, confidence=0.5, device="cuda:1")


def test_train_install(here, called):
    """The bundled editor becomes that of the run, header and entry in config.json and all."""
    from safetensors.torch import load_file
    bundled, made = weights.path_for("heads128-editor"), here / "run" / "model"
    made.mkdir(parents=True)
    shutil.copy(bundled, made)
    content = json.loads((bundled.parent / "config.json").read_text())
    content["parts"] = {"editor": content["parts"]["editor"]}
    content["parts"]["editor"]["config"]["noise"] = 0.25
    (made / "config.json").write_text(json.dumps(content))
    called("aueditnet.runs.train.train")
    save, card = called("aueditnet.files.weights.save"), called("aueditnet.pretraining.cards.write_editor_card")
    write = called("aueditnet.files.io.replace_file")
    succeeds("train", "--install")
    assert card.passed == {} and save.passed["file"] == "heads128-editor" and save.passed["meta"]["network"] == "AUEditNet"
    assert {k: v.shape for k, v in save.passed["state_dict"].items()} == {k: v.shape for k, v in load_file(bundled).items()}
    file, text = write.passed.values()
    assert file == bundled.parent / "config.json"
    before, after = json.loads(file.read_text()), json.loads(text)
    assert after["parts"].pop("editor") == content["parts"]["editor"] != before["parts"].pop("editor") and after == before


def test_label(here, called):
    label = called("aueditnet.runs.labelling.label", Path("photos/labels.csv"))
    assert "photos/labels.csv" in succeeds("label", "photos", "--with", "openface.csv")
    assert label.passed == dict(folder=Path("photos"), source="openface.csv", out=None, device="auto")
    label.stand_in.reset_mock()
    succeeds("label", "photos", "--with", "run/model", "-o", "mine.csv", "--device", "cpu")
    assert label.passed == dict(folder=Path("photos"), source="run/model", out=Path("mine.csv"), device="cpu")


def test_evaluate(here, called):
    load, evaluation = called("aueditnet.pipeline.FaceModel.from_pretrained", "a model"), called("aueditnet.runs.evaluate.evaluate_model")
    assert "written to out.csv" in succeeds("evaluate", "--model", "run/model", "--data", "disfa", "--fold", "P2", "--subjects", "SN003",
                                            "--pairs", "4", "-o", "out.csv", "--each-file", "--confidence", "0.5", "--device", "cpu")
    assert (load.passed["name"], load.passed["device"]) == ("run/model", "cpu")
    assert evaluation.passed == dict(model="a model", data=Path("disfa"), out=Path("out.csv"), fold="P2", subjects=["SN003"], pairs=4,
                                     each_file=True, confidence=0.5)
    evaluation.stand_in.reset_mock()
    succeeds("evaluate")
    assert evaluation.passed == dict(model="a model", data=None, out=None)   # the fold is the editor's own
    comparison = called("aueditnet.experiments.comparison.main")
    succeeds("evaluate", "--quick", "-o", "out.json")
    assert comparison.passed == dict(quick=True, data=None, out=Path("out.json"))


def test_videos_are_known_by_the_suffixes_of_the_reader(tmp_path):
    from aueditnet.files.videofile import VIDEO_SUFFIXES
    for suffix in VIDEO_SUFFIXES: assert options.is_video(tmp_path / f"clip{suffix.upper()}")
    assert set(options.VIDEOS) <= set(VIDEO_SUFFIXES)


def test_demo(here, called):
    demo = called("aueditnet.explore.demo")
    succeeds("demo", "-o", "sheet.jpg", "--model", "run/model", "--device", "mps")
    assert demo.passed == dict(out=Path("sheet.jpg"), model="run/model", device="mps")


@pytest.mark.parametrize("words", [["edit", "FACE", "--au", "AU12=4"], ["transfer", "FACE", "FACE"], ["estimate", "FACE"], ["invert", "album"]],
                         ids=lambda words: words[0])
def test_model_and_device_reach_the_pipeline(here, face, monkeypatch, words):
    words = [face if word == "FACE" else word for word in words]
    from aueditnet.pipeline import Pipeline
    def load(name="heads128", refine=None, device=None):
        raise InputError(f"asked for {name}, {refine} steps, on {device}")
    monkeypatch.setattr(Pipeline, "from_pretrained", load)
    refused(here, *words, naming="asked for heads128, None steps, on auto")
    refused(here, *words, "--model", "run/model", "--refine", "3", "--device", "cuda", naming="asked for run/model, 3 steps, on cuda")


def test_edit_without_an_evaluator(capsys):
    """Nothing is reported as measured that was not measured."""
    from types import SimpleNamespace
    for nothing in (None, {}):
        faces.report(SimpleNamespace(source={"AU12": 0.5}, requested={"AU12": 4.0}, measured=nothing), "au_net", "face 2")
        said = capsys.readouterr().out
        assert re.search(r"AU12 +0\.5 +4\.0 +-\n", said) and "train-reader" in said and said.startswith("face 2\n") and "au_net" in said


def test_lab_opens_the_tour(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)     # and back afterwards
    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append((program, *words[1:], Path.cwd())))
    assert run("lab").exit_code == 0
    [(program, *words, folder)] = started
    assert program == sys.executable and words == ["-m", "jupyterlab", "00_tour.ipynb"] and folder == NBS
    assert (folder / "00_tour.ipynb").is_file()


def test_starts_at_once(tmp_path):
    """Counted in processor time, which a busy machine stretches less than the clock."""
    def used():
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime
    seconds = []
    for _ in range(3):
        before = used()
        result = subprocess.run([Path(sys.executable).parent / "aueditnet", "--help"], cwd=tmp_path, env=child_env(), capture_output=True, text=True)
        seconds.append(used() - before)
    assert result.returncode == 0 and "transfer" in result.stdout
    assert min(seconds) < 0.5, seconds


def changed(before, after):
    """Where two pictures differ: left, top, right, bottom."""
    y, x = np.nonzero((np.asarray(Image.open(before).convert("RGB")) != np.asarray(Image.open(after).convert("RGB"))).any(-1))
    return x.min(), y.min(), x.max(), y.max()


def test_edit_writes_the_photograph(here, face):
    result = run("edit", face, "--au", "AU12=4", "-o", "out.png", *QUICK)
    assert result.exit_code == 0, (result.output, result.exception)
    assert Image.open("out.png").size == Image.open(face).size
    left, top, right, bottom = changed(face, "out.png")
    assert left > 60 and top > 20 and right < 260 and bottom < 220, "the rest is the photograph, bit for bit"
    assert re.search(r"read by \w+ from the pixels", result.stdout) and re.search(r"AU12 +-?\d", result.stdout) and "written to out.png" in result.stdout
    assert result.stderr == "" and sorted(f.name for f in here.iterdir()) == ["out.png"]
    text = Image.open("out.png").text
    assert text["Description"].startswith("Edited.") and "AU12 = 4" in text["Description"] and "compositeWithTrainedAlgorithmicMedia" in text["XML:com.adobe.xmp"]


@pytest.mark.parametrize("name, result", [("me.jpg", "edited.jpg"), ("ME.TIFF", "edited.TIFF"), ("me.gif", "edited.png"), ("me.webp", "edited.webp")])
def test_the_result_has_the_input_s_format(here, face, name, result):
    Image.open(face).save(here / name)
    before = (here / name).read_bytes()
    assert result in succeeds("edit", name, "--au", "AU12=4", *QUICK)
    assert sorted(f.name for f in here.iterdir()) == sorted([result, name, "out.png"]) and (here / name).read_bytes() == before
    assert Image.open(result).size == Image.open(face).size


def test_modes_of_the_file_are_kept(here, face):
    grey = Image.open(face).convert("L")
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "A camera"
    deep = Image.fromarray(np.asarray(grey.rotate(90, expand=True)).astype(np.uint16) * 257)     # stored lying on its side
    deep.save(here / "deep.png", exif=exif)
    result = run("edit", "deep.png", "--au", "AU12=4", *QUICK, "-o", "edited.png")
    assert result.exit_code == 0 and result.stderr == ""
    after = Image.open("edited.png")
    assert after.mode == "I;16" and after.size == grey.size and after.getexif()[0x0110] == "A camera" and 0x0112 not in after.getexif()
    same = np.asarray(after) == np.asarray(grey).astype(np.uint16) * 257
    assert same[:, :60].all() and same[:20].all() and not same.all()
    result = run("edit", "deep.png", "--au", "AU12=4", *QUICK, "-o", "edited.bmp")
    assert result.exit_code == 0 and Image.open("edited.bmp").mode == "L"
    assert [line.split(": ")[:2] for line in result.stderr.splitlines()] == [["aueditnet", "warning"]] * 2
    assert "8 bit" in result.stderr and "no note" in result.stderr


def test_several_pictures_in_a_file(here, face):
    first = Image.open(face)
    first.save(here / "moving.gif", save_all=True, append_images=[first.rotate(5), first.rotate(9)])
    result = run("edit", "moving.gif", "--au", "AU12=4", *QUICK, "-o", "edited.png")
    assert result.exit_code == 0 and "3 frames, 3 edited" in result.stdout and Image.open("edited.png").n_frames == 3


def test_nothing_asked_gives_the_photograph(here, face):
    shutil.copy(face, "me.png")
    assert run("edit", "me.png", "--au", "AU26=0", "--relative", *QUICK, "-o", "same.png").exit_code == 0
    assert (here / "same.png").read_bytes() == face.read_bytes()
    succeeds("edit", "me.png", "--au", "AU26=0", "--relative", "--crop", *QUICK, "-o", "crop.png")
    assert Image.open("crop.png").size == (128, 128) and "Description" not in Image.open("crop.png").text


def test_the_input_is_never_overwritten(here, face):
    shutil.copy(face, here / "me.png")
    (here / "link.png").symlink_to(here / "me.png")
    for out in ("me.png", "link.png", here / "me.png"):
        refused(here, "edit", "me.png", "--au", "AU12=4", "-o", out, naming="is the input itself")
    refused(here, "transfer", "me.png", face, "-o", "me.png", naming="is the input itself")


def test_the_face_alone(here, face, crop):
    succeeds("edit", face, "--au", "AU12=4", "--crop", *QUICK, "-o", "crop.png")
    succeeds("edit", face, "--au", "AU12=4", "--crop", "--no-tune", "--refine", "0", "-o", "drawn.png")
    succeeds("edit", crop, "--au", "AU12=4", *CROP, "-o", "aligned.png")
    succeeds("edit", crop, "--au", "AU12=4", "--no-align", "--tune", *QUICK, "-o", "tuned.png")
    pictures = {name: np.asarray(Image.open(f"{name}.png")).astype(int) for name in ("crop", "drawn", "aligned", "tuned")}
    assert {picture.shape for picture in pictures.values()} == {(128, 128, 3)}
    assert (pictures["drawn"] == pictures["aligned"]).all(), "the same face, found or given"
    own = np.asarray(Image.open(crop)).astype(int)
    border = {name: abs(picture - own)[:, :8].mean() for name, picture in pictures.items()}
    assert border["crop"] == 0 < border["tuned"] < border["drawn"]
    assert all("Description" in Image.open(f"{name}.png").text for name in pictures)


def test_a_small_photograph_is_no_crop(here, crop):
    """A picture of the model's size is looked at like any other."""
    padded = Image.open(crop).resize((100, 100))
    whole = Image.new("RGB", (128, 128), "grey")
    whole.paste(padded, (14, 14))
    whole.save("me.png")
    for words in (["edit", "me.png", "--au", "AU12=4", "-o", "out2.png", "--force", *QUICK], ["transfer", "me.png", "me.png", "-o", "out2.png", "--force", *QUICK]):
        succeeds(*words)
        assert (np.asarray(Image.open("out2.png"))[:14] == np.asarray(whole)[:14]).all()
    assert succeeds("estimate", "me.png").startswith("face 1 of me.png, read by")


def test_paste_is_accepted(here, face):
    succeeds("edit", face, "--au", "AU12=4", *QUICK, "-o", "a.png")
    succeeds("edit", face, "--au", "AU12=4", "--paste", *QUICK, "-o", "b.png")
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    assert "--paste" not in run("edit", "--help").stdout


def test_relative_adds_to_the_face(here, face):
    said = succeeds("edit", face, "--au", "AU26=+4", "--relative", *QUICK, "-o", "more.png")
    source, requested, _ = map(float, re.search(r"AU26 +(\S+) +(\S+) +(\S+)", said).groups())
    assert abs(requested - source - 4) < 0.11


def test_presets_are_their_action_units(here, face):
    from aueditnet.facs import PRESETS
    assert run("edit", face, "--preset", "happiness", *QUICK, "-o", "preset.png").exit_code == 0
    assert run("edit", face, "--au", ",".join(f"{au}={v}" for au, v in PRESETS["happiness"].items()), *QUICK, "-o", "numbers.png").exit_code == 0
    assert (here / "preset.png").read_bytes() == (here / "numbers.png").read_bytes()


def test_transfer(here, face, crop):
    said = succeeds("transfer", face, face, *QUICK, "-o", "transferred.png")
    rows = re.findall(r"(AU\d+) +(\S+) +(\S+) +\S+\n", said)
    assert [row[0] for row in rows] == list(AUS) and all(source == requested for _, source, requested in rows)
    assert (here / "transferred.png").read_bytes() == face.read_bytes(), "its own expression: nothing is asked"
    succeeds("transfer", face, crop, "--crop", *QUICK, "-o", "crop.png")
    succeeds("transfer", crop, crop, *CROP, "-o", "aligned.png")
    assert {Image.open(f).size for f in ("crop.png", "aligned.png")} == {(128, 128)}
    assert "written to transferred.png" in succeeds("transfer", face, crop, *QUICK)


def test_estimate(here, face, crop, two, monkeypatch):
    for file, how in ((face, []), (crop, ["--no-align"])):
        head, *lines = run("estimate", file, *how).stdout.splitlines()
        assert "read by" in head and str(file) in head and [line.split()[0] for line in lines] == list(AUS)
        assert all(-3 < float(line.split()[1]) < 8 for line in lines)    # the scale is 0 to 5; the estimator has no bounds built in
    heads = [line for line in succeeds("estimate", two, "--face", "all").splitlines() if line.startswith("face")]
    assert [head.split()[1] for head in heads] == ["1", "2"]
    assert succeeds("estimate", two, "--face", "2").count("\n") == 13


def test_estimate_says_how_far_readers_agree(here, face, monkeypatch):
    from aueditnet.photographs import reading
    one = np.linspace(0, 5, 12, dtype=np.float32)[None]
    monkeypatch.setattr(reading, "read_faces", lambda model, crops, highest: reading.Readings(one, one / 10, "photo_reader"))
    head, *lines = succeeds("estimate", face).splitlines()
    assert "photo_reader from the pixels" in head and "standard deviation" in head
    assert re.fullmatch(r"AU26 +5\.0 \+- 0\.5  jaw drop", lines[-1])


def test_weights_list_and_path():
    listed = run("weights", "list").stdout
    assert all(name in listed for name in weights.REGISTRY)
    assert Path(run("weights", "path", "heads128-editor").stdout.strip()).is_file()


def test_invert_a_folder(here, face, tmp_path):
    from aueditnet.files.latents import LatentCache
    album = tmp_path / "album"
    album.mkdir()
    shutil.copy(face, album / "a.png")
    (album / "b.jpg").write_bytes(b"not a picture at all")
    Image.fromarray(np.full((128, 128, 3), 99, np.uint8)).save(album / "c.png")
    for _ in range(2):    # the second time everything is there
        result = run("invert", album, "-o", "codes", "--refine", "0")
        assert result.exit_code == 0, (result.output, result.exception)
        assert "2 of 3 pictures inverted" in result.stdout and "b.jpg" in result.stdout
    codes = LatentCache("codes")
    assert codes.frames.tolist() == [0, 2] and codes[[0, 2]].shape == (2, *codes.manifest["code"])
    refused(here, "invert", album, "-o", "codes", "--refine", "0", "--no-align", naming=["codes", "align"])
    refused(here, "invert", tmp_path / "nowhere", "-o", "others", naming="nowhere")


# What does not

@pytest.mark.parametrize("error, code, said", [
    (FileNotFoundError(2, "No such file or directory", "face.png"), 2, "aueditnet: face.png: No such file or directory\n"),
    (OSError("no device"), 2, "aueditnet: no device\n"), (InputError("two\nlines"), 2, "aueditnet: two lines\n"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""), (ZeroDivisionError("ours"), 1, "")])
def test_errors(error, code, said):
    """A file system's complaint is one line too, a closed pipe is left to typer, and a fault of ours is shown in full."""
    box = typer.Typer(cls=cli.OneLineErrors, callback=lambda: None)
    @box.command()
    def fail():
        raise error
    result = CliRunner().invoke(box, ["fail"])
    assert (result.exit_code, result.stderr) == (code, said)
    assert result.exception is error or not isinstance(error, ZeroDivisionError)


def test_options_that_do_not_go_together(here, face):
    edit = "edit", face, "--au", "AU12=4", "-o", "out.png"
    refused(here, *edit, "--smooth", "1", naming=["face.png", "--smooth"])
    refused(here, "transfer", face, face, "--smooth", "1", naming=["face.png", "--smooth"])
    refused(here, *edit, "--no-tune", naming="--crop")
    refused(here, *edit, "--no-tune", "--crop", "--steps", "9", naming=["--steps", "--no-tune"])
    refused(here, *edit, "--face", "all", "--crop", naming=["--crop", "--face 2"])
    for face_ in ("0", "-1", "both", "1.5", ""):
        refused(here, *edit, "--face", face_, naming="faces are numbered")
    for number in ("2", "all"):
        refused(here, *edit, "--face", number, "--no-align", naming=["--face", "--no-align"])
        refused(here, "estimate", face, "--face", number, "--no-align", naming=["--face", "--no-align"])
    refused(here, "transfer", face, face, "--target-face", "2", "--no-align", naming=["--target-face", "--no-align"])
    refused(here, "edit", "clip.mp4", "--au", "AU12=4", "--face", "all", naming=["--face", "one person"])
    refused(here, "edit", face, naming=["--au", "--preset"])
    refused(here, "edit", face, "--preset", "boredom", naming=["boredom", "happiness"])


def test_which_face(here, face, two):
    assert run("edit", face, "--au", "AU12=4", "--face", "1", *QUICK, "-o", "first.png").exit_code == 0
    assert run("edit", face, "--au", "AU12=4", *QUICK, "-o", "largest.png").exit_code == 0
    assert (here / "first.png").read_bytes() == (here / "largest.png").read_bytes()
    refused(here, "edit", face, "--au", "AU12=4", "--face", "2", "-o", "out.png", naming=["face.png", "only 1 found"])
    refused(here, "estimate", face, "--face", "3", naming=["face 3", "only 1 found"])
    refused(here, "transfer", face, face, "--target-face", "2", "-o", "out.png", naming=["face 2", "only 1 found"])
    places = {}
    for number in ("1", "2", "all"):
        said = succeeds("edit", two, "--au", "AU12=4", "--face", number, *QUICK, "-o", f"{number}.png")
        assert said.count("AU12") == 1 + (number == "all")
        places[number] = changed(two, f"{number}.png")
    assert places["1"][2] < 320 < places["2"][0]
    pictures = {number: np.asarray(Image.open(f"{number}.png")) for number in places}
    assert (pictures["all"][:, :320] == pictures["1"][:, :320]).all() and (pictures["all"][:, 320:] == pictures["2"][:, 320:]).all()
    assert "AU12 = 4" in Image.open("all.png").text["Description"]


def test_a_face_that_fails_is_reported_and_the_others_go_on(here, two, monkeypatch):
    from aueditnet.pipeline import Pipeline
    real = Pipeline.photo
    def fails_on(*numbers):
        def photo(self, image, face=None, *more):
            if face in numbers: raise InputError("two.png: the head is turned by about 50 degrees")
            return real(self, image, face, *more)
        monkeypatch.setattr(Pipeline, "photo", photo)
    fails_on(2)
    result = run("edit", two, "--au", "AU12=4", "--face", "all", *QUICK, "-o", "some.png")
    assert result.exit_code == 0 and changed(two, "some.png")[2] < 320
    assert result.stderr == "aueditnet: warning: face 2 is left as it is: two.png: the head is turned by about 50 degrees\n"
    fails_on(1, 2)
    refused(here, "edit", two, "--au", "AU12=4", "--face", "all", *QUICK, "-o", "out.png", naming=["face 1", "50 degrees"])


def test_doubtful_faces_need_force(here, face):
    small = Image.open(face).resize((160, 120))
    whole = Image.new("RGB", (320, 240), "grey")
    whole.paste(small, (80, 60))
    whole.save("small.png")
    words = "edit", "small.png", "--au", "AU12=4", *QUICK, "-o", "out.png"
    refused(here, *words, naming=["small.png", "pixels wide", "--force"])
    result = run(*words, "--force")
    assert result.exit_code == 0 and result.stderr.startswith("aueditnet: warning: ") and "pixels wide" in result.stderr


def test_a_bar_with_the_seconds_left(here, face, monkeypatch):
    """In a terminal only, and gone when it is done."""
    import io
    class Terminal(io.StringIO):
        def isatty(self): return True
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with faces.bar("learning the face") as progress:
            for attempt in range(2):
                for i in range(5): progress(i + 1, 5)
        said = stream.getvalue()
        assert ("s left" in said and "learning the face" in said and not said.split("\r")[-1].strip()) if stream.isatty() else said == ""


def test_an_interrupted_edit_leaves_nothing(here, face, monkeypatch):
    from aueditnet.files import io
    def interrupted(*names): raise KeyboardInterrupt
    monkeypatch.setattr(io.os, "replace", interrupted)
    before = snapshot(here)
    assert run("edit", face, "--au", "AU12=4", *QUICK, "-o", "out.png").exit_code != 0
    assert snapshot(here) == before


def test_no_face(here, tmp_path):
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(noise)
    refused(here, "edit", noise, "--au", "AU12=4", "-o", "out.png", naming=["no face", "noise.png"])
    refused(here, "estimate", noise, naming=["no face", "noise.png"])
    refused(here, "transfer", noise, noise, "-o", "out.png", naming=["no face", "noise.png"])


def test_not_a_picture(here, tmp_path, face):
    broken, half = tmp_path / "broken.png", tmp_path / "half.png"
    broken.write_bytes(b"not a picture at all")
    half.write_bytes(face.read_bytes()[: face.stat().st_size // 2])
    for file in (broken, half, tmp_path / "absent.png", tmp_path):
        refused(here, "edit", file, "--au", "AU12=4", "-o", "out.png", naming=file.name)


@pytest.mark.parametrize("request_, naming", [("AU3=2", "AU3"), ("AU12=big", "AU12=big"), ("AU12", "AU12"), ("AU12=1,AU12=2", "AU12"), ("AU12=nan", "AU12")])
def test_bad_request(here, face, request_, naming):
    refused(here, "edit", face, "--au", request_, "-o", "out.png", naming=naming)


def test_bad_output(here, face):
    refused(here, "edit", face, "--au", "AU12=4", "-o", "out.xyz", naming="out.xyz")
    refused(here, "edit", face, "--au", "AU12=4", "-o", "nowhere/out.png", naming="nowhere")
    refused(here, "demo", "-o", "nowhere/out.png", naming="nowhere")
    refused(here, "evaluate", "-o", "out.doc", naming="out.doc")
    refused(here, "evaluate", "--all", "-o", "out.csv", naming="out.csv")
    refused(here, "train", "-o", "out.png", naming="out.png")
    refused(here, "pretrain", "--stage", "nothing", naming="nothing")


def test_unknown_model(here, face):
    refused(here, "edit", face, "--au", "AU12=4", "--model", "heads999", "-o", "out.png", naming="heads999")


NEEDED = {"edit": ("a.png", "--au", "AU12=4"), "transfer": ("a.png", "b.png"), "estimate": ("a.png",), "invert": ("album",)}


@pytest.mark.parametrize("command", COMPUTING)
def test_checkpoints_are_not_models_and_words_not_devices(here, command):
    for file in ("e4e_ffhq_encode.pt", "run/E4E.safetensors"):
        refused(here, command, *NEEDED.get(command, ()), "--model", file, naming=[file, "aueditnet model import"])
    for device in ("gpu", "cuda:", "CPU", "cpu:1"):
        refused(here, command, *NEEDED.get(command, ()), "--device", device, naming=[f"--device {device}", "cuda"])


def test_bad_options_of_training(here):
    refused(here, "train-reader", naming=["heads128", "--model", "-o"])
    refused(here, "train", "--subjects", " , ", naming="SN001,SN002")
    for words in (["--model", "mine"], ["--fold", "P1"], ["--subjects", "SN001"]):
        refused(here, "train", "--install", *words, naming="--install")
        refused(here, "evaluate", "--all", *words, naming=["--all", words[0]])
    refused(here, "train", "--install", "--data", "disfa", naming=["--install", "--data"])
    (here / "wide.json").write_text('{"sizes": {"hidden": 97}}')
    refused(here, "train", "--install", "--config", "wide.json", naming=["wide.json", "sizes"])
    (here / "wide.json").unlink()
    refused(here, "train", "-o", str(weights.path_for("heads128-editor").parent), naming="holds a model; name another folder for the run")
    refused(here, "train", "--each-file", naming=["DISFA's layout", "each_file"])
    refused(here, "evaluate", "--quick", "--each-file", naming="--each-file")
    refused(here, "evaluate", "--quick", "--pairs", "3", naming="--pairs")
    refused(here, "evaluate", "--quick", "--device", "cuda", naming="--device")
    refused(here, "label", "photos", "--with", "e4e.pt", naming=["e4e.pt", "aueditnet model import"])
    refused(here, "label", "photos", "--with", "openface.csv", "-o", "labels.txt", naming="labels.txt")
    refused(here, "model", "show", "e4e.pt", naming=["e4e.pt", "aueditnet model import"])


@pytest.mark.parametrize("damage", [b"", b"not weights", None], ids=["empty", "text", "truncated"])
def test_unreadable_weights(here, face, tmp_path, monkeypatch, damage):
    folder = tmp_path / "data" / "weights"
    shutil.copytree(weights.data_dir() / "weights", folder)
    (tmp_path / "data" / "synthdisfa").symlink_to(DATA)
    file = folder / weights.path_for("heads128-editor").relative_to(weights.data_dir() / "weights")
    replace(file, file.read_bytes()[:1000] if damage is None else damage)
    for module in (weights, model_folder): monkeypatch.setattr(module, "data_dir", lambda: tmp_path / "data")
    refused(here, "edit", face, "--au", "AU12=4", "-o", "out.png", naming=file.name)


@pytest.mark.parametrize("command", ["evaluate", "train"])
class TestData:
    """A damaged data set, for each command that reads one."""

    def words(self, command, tree):
        return (command, "--data", tree, "-o", "out.json" if command == "evaluate" else "run")

    def test_no_folder(self, here, tmp_path, command):
        refused(here, *self.words(command, tmp_path / "nowhere"), naming="nowhere")

    def test_missing_subjects(self, here, tree, command):
        lost = ("SN003", "SN029") if command == "evaluate" else ("SN001", "SN032")
        for subject in lost:
            shutil.rmtree(tree / "ActionUnit_Labels" / subject)
        refused(here, *self.words(command, tree), "--subjects", ",".join(lost), naming=lost)

    def test_a_letter_in_a_label_file(self, here, tree, command):
        subject = "SN003" if command == "evaluate" else "SN001"
        file = next((tree / "ActionUnit_Labels" / subject).glob("*au12.txt"))
        lines = file.read_text().splitlines()
        replace(file, "\n".join([*lines[:6], "7,x", *lines[7:]]).encode())
        refused(here, *self.words(command, tree), naming=[file.name, "line 7", "7,x"])

    def test_truncated_video(self, here, tree, command):
        subject = "SN003" if command == "evaluate" else "SN001"
        file = next(f for f in tree.glob("Video*/*") if subject in f.name)
        content = file.read_bytes()
        replace(file, content[: len(content) // 2])
        refused(here, *self.words(command, tree), naming=file.name)


def test_intensities_far_outside_the_scale_are_warned_of(capsys):
    from aueditnet.commands.options import request
    assert request(["AU12=9"]) == {"AU12": 9} and "AU12 9: far outside the scale" in capsys.readouterr().err
    assert request(["AU12=-4"], relative=True) == {"AU12": -4} and capsys.readouterr().err == ""
