"""Photographs: what is edited and where, what stays as it is, what is refused, and what is kept."""
import json

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, complaint
from PIL import Image

from aueditnet.align import align_face, find_faces
from aueditnet.data import DISFA
from aueditnet.facs import AUS
from aueditnet.files.errors import InputError
from aueditnet.files.io import data_dir, read_image
from aueditnet.photo import Photo
from aueditnet.photographs import crops, checks, tuning
from aueditnet.photographs.warping import acting_area, compose, face_mask, motion, put_back, warp
from aueditnet.pipeline import Pipeline

ASTRONAUT = ROOT / "nbs" / "images" / "astronaut.jpg"


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained("heads128")


@pytest.fixture(scope="module")
def photo(pipe, home):
    return pipe.photo(ASTRONAUT)


@pytest.fixture(scope="module")
def quick(pipe, home):
    """Five steps, where quality does not matter: the tuning has failed, so it has to be forced."""
    return pipe.photo(ASTRONAUT, steps=5, force=True)


def inside(photo):
    """The pixels that an edit may change: the mask, enlarged by one pixel of the crop for the interpolation."""
    across, down = (photo.quad[3] - photo.quad[0]) / len(photo.mask), (photo.quad[1] - photo.quad[0]) / len(photo.mask)
    place = np.column_stack([across, down, photo.quad[0] + (across + down) / 2])
    used = cv2.dilate(np.float32(photo.mask > 0), np.ones((3, 3)))
    return cv2.warpAffine(used, place, photo.rgb.shape[1::-1]) > 0


# ---- edits

def test_outside_the_mask_the_photograph_stays(photo):
    edit = photo.edit({"AU12": 0, "AU26": 5, "AU4": 4})
    changed = (edit.rgb != photo.rgb).any(-1)
    assert changed.sum() > 2000 and not (changed & ~inside(photo)).any()
    assert edit.rgb.shape == photo.rgb.shape and edit.rgb.dtype == np.uint8 and edit.face.shape == (128, 128, 3)
    y, x = np.nonzero(changed)
    assert 150 < x.min() and x.max() < 290 and 50 < y.min() and y.max() < 200    # the face; the badge is none


def test_nothing_asked_is_the_photograph_itself(photo, tmp_path):
    """Not the inversion: the same pixels, and the same bytes in a file of the same kind."""
    own = {au: photo.source[au] for au in AUS}
    for edit in (photo.edit(), photo.edit({}), photo.edit(own), photo.edit({"AU12": own["AU12"]}), photo.edit(relative={"AU4": 0}),
                 photo.transfer(photo)):
        assert edit.unchanged and (edit.rgb == photo.rgb).all() and (edit.face == photo.crop).all()
        assert np.array_equal(np.asarray(edit.image), np.asarray(Image.open(ASTRONAUT).convert("RGB"))) and edit.identity > 0.9999
    photo.edit().save(tmp_path / "same.jpg")
    assert (tmp_path / "same.jpg").read_bytes() == ASTRONAUT.read_bytes()


def test_a_saved_edit_says_so(photo, tmp_path):
    photo.edit({"AU12": 0}).save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert any("Edited" in str(text) and "AU12" in str(text) for text in picture.info.values())
        assert (np.asarray(picture) == photo.edit({"AU12": 0}).rgb).all()


def test_the_face_moves_as_requested(photo):
    """dlib, which has seen photographs, confirms the movement."""
    def seen(edit):
        points = find_faces(edit.rgb)[0].landmarks / photo.side
        return (points[66, 1] - points[62, 1], points[36:48, 1].mean() - points[17:27, 1].mean(), points[[51, 57], 1].mean() - points[[48, 54], 1].mean())
    lips, brows, corners = seen(photo.edit())
    assert seen(photo.edit({"AU26": 5, "AU25": 4}))[0] > 1.2 * lips
    assert seen(photo.edit({"AU1": 5, "AU2": 5}))[1] > 1.1 * brows
    assert seen(photo.edit({"AU4": 5}))[1] < 0.95 * brows
    assert seen(photo.edit({"AU15": 5}))[2] < corners > seen(photo.edit({"AU12": 0, "AU6": 0, "AU25": 0}))[2]
    edit = photo.edit({"AU26": 5})
    assert edit.measured["AU26"] > photo.edit().measured["AU26"] + 0.5 and 0.85 < edit.identity < 1


