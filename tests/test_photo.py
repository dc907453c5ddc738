"""The edit of a photograph: where the change goes, what stays as it is, and what is refused."""
import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from aueditnet.align import align_face, ffhq_quad
from aueditnet.data import DISFA
from aueditnet.files.errors import InputError
from aueditnet.files.io import data_dir, read_image
from aueditnet.inversion import Inverter
from aueditnet.photo import edit_photo, paste
from aueditnet.pipeline import Pipeline

ZOOM = 1.25


@pytest.fixture(scope="module")
def frame():
    """A frame of a test subject, and its landmarks."""
    dataset = DISFA(data_dir() / "synthdisfa", ["SN017"])
    return dataset.frame("SN017", 0), dataset.landmarks("SN017")[0]


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained("heads128")


@pytest.fixture(scope="module")
def quick():
    """Without refinement, where the quality of the inversion does not matter."""
    return Pipeline.from_pretrained("heads128", inverter=Inverter.from_pretrained("heads128", 0))


@pytest.fixture
def change():
    """An inversion and an edit that differ everywhere."""
    inversion, edited = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    return inversion, edited


def whole_warp(picture, inversion, edited, landmarks, zoom):
    """`paste` without regard to time and memory: everything is computed for the whole picture."""
    size, (quad, _) = len(edited), ffhq_quad(landmarks, zoom)
    across, down = (quad[3] - quad[0]) / size, (quad[1] - quad[0]) / size
    place = np.column_stack([across, down, quad[0] + (across + down) / 2])
    x, y = np.meshgrid(*[(np.arange(size) + 0.5) / size - 0.5] * 2)
    ellipse = np.clip((1 - np.hypot(x / zoom / 0.30, (y / zoom - 0.1) / 0.38)) / 0.25, 0, 1)
    border = np.clip(np.minimum.reduce([x + 0.5, 0.5 - x, y + 0.5, 0.5 - y]) / 0.06, 0, 1)
    change = (np.float32(edited) - inversion) * np.minimum(ellipse, border)[..., None]
    return np.rint(picture + cv2.warpAffine(change, place, picture.shape[1::-1], flags=cv2.INTER_CUBIC)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("move", [(0, 0), (-120, 0), (130, 20), (0, -90), (0, 110)])    # the crop leaves the picture on each side
def test_paste_works_on_the_face_only(frame, change, move):
    picture, landmarks = frame
    kept, landmarks = picture.copy(), landmarks + np.float32(move)
    pasted = paste(picture, *change, landmarks, ZOOM)
    assert (picture == kept).all(), "the picture itself is left alone"
    assert pasted.shape == picture.shape and pasted.dtype == np.uint8
    assert abs(np.int16(pasted) - whole_warp(picture, *change, landmarks, ZOOM)).max() <= 1
    quad, _ = ffhq_quad(landmarks, ZOOM)
    changed = np.argwhere((pasted != picture).any(-1))[:, ::-1]
    assert len(changed) and (changed.min(0) >= quad.min(0) - 1).all() and (changed.max(0) <= quad.max(0) + 1).all()


def test_paste_where_nothing_changes(frame, change):
    picture, landmarks = frame
    assert (paste(picture, change[0], change[0], landmarks, ZOOM) == picture).all()
    assert (paste(picture, *change, landmarks + 5000, ZOOM) == picture).all()    # a face outside the picture


def test_paste_is_the_way_back_of_align_face(frame):
    picture, landmarks = frame
    picture = picture // 2 + 40
    inversion = np.full((128, 128, 3), 100, np.uint8)
    edited = inversion.copy()
    edited[70:100, 44:84] += 60    # a box on the mouth
    difference = np.float32(align_face(paste(picture, inversion, edited, landmarks, ZOOM), landmarks, 128, ZOOM)) \
        - align_face(picture, landmarks, 128, ZOOM)
    assert abs(difference[74:96, 48:80] - 60).max() <= 6
    assert abs(difference[:64]).max() <= 1 and abs(difference[:, :38]).max() <= 1


def test_inverts_as_the_pipeline_does(pipe, frame):
    """The same refinement, preconditioner included, so the same inversion and edit to the last bit."""
    whole, edit = edit_photo(pipe, frame[0], {"AU12": 4})
    other = pipe.edit(frame[0], {"AU12": 4}, align=True)
    for name in ("crop", "inversion", "image"):
        assert (getattr(edit, name) == getattr(other, name)).all(), name
    assert (edit.source, edit.requested, edit.measured) == (other.source, other.requested, other.measured)
    assert whole.shape == frame[0].shape and (whole != frame[0]).any()
    assert (whole[:, :30] == frame[0][:, :30]).all()    # the background is left alone


def test_requests(quick, frame, tmp_path):
    picture, _ = frame
    whole, edit = edit_photo(quick, picture)
    assert (whole == picture).all() and edit.requested == {}
    whole, edit = edit_photo(quick, picture, relative={"AU12": 2})
    assert edit.requested["AU12"] == pytest.approx(edit.source["AU12"] + 2, abs=1e-5) and (whole != picture).any()
    Image.fromarray(picture).save(tmp_path / "frame.png")
    for same in (Image.fromarray(picture), tmp_path / "frame.png", str(tmp_path / "frame.png")):
        assert (edit_photo(quick, same, relative={"AU12": 2})[0] == whole).all()
    with pytest.raises(InputError, match="both absolutely and relatively"):
        edit_photo(quick, picture, {"AU12": 4}, {"AU12": 1})
    with pytest.raises(InputError, match="AU3"):
        edit_photo(quick, picture, {"AU3": 4})


def test_a_photograph(quick):
    """Two boxes, one of them a badge: there is one face, and it is edited at its own place."""
    photo = ROOT / "nbs" / "images" / "astronaut.jpg"
    whole, _ = edit_photo(quick, photo, {"AU25": 4, "AU26": 4})
    y, x = np.nonzero((whole != read_image(photo)).any(-1))
    assert 150 < x.min() and x.max() < 290 and 50 < y.min() and y.max() < 180
    with pytest.raises(InputError, match="face 2 of .*astronaut.jpg: only 1 found"):
        edit_photo(quick, photo, {"AU12": 4}, face=2)


@pytest.mark.parametrize("face", (0, -1, True, 1.0, None, "1"))
def test_faces_are_numbered_from_one(frame, face):
    with pytest.raises(InputError, match=r"faces are numbered 1, 2, \.\.\."):
        edit_photo(None, frame[0], {"AU12": 4}, face=face)


def test_no_face(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)).save(tmp_path / "noise.png")
    with pytest.raises(InputError, match="no face found in .*noise.png"):
        edit_photo(None, tmp_path / "noise.png", {"AU12": 4})
    with pytest.raises(InputError, match="none.png: no such file"):
        edit_photo(None, tmp_path / "none.png", {"AU12": 4})
