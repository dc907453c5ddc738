"""Sliders, sheets and strips: what a hand on a slider does, without a browser (tests/test_browser.py has one)."""
import io
import json
from datetime import datetime

import numpy as np
import pytest
from PIL import Image

from aueditnet.align import neutral_faces
from aueditnet.data import DISFA, TEST
from aueditnet.explore import Explorer, demo, encode_png, sheet, survey
from aueditnet.facs import AUS, PRESETS
from aueditnet.files.errors import InputError
from aueditnet.files.io import data_dir
from aueditnet.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained("heads128", 0)      # no refinement: quick


@pytest.fixture(scope="module")
def faces(pipe):
    return neutral_faces(DISFA(data_dir() / "synthdisfa", TEST), pipe.size, pipe.zoom)


@pytest.fixture
def explorer(pipe, faces):
    return Explorer(pipe, {name: faces[name] for name in TEST[:2]})


def shown(picture):
    return np.array(Image.open(io.BytesIO(picture.value)))


def close(a, b):
    """Sums in another order differ by less than a grey level; an edit changes more."""
    assert abs(np.int16(a) - b).mean() < 0.5


def upload(explorer, name, content):
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": datetime.now()}
    explorer.upload.value = (file,)


def test_png_is_lossless():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert (np.array(Image.open(io.BytesIO(encode_png(noise)))) == noise).all()


def test_starts_with_the_first_face(explorer, faces, pipe):
    assert list(explorer.face.options) == TEST[:2]
    assert (shown(explorer.before) == faces[TEST[0]]).all()
    close(shown(explorer.after), pipe.edit(faces[TEST[0]]).inversion)


def test_sliders_presets_and_reset_do_what_an_edit_does(explorer, faces, pipe):
    explorer.sliders["AU12"].value = 4
    close(shown(explorer.after), pipe.edit(faces[TEST[0]], {"AU12": 4}).image)
    assert abs(np.int16(shown(explorer.after)) - pipe.edit(faces[TEST[0]], {"AU12": 3}).image).mean() > 1
    explorer.presets["surprise"].click()
    close(shown(explorer.after), pipe.edit(faces[TEST[0]], PRESETS["surprise"]).image)
    explorer.reset.click()
    close(shown(explorer.after), pipe.edit(faces[TEST[0]]).inversion)


def test_show_inversion_hides_the_edit(explorer, faces, pipe):
    explorer.sliders["AU26"].value = 5
    edited = explorer.after.value
    explorer.compare.value = True
    close(shown(explorer.after), pipe.edit(faces[TEST[0]]).inversion)
    explorer.compare.value = False
    assert explorer.after.value == edited


def test_another_face(explorer, faces, pipe):
    explorer.face.value = TEST[1]
    assert (shown(explorer.before) == faces[TEST[1]]).all()
    close(shown(explorer.after), pipe.edit(faces[TEST[1]]).inversion)


def test_a_preset_draws_once(explorer):
    draws = []
    explorer.after.observe(lambda change: draws.append(1), "value")
    explorer.set(PRESETS["fear"])   # six sliders
    assert len(draws) == 1


def test_uploads(explorer, faces):
    upload(explorer, "me.png", encode_png(faces[TEST[2]]))
    assert explorer.face.value == "me.png" and list(explorer.face.options) == [*TEST[:2], "me.png"]
    assert (shown(explorer.before) == faces[TEST[2]]).all()
    upload(explorer, "<notes>.png", b"no picture")
    assert explorer.message.value == "<b>&lt;notes&gt;.png: not a picture, or of an unknown format</b>"
    assert explorer.face.value == "me.png" and (shown(explorer.before) == faces[TEST[2]]).all()


def test_another_upload_of_the_same_name_is_shown(explorer, faces):
    chosen = []
    choose, explorer.choose = explorer.choose, lambda name: (chosen.append(name), choose(name))
    for name in TEST[2:4]:
        upload(explorer, "me.png", encode_png(faces[name]))
        assert explorer.face.value == "me.png" and (shown(explorer.before) == faces[name]).all()
    assert list(explorer.face.options) == [*TEST[:2], "me.png"] and chosen == ["me.png"] * 2    # each is encoded once
    explorer.face.value = TEST[0]
    explorer.face.value = "me.png"
    assert (shown(explorer.before) == faces[TEST[3]]).all()


def test_sheet(pipe, faces):
    edits = survey(pipe, faces[TEST[0]], intensities=(0, 5), presets=["fear"])
    assert list(edits) == [*AUS, "fear"] and [len(row) for row in edits.values()] == [2] * 12 + [1]
    assert edits["AU12"][1].requested == {"AU12": 5.0} and edits["fear"][0].requested == PRESETS["fear"]
    drawn = sheet(edits, "title", "two\nlines")
    assert drawn.width > 700 and len(np.unique(np.array(drawn).reshape(-1, 3), axis=0)) > 1000


def test_demo_needs_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the folder nowhere does not exist"):
        demo("nowhere/sheet.png")


def test_demo_without_measuring_networks(pipe, tmp_path, capsys):
    """A model that has only what editing needs: dashes stand where nothing is measured."""
    pipe.save_pretrained(tmp_path / "bare")
    file = tmp_path / "bare" / "config.json"
    config = json.loads(file.read_text()) | {"refinement": 0}
    for name in ("evaluator", "evaluator_b", "identity_evaluator"):
        del config["parts"][name]
    file.write_text(json.dumps(config))
    edits = demo(tmp_path / "sheet.png", "SN003", tmp_path / "bare")
    printed = capsys.readouterr().out
    assert (tmp_path / "sheet.png").is_file() and edits["AU1"][0].measured == {} and np.isnan(edits["AU1"][0].identity)
    assert "measured -" in printed and "nan" not in printed and "inversion: identity" not in printed