def test_requests(quick):
    edit = quick.edit(relative={"AU12": 1})
    assert edit.requested == {"AU12": pytest.approx(quick.source["AU12"] + 1, abs=1e-5)}
    assert (edit.rgb == quick.edit(edit.requested).rgb).all() and "AU12" in repr(edit) and len(edit._repr_png_()) > 1000
    assert "both absolutely and relatively" in complaint(lambda: quick.edit({"AU12": 4}, {"AU12": 1}))
    assert "AU3" in complaint(lambda: quick.edit({"AU3": 4}))
    assert "dict" in complaint(lambda: quick.edit("AU12=4"))


def test_upper_and_lower_face_do_not_disturb_each_other(quick):
    eyes, mouth = quick.landmarks[36:48, 1].max(), quick.landmarks[48:68, 1].min()
    rows = np.nonzero((quick.edit({"AU1": 5, "AU4": 5}).rgb != quick.rgb).any((1, 2)))[0]
    assert len(rows) and rows.max() < mouth
    rows = np.nonzero((quick.edit({"AU25": 5, "AU12": 0}).rgb != quick.rgb).any((1, 2)))[0]
    assert len(rows) and rows.min() > eyes - 2
    assert (acting_area(["AU12", "AU1"], 128) == 1).all() and (acting_area(["AU6"], 128) == 1).all()


def test_transfer(quick, pipe):
    frames = DISFA(data_dir() / "synthdisfa", ["SN017"])
    other = align_face(frames.frame("SN017", 60), frames.landmarks("SN017")[60], 300, 0.8)
    edit = quick.transfer(other)
    assert list(edit.requested) == list(AUS) and not edit.unchanged
    assert "no face found" in complaint(lambda: quick.transfer(np.zeros((200, 200, 3), np.uint8)))


def test_previews_are_small_and_agree(quick):
    edit = quick.edit({"AU26": 5})
    small = edit.preview(256)
    assert small.shape == (256, 256, 3) and edit.preview(4000).shape == quick.rgb.shape
    assert abs(np.float32(small) - cv2.resize(edit.rgb, (256, 256), interpolation=cv2.INTER_AREA)).mean() < 1


@pytest.mark.parametrize("kind", ("rgb", "grey", "grey16", "alpha", "rgb16", "pil"))
def test_modes(quick, pipe, kind):
    """What comes in goes out: size, channels, depth."""
    rgb = quick.rgb
    given = {"rgb": rgb, "grey": cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), "pil": Image.fromarray(rgb),
             "grey16": np.uint16(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)) * 257 + 3, "rgb16": np.uint16(rgb) * 257 + 3,
             "alpha": np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])}[kind]
    photo = pipe.photo(given, steps=2, force=True)
    result = photo.edit({"AU26": 5}).image
    assert isinstance(result, Image.Image) if kind == "pil" else (result.shape, result.dtype) == (given.shape, given.dtype)
    same = np.asarray(result) == np.asarray(given)
    assert not same.all() and same[~inside(photo)].all()
    assert np.array_equal(np.asarray(photo.edit().image), np.asarray(given))


# ---- the warp

def test_a_face_outside_the_picture_or_without_change(quick):
    picture, half = quick.rgb, len(quick.mask)
    inversion = quick.tuned.inversion()
    assert (put_back(picture, inversion, inversion[:, ::-1].copy(), quick.quad + 5000, quick.mask) == picture).all()
    assert (put_back(picture, inversion, inversion[:, ::-1].copy(), quick.quad, np.zeros((half, half), np.float32)) == picture).all()
    still = put_back(picture, inversion, inversion, quick.quad, quick.mask)
    assert abs(np.int16(still) - picture).max() <= 2 and (still == picture).mean() > 0.99


