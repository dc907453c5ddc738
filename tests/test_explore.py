"""Sliders, sheets and strips: what a hand on a slider does, without a browser (tests/test_browser.py has one)."""
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import cv2
import numpy as np
import pytest
from conftest import NBS
from PIL import Image

from aueditnet.align import neutral_faces
from aueditnet.commands.apps import page
from aueditnet.data import DISFA, TEST
from aueditnet.explore import Explorer, demo, sheet, survey
from aueditnet.facs import AUS, PRESETS
from aueditnet.files.errors import InputError
from aueditnet.files.io import data_dir
from aueditnet.photographs.controls import PictureInput, encode_jpeg, encode_png
from aueditnet.photographs.previews import CropEdits, Work
from aueditnet.pipeline import Pipeline

ASTRONAUT = (NBS / "images" / "astronaut.jpg").read_bytes()


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained("heads128", 0)      # no refinement: quick


@pytest.fixture(scope="module")
def faces(pipe):
    return neutral_faces(DISFA(data_dir() / "synthdisfa", TEST), pipe.size, pipe.zoom)


@pytest.fixture
def explorer(pipe, faces):
    return Explorer(pipe, {name: faces[name] for name in TEST[:2]}, steps=2)


@pytest.fixture
def own(explorer):
    """An explorer that shows an uploaded photograph."""
    upload(explorer, "me.jpg", ASTRONAUT)
    return explorer


def pixels(content):
    return np.array(Image.open(io.BytesIO(content)))


def shown(explorer):
    return pixels(explorer.after.value)


def close(a, b, grey=0.5):
    """Sums in another order differ by less than a grey level; an edit changes more."""
    assert abs(np.int16(a) - b).mean() < grey


def upload(explorer, name, content):
    """A file as the browser sends it, in parts."""
    for at in range(0, max(len(content), 1), 10_000):
        explorer.upload.receive({"kind": "part", "name": name, "at": at, "size": len(content)}, [memoryview(content)[at:at + 10_000]])
    explorer.wait()


def flipped():
    return encode_png(pixels(ASTRONAUT)[:, ::-1])


def locked(explorer):
    """Whether no slider can be moved; all are locked, or none."""
    (state,) = {control.disabled for control in (*explorer.sliders.values(), *explorer.presets.values(), explorer.save)}
    return state


def test_png_is_lossless():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert (pixels(encode_png(noise)) == noise).all()
    close(pixels(encode_jpeg(cv2.GaussianBlur(noise, (0, 0), 9))), cv2.GaussianBlur(noise, (0, 0), 9), 2)


def test_starts_with_the_first_face(explorer, faces, pipe):
    assert list(explorer.face.options) == TEST[:2] and not locked(explorer)
    close(shown(explorer), pipe.edit(faces[TEST[0]]).inversion)


def test_sliders_presets_and_reset_do_what_an_edit_does(explorer, faces, pipe):
    explorer.sliders["AU12"].value = 4
    close(shown(explorer), pipe.edit(faces[TEST[0]], {"AU12": 4}).image)
    assert abs(np.int16(shown(explorer)) - pipe.edit(faces[TEST[0]], {"AU12": 3}).image).mean() > 1
    assert explorer.readings.value.startswith("measured by a network: AU12 <b>")
    explorer.presets["surprise"].click()
    assert explorer.request == PRESETS["surprise"]
    close(shown(explorer), pipe.edit(faces[TEST[0]], PRESETS["surprise"]).image)
    explorer.reset.click()
    close(shown(explorer), pipe.edit(faces[TEST[0]]).inversion)


def test_show_original_hides_the_edit(explorer, faces):
    explorer.sliders["AU26"].value = 5
    edited = explorer.after.value
    explorer.compare.value = True
    assert (shown(explorer) == faces[TEST[0]]).all()
    explorer.compare.value = False
    assert explorer.after.value == edited


def test_another_face(explorer, faces, pipe):
    explorer.face.value = TEST[1]
    close(shown(explorer), pipe.edit(faces[TEST[1]]).inversion)


