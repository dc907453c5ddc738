"""The command line and bad input: one line that names the thing, exit code 2, nothing written and nothing overwritten."""
import ast
import errno
import importlib
import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import NBS, child_env
from PIL import Image
from typer.testing import CliRunner

from aueditnet import cli
from aueditnet.cli import app
from aueditnet.facs import AUS
from aueditnet.files import weights
from aueditnet.files.errors import InputError

DATA = weights.data_dir() / "synthdisfa"
PREVIOUS = b"an earlier result"


QUICK = ("--refine", "0")       # the encoder alone: enough where the command is tested and not the picture


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
    assert result.exit_code == 2, (result.output, result.exception)
    said = result.stderr.rpartition("\r")[2]    # what remains on the line after a progress bar was wiped off it
    assert result.stderr.count("\n") == 1 and said.startswith("aueditnet: "), result.stderr
    for part in (naming,) if isinstance(naming, str) else naming:
        assert part in said
    assert "Traceback" not in result.stderr
    assert snapshot(here) == before
    return result


@pytest.fixture(scope="module")
def face(tmp_path_factory):
    """A bundled test subject's frame, as a camera sees it."""
    from aueditnet.data import DISFA
    file = tmp_path_factory.mktemp("face") / "face.png"
    Image.fromarray(DISFA(DATA, subjects=["SN003"]).frame("SN003", 0)).save(file)
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

COMMANDS = ["demo", "edit", "transfer", "estimate", "invert", "train", "evaluate", "ablate", "pretrain", "synthdisfa", "synthdisfa make", "weights",
            "weights list", "weights path", "weights fetch", "weights verify", "weights convert", "bench", "course", "course export", "lab"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0 and "Usage" in result.stdout and len(result.stdout.splitlines()) > 5


def test_every_command_has_its_help_tested():
    def names(group, before=""):
        for name, command in group.commands.items():
            yield before + name
            yield from names(command, f"{before}{name} ") if hasattr(command, "commands") else ()
    assert sorted(names(typer.main.get_command(app))) == sorted(COMMANDS)


def test_what_a_command_imports_is_there():
    """Commands import when they run; here every name is looked up that any of them would import or take from a module."""
    missing = []
    for function in (node for node in ast.walk(ast.parse(Path(cli.__file__).read_text())) if isinstance(node, ast.FunctionDef)):
        modules = {}
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    home = importlib.import_module("." * node.level + (node.module or ""), "aueditnet")
                    if not hasattr(home, alias.name) and importlib.util.find_spec(f"{home.__name__}.{alias.name}") is None:
                        missing.append(f"{function.name}: {home.__name__}.{alias.name}")
                    elif importlib.util.find_spec(f"{home.__name__}.{alias.name}") if hasattr(home, "__path__") else None:
                        modules[alias.name] = importlib.import_module(f"{home.__name__}.{alias.name}")
        missing += [f"{function.name}: {node.value.id}.{node.attr}" for node in ast.walk(function) if isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name) and node.value.id in modules and not hasattr(modules[node.value.id], node.attr)]
    assert missing == []


def test_stages_of_pretraining(monkeypatch):
    """`all` runs the stages in their order, a name runs one."""
    from aueditnet.pretraining import cards, export, recipes
    from aueditnet.synth import identities
    done = []
    monkeypatch.setattr(identities, "render_set", lambda name: done.append(name))
    monkeypatch.setattr(cards, "main", lambda: done.append("evaluators"))
    monkeypatch.setattr(recipes, "long_run", lambda folder: done.append(("joint", folder)))
    monkeypatch.setattr(export, "export", lambda folder: done.append(("export", folder)))
    assert run("pretrain", "--folder", "here").exit_code == 0
    assert done == [*identities.SETS, "evaluators", ("joint", Path("here")), ("export", Path("here"))]
    done.clear()
    assert run("pretrain", "--stage", "evaluators").exit_code == 0 and done == ["evaluators"]


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


def test_edit_writes_the_picture(here, face):
    result = run("edit", face, "--au", "AU12=4", "-o", "out.png")
    assert result.exit_code == 0, (result.output, result.exception)
    assert Image.open("out.png").size == (128, 128)
    assert re.search(r"AU12 +-?\d", result.stdout) and "out.png" in result.stdout
    assert sorted(f.name for f in here.iterdir()) == ["out.png"]


def test_relative_adds_to_the_face(here, face):
    assert run("edit", face, "--au", "AU26=0", "--relative", *QUICK, "-o", "same.png").exit_code == 0
    assert run("edit", face, "--au", "AU26=+4", "--relative", *QUICK, "-o", "more.png").exit_code == 0
    same, more = (np.asarray(Image.open(f), float) for f in ("same.png", "more.png"))
    assert np.abs(more - same).mean() > 0.5


def test_presets_are_their_action_units(here, face):
    from aueditnet.facs import PRESETS
    assert run("edit", face, "--preset", "happiness", *QUICK, "-o", "preset.png").exit_code == 0
    assert run("edit", face, "--au", ",".join(f"{au}={v}" for au, v in PRESETS["happiness"].items()), *QUICK, "-o", "numbers.png").exit_code == 0
    assert (here / "preset.png").read_bytes() == (here / "numbers.png").read_bytes()


def test_transfer_and_estimate(here, face):
    assert run("transfer", face, face, *QUICK, "-o", "transferred.png").exit_code == 0
    assert Image.open("transferred.png").size == (128, 128)
    lines = run("estimate", face, *QUICK).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(AUS)
    assert all(-3 < float(line.split()[1]) < 8 for line in lines)    # the scale is 0 to 5; the estimator has no bounds built in


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
    refused(here, "edit", face, "--au", "AU12=4", "--smooth", "1", "-o", "out.png", naming=["face.png", "--smooth"])
    refused(here, "edit", face, "--au", "AU12=4", "--paste", "--no-align", "-o", "out.png", naming=["--paste", "--no-align"])
    refused(here, "edit", face, naming=["--au", "--preset"])
    refused(here, "edit", face, "--preset", "boredom", naming=["boredom", "happiness"])


def test_which_face(here, face):
    assert run("edit", face, "--au", "AU12=4", "--face", "1", *QUICK, "-o", "first.png").exit_code == 0
    assert run("edit", face, "--au", "AU12=4", *QUICK, "-o", "largest.png").exit_code == 0
    assert (here / "first.png").read_bytes() == (here / "largest.png").read_bytes()
    refused(here, "edit", face, "--au", "AU12=4", "--face", "2", "-o", "out.png", naming=["face.png", "only 1 found"])
    refused(here, "estimate", face, "--face", "3", naming=["face 3", "only 1 found"])
    refused(here, "transfer", face, face, "--target-face", "2", "-o", "out.png", naming=["face 2", "only 1 found"])
    refused(here, "estimate", face, "--face", "1", "--no-align", naming="without alignment")


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


@pytest.mark.parametrize("damage", [b"", b"not weights", None], ids=["empty", "text", "truncated"])
def test_unreadable_weights(here, face, tmp_path, monkeypatch, damage):
    folder = tmp_path / "data" / "weights"
    shutil.copytree(weights.data_dir() / "weights", folder)
    (tmp_path / "data" / "synthdisfa").symlink_to(DATA)
    file = folder / "heads128-editor.safetensors"
    replace(file, file.read_bytes()[:1000] if damage is None else damage)
    monkeypatch.setattr(weights, "data_dir", lambda: tmp_path / "data")
    refused(here, "edit", face, "--au", "AU12=4", "-o", "out.png", naming="heads128-editor.safetensors")


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
        refused(here, *self.words(command, tree), naming=lost)

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