@pytest.mark.parametrize("move", [(-170, 0), (180, 0), (0, -100), (0, 380)])    # the crop leaves the picture on each side
def test_faces_at_the_border(quick, move):
    moved = put_back(quick.rgb, quick.tuned.inversion(), quick.edit({"AU26": 5}).drawn, quick.quad + np.float64(move), quick.mask)
    assert moved.shape == quick.rgb.shape and (moved != quick.rgb).any()


def test_the_warp_follows_a_known_movement():
    """A texture that is moved by three pixels is moved by as much at four times the size."""
    random = np.random.default_rng(0)
    small = cv2.resize(random.integers(0, 256, (32, 32, 3), np.uint8), (128, 128), interpolation=cv2.INTER_CUBIC)
    shifted, large = np.roll(small, 3, 1), cv2.resize(small, (512, 512), interpolation=cv2.INTER_CUBIC)
    move = motion(small, shifted)
    assert abs(np.median(move.flow[32:96, 32:96, 0]) + 3) < 0.3 and abs(np.median(move.flow[32:96, 32:96, 1])) < 0.3
    assert abs(np.float32(compose(large, small, shifted)) - np.roll(large, 12, 1))[128:384, 128:384].mean() < 6
    assert (warp(small, np.zeros((128, 128, 2), np.float32)) == small).all()
    assert "square" in complaint(lambda: compose(large[:500], small, shifted))


def test_mask(quick):
    mask = face_mask(quick.landmarks, quick.quad, 128)
    assert mask.shape == (128, 128) and mask.dtype == np.float32 and mask.min() == 0 and mask.max() == 1
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert (border == 0).all() and np.abs(np.diff(mask, axis=0)).max() < 0.25 and 0.2 < (mask > 0).mean() < 0.7


# ---- tuning

def test_the_model_and_the_random_numbers_are_left_alone(pipe, quick):
    before = {k: v.clone() for k, v in pipe.inverter.generator.state_dict().items()}
    torch.manual_seed(1)
    state, numpy_state, threads = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one, two = (tuning.tune(pipe, quick.crop, steps=3) for _ in range(2))
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    assert all(torch.equal(v, before[k]) for k, v in pipe.inverter.generator.state_dict().items())
    assert not any(p.requires_grad for p in one.generator.parameters()) and (one.inversion() == two.inversion()).all()
    assert (one.inversion() != pipe.synthesize(one.w)[0]).any()


def test_several_crops_of_one_person(pipe, quick):
    steps = []
    crops = np.stack([quick.crop, quick.crop[:, ::-1]])
    tuned = tuning.tune(pipe, crops, steps=3, progress=lambda *done: steps.append(done), source=np.zeros((2, 12)))
    assert steps == [(1, 3), (2, 3), (3, 3)] and tuned.w.shape == (2, 12, 160) and tuned.source.shape == (2, 12)
    target = torch.full((3, 12), torch.nan)
    target[:, 0] = torch.tensor([0., 2., 4.])
    codes = tuned.edit(target, 1)
    assert codes.shape == (3, 12, 160) and torch.allclose(codes[0], tuned.w[1], atol=1e-5)
    assert tuned.synthesize(codes).shape == (3, 128, 128, 3)


def test_calibration_of_requests():
    """Nothing asked stays nothing, the target never falls with the request; where no source is known it is left alone."""
    one = torch.ones(1, 12)
    nan = torch.full((1, 12), torch.nan)
    assert torch.equal(tuning.calibrated(one, one), one)
    assert torch.equal(tuning.calibrated(3 * one, nan), 3 * one) and tuning.calibrated(nan, one).isnan().all()
    for source in (0., 2., 4.9, 5.5):
        moved = torch.cat([tuning.calibrated(v * one, source * one) for v in (-1, 0, 1, 2, 3, 5, 6)])
        assert (moved.diff(dim=0) >= 0).all() and (moved[0] == -1).all()
        assert (moved[1, AUS.index("AU4")] == 0) and (moved[1] >= tuning.LOWEST).all()