def test_a_preset_draws_once(explorer):
    draws = []
    explorer.after.observe(lambda change: draws.append(1), "value")
    explorer.set(PRESETS["fear"])   # six sliders
    assert len(draws) == 1


def test_a_crop_is_added_and_replaced(explorer, faces, pipe):
    for name in TEST[2:4]:
        explorer.add("me", faces[name])
        assert explorer.face.value == "me" and list(explorer.face.options) == [*TEST[:2], "me"]
        close(shown(explorer), pipe.edit(faces[name]).inversion)


def test_a_grey_crop_stays_grey(pipe, faces):
    grey = cv2.cvtColor(cv2.cvtColor(faces[TEST[0]], cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    drawn = CropEdits(pipe, grey).draw({"AU12": 4})
    assert (drawn == drawn[..., :1]).all() and abs(np.int16(drawn) - grey).max() > 20


def test_the_generator_is_fitted_to_a_crop(explorer, faces):
    explorer.steps = 20
    before = shown(explorer)
    explorer.fit.value = True
    explorer.wait()
    assert abs(np.int16(shown(explorer)) - faces[TEST[0]]).mean() < 0.7 * abs(np.int16(before) - faces[TEST[0]]).mean()
    explorer.sliders["AU12"].value = 4
    assert abs(np.int16(shown(explorer)) - faces[TEST[0]]).mean() > 1
    explorer.fit.value = False
    assert (shown(explorer) == before).all()
    thread = explorer.work.thread
    explorer.fit.value = True       # is known
    assert explorer.work.thread is thread and not locked(explorer)


def test_a_fit_that_fails_is_said(explorer, monkeypatch):
    monkeypatch.setattr("aueditnet.photographs.tuning.HIGH_LOSS", 0.)
    explorer.fit.value = True
    explorer.wait()
    assert explorer.warnings.value.startswith("Warning: ") and "does not fit" in explorer.warnings.value and not locked(explorer)


def test_a_photograph(own):
    assert own.face.value == "me.jpg" and list(own.face.options) == [*TEST[:2], "me.jpg"] and not locked(own)
    assert own.number.layout.display == own.fit.layout.display == own.bar.layout.display == "none"
    before = shown(own)
    close(before, pixels(ASTRONAUT), 2)
    assert own.request == {} and own.message.value == "" and own.warnings.value.startswith("Warning: ")     # two steps of tuning: the warning is shown
    own.sliders["AU15"].value = 5
    changed = abs(np.int16(shown(own)) - before).max(-1) > 25
    y, x = np.nonzero(changed)
    assert changed.sum() > 20 and 0 < x.min() and 180 <= x.mean() <= 290 and y.max() < 220, "the face, and nothing else"
    own.compare.value = True
    assert (shown(own) == before).all()
    own.compare.value = False
    own.zoom.value = True
    assert shown(own).shape[0] == 600


def test_a_download_is_the_photograph_of_full_size_with_a_note(own, monkeypatch, tmp_path):
    sent = []
    monkeypatch.setattr(own.upload, "send", lambda message, buffers: sent.append((message, buffers)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    own.zoom.value = True
    own.sliders["AU15"].value = 5
    own.save.click()
    (message, (content,)), = sent
    assert message == {"name": "me-edited.jpg", "type": "image/jpeg"}
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (512, 512) and "AU15" in picture.getexif()[270]
    assert list(tmp_path.iterdir()) == []
    own.reset.click()
    own.save.click()
    assert bytes(sent[1][1][0]) == ASTRONAUT, "nothing is requested: the file itself"
    upload(own, "<i>.gif", flipped())
    own.save.click()
    assert sent[2][0] == {"name": "<i>-edited.png", "type": "image/png"}


def test_nothing_of_a_photograph_stays_on_the_disk(pipe, faces, monkeypatch, tmp_path):
    monkeypatch.setattr("aueditnet.photographs.tuning.cache_dir", lambda: tmp_path)
    explorer = Explorer(pipe, {"SN003": faces["SN003"]}, steps=1, keep=False)
    upload(explorer, "me.jpg", ASTRONAUT)
    assert explorer.edits is not None and explorer.face.value == "me.jpg" and list(tmp_path.rglob("*")) == []


def test_another_upload_of_the_same_name_is_shown(own):
    own.sliders["AU15"].value = 5
    upload(own, "me.jpg", flipped())
    close(shown(own), pixels(ASTRONAUT)[:, ::-1], 2)
    assert own.request == {} and list(own.face.options) == [*TEST[:2], "me.jpg"]
    own.face.value = TEST[0]
    thread = own.work.thread
    own.face.value = "me.jpg"       # is known, and not the first one
    assert own.work.thread is thread
    close(shown(own), pixels(ASTRONAUT)[:, ::-1], 2)


def test_what_is_no_photograph_of_a_face_is_said_and_changes_nothing(own):
    before = own.after.value
    grey = encode_png(np.full((200, 200, 3), 128, np.uint8))
    for name, content, words in (("<notes>.png", b"no picture", "&lt;notes&gt;.png: not a picture"), ("empty.png", b"", "empty.png: not"),
                                 ("grey.png", grey, "no face found in grey.png"), ("cut.jpg", ASTRONAUT[:9000], "cut.jpg: ")):
        upload(own, name, content)
        assert words in own.message.value and "Traceback" not in own.message.value, own.message.value
        assert own.face.value == "me.jpg" and own.after.value == before and not locked(own)


def test_a_choice_of_several_faces(explorer):
    astronaut = pixels(ASTRONAUT)
    seen = []
    explorer.after.observe(lambda change: seen.append(pixels(change.new)), "value")
    small = np.pad(cv2.resize(astronaut, (400, 400)), ((112, 0), (0, 0), (0, 0)))
    upload(explorer, "two.png", encode_png(np.concatenate([astronaut, small], 1)))
    assert explorer.number.options == (("face 1", 1), ("face 2", 2)) and explorer.number.layout.display == ""
    assert (seen[0] == 255).all(-1).sum() > (seen[-1] == 255).all(-1).sum(), "numbers are drawn while the face is prepared"
    places = []
    for number in (1, 2, 1):
        explorer.number.value = number
        explorer.wait()
        before = shown(explorer)
        explorer.sliders["AU26"].value = 5
        places.append(np.nonzero(abs(np.int16(shown(explorer)) - before).max(-1) > 25)[1].mean())
    assert places[0] == places[2] < 512 < places[1]
    explorer.face.value = TEST[0]
    assert explorer.number.layout.display == "none"


def test_a_newer_choice_stops_the_work_for_an_older_one(explorer, pipe, faces, monkeypatch):
    started, late = threading.Event(), []
    def slow(image, face, force, steps, progress, **more):
        for step in range(1000):
            progress(step, 1000)
            started.set()
            threading.Event().wait(0.01)
        late.append("done")
    monkeypatch.setattr(pipe, "photo", slow, raising=False)
    explorer.receive("me.jpg", ASTRONAUT)
    assert started.wait(30)
    assert locked(explorer) and explorer.bar.layout.display == "" and explorer.face.value == "me.jpg"
    explorer.sliders["AU12"].value = 3          # a message that was on its way: nothing to edit yet
    close(shown(explorer), pixels(ASTRONAUT), 2)
    older = explorer.work.thread
    explorer.face.value = TEST[1]
    older.join(5)
    assert not older.is_alive() and late == [] and explorer.bar.layout.display == "none" and not locked(explorer)
    close(shown(explorer), pipe.edit(faces[TEST[1]]).inversion)


def test_a_slider_that_moves_while_another_face_comes(explorer, faces):
    """A thread takes the face away between the move and its picture."""
    with ThreadPoolExecutor(1) as hand:
        with explorer.work.lock:
            move = hand.submit(setattr, explorer.sliders["AU4"], "value", 3.0)
            assert wait([move], timeout=0.3).not_done
            explorer._pause(faces[TEST[1]])
        move.result()      # raises what the move raised
    assert explorer.edits is None and "AttributeError" not in explorer.message.value


def test_a_useless_upload_does_not_end_the_work_on_the_photograph_before(explorer):
    explorer.steps, seen = 2000, threading.Event()
    explorer.face.observe(lambda change: seen.set(), "value")
    explorer.receive("me.jpg", ASTRONAUT)
    assert seen.wait(30)
    with explorer.work.lock:
        assert explorer.edits is None     # it is being prepared
    explorer.steps = 2
    upload(explorer, "notes.png", b"no picture")
    assert "notes.png: not a picture" in explorer.message.value
    assert explorer.face.value == "me.jpg" and not locked(explorer) and explorer.bar.layout.display == "none"


def test_the_first_face_may_be_a_photograph(pipe):
    for picture, words in ((Image.open(io.BytesIO(ASTRONAUT)), ""), (np.full((200, 200, 3), 128, np.uint8), "no face found in me")):
        explorer = Explorer(pipe, {"me": picture}, steps=1)
        explorer.set({"AU12": 4})       # not yet
        explorer.wait()
        assert words in explorer.message.value and (explorer.edits is None) == bool(words) == locked(explorer)


def test_a_fault_is_said_in_words(explorer, pipe, monkeypatch, capsys):
    for fault, words in ((InputError("the head is turned"), "<b>the head is turned</b>"), (MemoryError(), "memory"),
                         (RuntimeError("<odd>"), "RuntimeError: &lt;odd&gt;")):
        def fail(*args, **more): raise fault
        monkeypatch.setattr(pipe, "photo", fail, raising=False)
        upload(explorer, "me.jpg", ASTRONAUT)
        assert words in explorer.message.value and "Traceback" not in explorer.message.value
        assert locked(explorer) and explorer.bar.layout.display == "none"      # the photograph is shown, and cannot be edited
    assert "RuntimeError" in capsys.readouterr().err                        # for the log of the server
    explorer.face.value = TEST[0]
    assert not locked(explorer)


@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), cv2.error("Insufficient memory")], ids=lambda fault: type(fault).__name__)
def test_a_slider_or_a_download_that_lacks_memory_says_so(explorer, monkeypatch, fault):
    def fails(*_): raise fault
    monkeypatch.setattr(explorer.edits, "draw", fails)
    explorer.sliders["AU12"].value = 4
    assert "the memory is not enough" in explorer.message.value
    explorer.message.value = ""
    monkeypatch.setattr(explorer.edits, "full", fails)
    explorer.save.click()
    assert "no download: the memory is not enough" in explorer.message.value


def test_old_uploads_and_prepared_faces_go(explorer, faces):
    for i in range(7):
        explorer.add(f"own {i}", faces[TEST[i]])
    assert list(explorer.face.options) == [*TEST[:2], *(f"own {i}" for i in range(2, 7))] and len(explorer._prepared) == 3
    explorer.add("own 2", faces[TEST[0]])       # replaced: the newest now
    explorer.add("own 7", faces[TEST[7]])
    assert list(explorer.face.options) == [*TEST[:2], "own 2", *(f"own {i}" for i in range(4, 8))]


def test_uploads_are_limited():
    taken = []
    box = PictureInput(lambda name, content: taken.append(name), limit=100)
    box.receive({"kind": "part", "name": "large", "at": 0, "size": 101}, [bytes(101)])
    box.receive({"kind": "part", "name": "a", "at": 0, "size": 100}, [bytes(50)])
    box.receive({"kind": "part", "name": "b", "at": 0, "size": 60}, [bytes(60)])     # replaces it
    box.receive({"kind": "part", "name": "a", "at": 50, "size": 100}, [bytes(50)])
    box.receive({"kind": "other"}, [])
    assert taken == ["b"]


def test_progress_says_how_long():
    texts = []
    work = Work(lambda text, share: texts.append(text))
    def task(progress):
        progress(0, 2, "x")
        threading.Event().wait(0.2)
        progress(1, 2, "x")
        progress(2, 2, "x")
    work.start(task, lambda result: None, None)
    work.thread.join()
    assert texts == ["x", "x: 0 s left", "x: 0 s left", ""]


def test_page(tmp_path):
    assert "nowhere" in page(str(tmp_path / "nowhere")).value and isinstance(page(), Explorer)


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