def test_an_edit_without_a_request_keeps_the_pivot(pipe, quick):
    source = torch.full((1, 12), 2.)
    tuned = tuning.tune(pipe, quick.crop, steps=0, source=source)
    assert torch.allclose(tuned.w, tuning.photo_editor(pipe).edit(tuning.pivot(pipe, quick.crop), source))
    assert torch.allclose(tuned.edit(torch.full((12,), torch.nan)), tuned.w, atol=1e-5)
    assert torch.allclose(tuned.edit(source[0]), tuned.w, atol=1e-4)


def test_a_crop_with_a_tuned_generator(pipe, quick):
    """The parts that know a person take the model's places: the own inverter and editor stay, and edits go further."""
    own, tuned = crops.tune_crop(pipe, quick.crop, steps=0)
    assert own.inverter is not pipe.inverter and own.editor.editor is pipe.editor
    assert tuned.editor.response is None   # photographs do without the gain, crops of frames use it
    w = own.invert(quick.crop[None])
    assert torch.allclose(w, tuned.w, atol=1e-4)
    request = torch.where(torch.arange(12) == AUS.index("AU4"), 4., torch.nan)
    away, further = pipe.edit_codes(w, request) - w, own.edit_codes(w, request) - w
    assert torch.allclose(further, crops.GAIN * away, atol=1e-4) and away.abs().max() > 0.1
    assert own.edit(quick.crop, {"AU12": 4}, align=False).requested == {"AU12": 4.0}


def test_colours_stay_those_of_the_face(quick):
    """Purple lips take the face's colours, grey teeth may appear, and a face in its own colours hardly changes."""
    limits = tuning.chroma_range(quick.crop[None])
    middle = quick.crop[32:96, 48:80]
    same = tuning.within_chroma(middle.copy(), limits)
    assert (same == middle).mean() > 0.95 and np.abs(np.int16(same) - middle).mean() < 0.1
    painted = quick.crop.copy()
    painted[90:100, 50:78], painted[100:104, 50:78] = (90, 0, 160), 200
    limited = tuning.within_chroma(painted, limits)
    assert limited[95, 64, 2] < 120 and (limited[102, 64] == 200).all()


def test_cache(pipe, quick, monkeypatch, tmp_path):
    """A second command needs no second tuning; a broken file is made again; the oldest go."""
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(tuning, "tune", lambda *a, real=tuning.tune, **how: calls.append(1) or real(*a, **how))
    first = tuning.tuned_face(pipe, quick.crop[None], 2)
    again = tuning.tuned_face(pipe, quick.crop[None], 2)
    assert len(calls) == 1 and (first.inversion() == again.inversion()).all() and first.loss == again.loss
    assert again.reason == first.reason
    file, = (tmp_path / "photos").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    assert (tuning.tuned_face(pipe, quick.crop[None], 2).inversion() == first.inversion()).all() and len(calls) == 2
    monkeypatch.setattr(tuning, "KEPT", 2)
    for steps in (0, 1, 3): tuning.tuned_face(pipe, quick.crop[None], steps)
    assert len(list((tmp_path / "photos").iterdir())) == 2
    (tmp_path / "other").write_text("a file where the folder should be")
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "other" / "x"))
    with pytest.raises(InputError, match="AUEDITNET_HOME"): tuning.tuned_face(pipe, quick.crop[None], 1)


def test_pixel_editors_have_no_generator(pipe, quick):
    from aueditnet.pipeline import Pixels
    assert "generator" in complaint(lambda: pipe.with_parts(inverter=Pixels()).photo(ASTRONAUT))


# ---- storing

@pytest.mark.parametrize("kind", ("path", "array", "pil"))
def test_save_and_load(quick, pipe, tmp_path, kind):
    given = {"path": ASTRONAUT, "array": np.uint16(quick.rgb) * 257, "pil": Image.fromarray(quick.rgb)}[kind]
    photo = pipe.photo(given, steps=5, force=True)
    photo.save(tmp_path / "me")
    assert not [f for f in (tmp_path / "me").iterdir() if f.suffix in (".pkl", ".pt")]
    again = Photo.load(tmp_path / "me", pipe)
    one, two = (p.edit({"AU26": 5, "AU4": 2}) for p in (photo, again))
    assert np.array_equal(np.asarray(one.image), np.asarray(two.image)) and again.source == photo.source
    assert again.warnings == photo.warnings and again.spread.keys() == photo.spread.keys() and again.reader == photo.reader


def test_unusable_folders(quick, pipe, tmp_path):
    assert "no photo.json" in complaint(lambda: Photo.load(tmp_path / "none", pipe))
    quick.save(tmp_path / "a")
    text = (tmp_path / "a" / "photo.json").read_text()
    for broken in ("{", "[]", "{}", text.replace('"landmarks": [', '"landmarks": [1, '), text.replace('"format": 1', '"format": 2')):
        (tmp_path / "a" / "photo.json").write_text(broken)
        assert "photo.json" in complaint(lambda: Photo.load(tmp_path / "a", pipe))
    about = json.loads(text) | {"picture": "../../secret.png"}
    (tmp_path / "a" / "photo.json").write_text(json.dumps(about))
    assert str(tmp_path / "a" / "secret.png") in complaint(lambda: Photo.load(tmp_path / "a", pipe))    # never above the folder
    (tmp_path / "a" / "photo.json").write_text(text)
    (tmp_path / "a" / "face.safetensors").write_bytes(b"no face")
    assert "face.safetensors" in complaint(lambda: Photo.load(tmp_path / "a", pipe))
    (tmp_path / "file").write_text("")
    assert "file" in complaint(lambda: quick.save(tmp_path / "file"))


# ---- what is refused

@pytest.mark.parametrize("face", (0, -1, True, 1.0, "1"))
def test_faces_are_numbered_from_one(face):
    with pytest.raises(InputError, match=r"faces are numbered 1, 2, \.\.\."):
        Photo.open(None, ASTRONAUT, face=face)


def test_unusable_pictures(pipe, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)).save(tmp_path / "noise.png")
    assert "no face found in" in complaint(lambda: pipe.photo(tmp_path / "noise.png"))
    assert "none.png: no such file" in complaint(lambda: pipe.photo(tmp_path / "none.png"))
    assert "only 1 found" in complaint(lambda: pipe.photo(ASTRONAUT, face=2))


@pytest.fixture(scope="module")
def rendered():
    """A synthetic person whose head is turned: (degrees of yaw) -> picture."""
    from aueditnet.synth.person import Person
    from aueditnet.synth.render import Camera, Scene, render
    person = Person.from_seed(6001)
    return lambda yaw, **scene: render(person, {"AU12": 2}, Scene(yaw=yaw, **scene), Camera.centred(384, 3.6))


@pytest.mark.parametrize("yaw", (-45, -30, -15, 0, 15, 30, 45))
def test_head_pose(rendered, yaw):
    """The head's centre moves as it turns, so that the line of sight adds about a twelfth."""
    found, pitch = checks.head_pose(find_faces(rendered(yaw))[0].landmarks)
    assert abs(found - yaw * 1.08) < 8 and abs(pitch) < 12


def cover(picture, points, part, colour):
    x0, x1 = points[:, 0].min() - 6, points[:, 0].max() + 6
    width, top = x1 - x0, points[17:27, 1].min()
    boxes = {"mouth": (0, 0, 0, 0),
             "eyes": (x0, top - 3, x1, points[36:48, 1].max() + 0.1 * width),
             "left half": (x0, top - 0.6 * width, points[30, 0], points[8, 1] + 6),
             "lower half": (x0, points[30, 1], x1, points[8, 1] + 6)}
    picture, (a, b, c, d) = picture.copy(), map(int, boxes[part])
    if part == "mouth":
        x, y = points[48:68].mean(0)
        cv2.ellipse(picture, (int(x), int(y)), (int(0.3 * width), int(0.22 * width)), 0, 0, 360, colour, -1)
    else: picture[b:d, a:c] = colour
    return picture


def failing(kind, rendered):
    """A picture that no edit should come from without a word."""
    picture = read_image(ASTRONAUT)
    points = find_faces(picture)[0].landmarks
    random = np.random.default_rng(0)
    part, _, colour = kind.partition(", ")
    if part in ("mouth", "eyes", "left half", "lower half"):
        return cover(picture, points, part, {"a hand": (200, 150, 120), "black": (10, 10, 10)}[colour])
    return {"turned by 30": lambda: rendered(30), "turned by 45": lambda: rendered(45), "turned by -35": lambda: rendered(-35),
            "small": lambda: cv2.resize(picture, (300, 300), interpolation=cv2.INTER_AREA),
            "blurred": lambda: cv2.GaussianBlur(picture, (0, 0), 8),
            "noise": lambda: np.clip(picture + random.normal(0, 90, picture.shape), 0, 255).astype(np.uint8),
            "negative": lambda: 255 - picture}[kind]()


FAILING = ("turned by 30", "turned by 45", "turned by -35", "small", "blurred", "noise", "negative", "mouth, a hand",
           "eyes, a hand", "eyes, black", "left half, black", "lower half, a hand")


@pytest.mark.parametrize("kind", FAILING)
def test_pictures_that_fail_are_noticed(pipe, home, rendered, kind):
    picture = np.ascontiguousarray(failing(kind, rendered))
    said = complaint(lambda: pipe.photo(picture))
    assert any(word in said for word in ("turned", "pixels wide", "no face found", "cannot be made out", "loss"))
    if "no face found" in said or "frontal" in said: return
    forced = pipe.photo(picture, force=True, steps=2)
    assert forced.warnings and forced.warnings[0] in said


def test_over_forty_degrees_is_an_error_even_if_forced(pipe, home, rendered):
    assert "turned by about" in complaint(lambda: pipe.photo(rendered(50), force=True))


@pytest.mark.parametrize("fault", ("rate", "steps", "nan", "face"))
def test_tunings_that_fail_are_noticed(pipe, quick, monkeypatch, fault):
    model, crop, steps = pipe, quick.crop, 12
    if fault == "rate":
        monkeypatch.setattr(tuning, "RATE", 3.)
        steps = 40
    if fault == "nan":
        model = pipe.with_parts(inverter=type(pipe.inverter)(pipe.inverter.encoder, tuning.changed(pipe.inverter.generator, {
            k: torch.zeros_like(p) for k, p in tuning.tuned_weights(pipe.inverter.generator).items()}), None, pipe.inverter.size_in, pipe.inverter.zoom))
        next(iter(tuning.tuned_weights(model.inverter.generator).values())).data.fill_(torch.nan)
    if fault == "face": crop = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    tuned = tuning.tune(model, crop, steps=steps)
    assert tuned.failed and ("diverged" in tuned.reason if fault in ("rate", "nan") else "loss" in tuned.reason)
    assert tuned.reason in complaint(lambda: checks.check_tuning(tuned, "me.jpg")) and checks.check_tuning(tuned, force=True) == [tuned.reason]
    if fault != "nan": assert np.isfinite(tuned.synthesize(tuned.w)).all()


def test_good_faces_are_not_warned_of(photo):
    assert photo.warnings == [] and not photo.tuned.failed and photo.tuned.loss < 0.7 * tuning.HIGH_LOSS


def test_a_grey_photograph_in_three_channels_stays_grey(pipe, quick):
    grey = cv2.cvtColor(cv2.cvtColor(quick.rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    edit = quick.edit({"AU26": 5})
    moved = put_back(grey, edit.motion, edit.drawn, quick.quad, edit.mask)
    assert (moved != grey).any() and (moved == moved[..., :1]).all()
    assert (edit.rgb != edit.rgb[..., :1]).any()
