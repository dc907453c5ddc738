"""The FFHQ crop against its formula, pictures of every kind, and faces in good and bad photographs."""
import io
import sys

import cv2
import numpy as np
import pytest
from conftest import NBS, ROOT, complaint
from PIL import Image

from aueditnet.align import align_face, aligned_frames, cut_face, detect_landmarks, dlib_models, ffhq_quad, find_faces, neutral_faces
from aueditnet.data import DISFA, TEST
from aueditnet.files.errors import PhotoExtraMissing
from aueditnet.files.io import as_picture, read_image

ASTRONAUT, TRUE_BOX = NBS / "images" / "astronaut.jpg", (175, 76, 265, 166)


def face(left_eye, right_eye, left_corner, right_corner):
    """68 landmarks of which only those that alignment uses are set."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48], points[48], points[54] = left_eye, right_eye, left_corner, right_corner
    return points


def turned(points, angle, scale, offset):
    """Points turned by `angle` (degrees), scaled and moved."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return scale * np.asarray(points) @ [[c, s], [-s, c]] + offset


PLAIN = face((100, 100), (160, 100), (110, 170), (150, 170))


# the square

def test_squares_computed_by_hand():
    quad, side = ffhq_quad(PLAIN)
    assert np.allclose(quad, [[4, -19], [4, 233], [256, 233], [256, -19]]) and np.isclose(side, 252)
    quad, side = ffhq_quad(face((20, 0), (120, 0), (40, 60), (100, 60)))   # a broad face: the width decides, 2|e| = 200
    assert np.allclose(quad, [[-130, -194], [-130, 206], [270, 206], [270, -194]]) and np.isclose(side, 400)


def test_the_square_follows_the_face():
    random = np.random.default_rng(0)
    for _ in range(100):
        points = PLAIN + random.normal(0, 8, (68, 2))
        how = random.uniform(-180, 180), random.uniform(0.2, 5), random.uniform(-300, 300, 2)
        (quad, side), (quad2, side2) = ffhq_quad(points), ffhq_quad(turned(points, *how))
        assert np.allclose(quad2, turned(quad, *how)) and np.isclose(side2, side * how[1])
        assert np.allclose(np.linalg.norm(np.diff(quad, axis=0), axis=1), side)   # it is a square
        tight, tight_side = ffhq_quad(points, zoom=1.25)
        assert np.allclose(tight - quad.mean(0), (quad - quad.mean(0)) / 1.25) and np.isclose(tight_side, side / 1.25)


def test_what_is_no_face_is_refused():
    assert "(66, 2)" in complaint(lambda: ffhq_quad(np.zeros((66, 2))))
    assert "not numbers" in complaint(lambda: ffhq_quad(np.full((68, 2), np.nan)))
    assert "coincide" in complaint(lambda: ffhq_quad(np.ones((68, 2))))


# the crop

def waves(x, y):
    """A smooth picture given by a formula, known between pixels as well, 0-255."""
    return np.stack([127 + 90 * np.sin(x / 17) + 30 * np.cos(y / 11), 127 + 80 * np.sin((x + y) / 23) + 40 * np.cos(x / 7),
                     127 + 100 * np.cos(y / 19) * np.sin(x / 29)], -1).clip(0, 255)


def predicted(points, size, zoom=1.0):
    """The crop of `waves` by the formula."""
    quad, _ = ffhq_quad(points, zoom)
    t = (np.arange(size) + 0.5) / size
    places = quad[0] + t[:, None, None] * (quad[1] - quad[0]) + t[None, :, None] * (quad[3] - quad[0])
    return waves(places[..., 0], places[..., 1])


Y, X = np.mgrid[:600, :800]
WAVY = np.rint(waves(X, Y)).astype(np.uint8)


def in_the_middle(angle, scale):
    points = turned(PLAIN - PLAIN.mean(0), angle, scale, 0)
    return points + [400, 300] - ffhq_quad(points)[0].mean(0)


@pytest.mark.parametrize("angle, scale, size, zoom", [(0, 1, 256, 1), (30, 1, 256, 1), (-75, 0.5, 128, 1.25), (10, 1.6, 128, 1), (170, 1.2, 256, 1.25)])
def test_every_pixel_is_the_predicted_one(angle, scale, size, zoom):
    points = in_the_middle(angle, scale)
    assert np.abs(align_face(WAVY, points, size, zoom) - predicted(points, size, zoom)).mean() < 1


def test_a_reduced_picture_is_averaged():
    """A fine checkerboard, eight times reduced: picking pixels would show stripes, averaging shows grey."""
    checker = np.repeat((((X + Y) % 2) * 255)[..., None], 3, 2).astype(np.uint8)
    small = align_face(checker, in_the_middle(20, 1.2), size=32)
    assert abs(small.mean() - 127.5) < 2 and small.std() < 6


def test_beyond_the_border():
    """Half of the square outside: inside the picture the formula holds, outside it is smoother than inside."""
    points = PLAIN + [-126, 0]
    crop = align_face(WAVY, points, 252)
    inside = np.s_[60:-60, 126 + 30:]
    assert np.abs(crop[inside] - predicted(points, 252)[inside]).mean() < 1
    def rough(c): return np.abs(np.diff(c.astype(float), 2, axis=1)).mean()
    assert rough(crop[:, :90]) < rough(crop[:, 160:])
    for offset in (5000, -5000):
        assert "outside the picture" in complaint(lambda: align_face(WAVY, PLAIN + offset))


def test_near_the_border():
    """FFHQ counts four pixels of a picture that it has halved, or divided by more, where the face is large."""
    stripes = np.repeat((Y // 5 % 2 * 255)[..., None], 3, 2).astype(np.uint8)
    soft, untouched = (align_face(stripes, PLAIN + [gap - 4, 60], 60)[8:-8, :2].std() for gap in (6, 10))   # the left edge of the crop
    assert soft < 0.5 * untouched


def test_pictures_and_landmarks_of_any_layout():
    assert align_face(WAVY[:2, :3], PLAIN).shape == (256, 256, 3)          # a picture much smaller than the square
    assert align_face(WAVY[::2, ::2], PLAIN, 64).shape == (64, 64, 3)      # a view that is not contiguous in memory
    assert (align_face(WAVY, PLAIN, 100) == align_face(WAVY, PLAIN.tolist(), 100)).all()


@pytest.fixture(scope="module")
def synthdisfa():
    return DISFA(ROOT / "data" / "synthdisfa")


def test_a_face_that_is_cut_off(synthdisfa):
    """What the picture holds stays untouched a tenth of a side away from its border."""
    subject = TEST[0]
    best = int(synthdisfa.labels(subject).sum(1).argmax())
    picture, points = synthdisfa.frame(subject, best), synthdisfa.landmarks(subject)[best]
    quad, side = ffhq_quad(points, 1.25)
    crops = []
    for cut in (0.0, 0.15, 0.3, 0.45):
        corner = np.maximum(np.floor(quad.min(0) + cut * side).astype(int), 0)
        crops.append(align_face(picture[corner[1]:, corner[0]:], points - corner, 256, 1.25))
        assert crops[-1].shape == (256, 256, 3) and crops[-1].dtype == np.uint8
    for crop, far in zip(crops[1:3], (256 * (np.array([0.15, 0.3]) + 0.12)).astype(int)):
        assert np.abs(crop[far:, far:].astype(int) - crops[0][far:, far:]).mean() < 1.5


def test_frames_of_a_dataset(synthdisfa):
    frames = aligned_frames(synthdisfa, "SN003", [7, 3, 7], 64)
    assert list(frames) == [3, 7] and frames[3].shape == (64, 64, 3)
    faces = neutral_faces(synthdisfa, 64, subjects=["SN003"])
    first = int(synthdisfa.labels("SN003").sum(1).argmin())
    assert (faces["SN003"] == aligned_frames(synthdisfa, "SN003", [first], 64)[first]).all()


# pictures from anywhere

GRADIENT = np.add.outer(np.arange(80), 2 * np.arange(100))[..., None].repeat(3, 2).astype(np.uint8)


def picture_file(folder, name, picture, **options):
    picture.save(folder / name, **options)
    return folder / name


def turned_by_the_camera(folder, picture):
    """The picture on its side, with the note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture_file(folder, "turned.png", Image.fromarray(np.rot90(picture)), exif=exif)


def test_pictures_are_read_upright_as_rgb(tmp_path):
    assert (read_image(picture_file(tmp_path, "a.png", Image.fromarray(GRADIENT))) == GRADIENT).all()
    assert (as_picture(Image.fromarray(GRADIENT)) == as_picture(GRADIENT)).all()
    aside = turned_by_the_camera(tmp_path, GRADIENT)
    assert (read_image(aside) == GRADIENT).all()
    with Image.open(aside) as opened:
        assert (as_picture(opened) == GRADIENT).all()
    deep = Image.fromarray(GRADIENT[..., 0].astype(np.uint16) * 257)
    assert (read_image(picture_file(tmp_path, "deep.png", deep)) == GRADIENT).all()
    clear = Image.fromarray(np.dstack([GRADIENT, np.zeros((80, 100), np.uint8)]))
    assert (read_image(picture_file(tmp_path, "clear.png", clear)) == 255).all()
    assert (read_image(io.BytesIO(cv2.imencode(".png", GRADIENT[..., ::-1])[1].tobytes()), "upload") == GRADIENT).all()


def test_what_is_no_picture_is_refused(tmp_path):
    png = picture_file(tmp_path, "a.png", Image.fromarray(GRADIENT))
    (tmp_path / "cut.png").write_bytes(png.read_bytes()[:200])
    (tmp_path / "notes.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    picture_file(tmp_path, "tiny.png", Image.new("RGB", (40, 90)))
    for name, words in (("cut.png", "cannot be read"), ("notes.jpg", "not a picture"), ("empty.png", "not a picture"),
                        ("tiny.png", "40x90 pixels are too small"), ("none.png", "no such file"), (".", "is a folder")):
        assert words in complaint(lambda: read_image(tmp_path / name)), name
    assert "must be HxWx3 uint8 RGB, not 80x80x3 float64" in complaint(lambda: as_picture(np.zeros((80, 80, 3))))
    assert "x: an array" in complaint(lambda: as_picture(np.zeros((80, 80), np.uint8), "x"))
    complaint(lambda: as_picture(3))


# faces in photographs

@pytest.fixture(scope="module")
def astronaut():
    pytest.importorskip("dlib")
    return read_image(ASTRONAUT)


def hidden_face(image):
    """The photograph with the face painted over."""
    x0, y0, x1, y1 = TRUE_BOX
    return cv2.rectangle(image.copy(), (x0 - 40, y0 - 40), (x1 + 40, y1 + 40), (90, 90, 90), -1)


def altered(image, box):
    """(name, picture, box of the face) of some copies of a photograph, most of them bad."""
    h, w = image.shape[:2]
    centre, box = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), np.array(box)
    yield "as it is", image, box
    for s in (0.7, 1.3):
        yield f"x {s}", cv2.resize(image, None, fx=s, fy=s, interpolation=cv2.INTER_AREA), box * s
    for angle in (-15, 15):
        yield f"tilted {angle}", np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR, center=centre)), box
    yield "mirrored", np.ascontiguousarray(image[:, ::-1]), np.array([w - box[2], box[1], w - box[0], box[3]])
    yield "noisy", (image + np.random.default_rng(0).normal(0, 30, image.shape)).clip(0, 255).astype(np.uint8), box
    yield "blurred", cv2.GaussianBlur(image, (0, 0), 2), box
    yield "dark", (image * 0.15).astype(np.uint8), box
    yield "few bytes", cv2.imdecode(cv2.imencode(".jpg", image, [1, 20])[1], 1), box


def overlap(a, b):
    """Common area of two boxes over the area of both."""
    common = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return common / (np.prod(np.subtract(a[2:], a[:2])) + np.prod(np.subtract(b[2:], b[:2])) - common)


def test_the_face_comes_first_and_nothing_else_is_kept(astronaut):
    wrong = []
    for name, picture, box in altered(astronaut, TRUE_BOX):
        first, *rest = find_faces(picture)
        assert overlap(np.array(first.box), box) > 0.4 and not first.doubtful, name
        assert all(f.doubtful for f in rest), name
        wrong += rest
    assert wrong   # else this shows nothing
    assert all(f.doubtful for f in find_faces(hidden_face(astronaut)))


def test_a_photograph_without_a_face(astronaut):
    assert "no face found in waves.png" in complaint(lambda: detect_landmarks(WAVY, "waves.png"))
    message = complaint(lambda: cut_face(hidden_face(astronaut), 256, name="tin.jpg"))
    assert "tin.jpg" in message and "rejected" in message


def test_a_photograph_on_its_side(astronaut, tmp_path):
    assert (cut_face(turned_by_the_camera(tmp_path, astronaut), 256) == cut_face(ASTRONAUT, 256)).all()
    for k in range(1, 4):   # without the note the picture is turned until the face is found
        assert np.abs(np.int16(cut_face(np.rot90(astronaut, k), 256)) - cut_face(ASTRONAUT, 256)).max() <= 1


def test_one_of_several_faces(astronaut):
    """The photograph together with a smaller copy in blue."""
    small = cv2.resize(astronaut[30:230, 130:330], None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    small[:, :, 2] = 255
    group = np.concatenate([cv2.copyMakeBorder(small, 176, 176, 20, 20, cv2.BORDER_CONSTANT, value=(90, 90, 90)), astronaut], 1)
    first, second = (cut_face(group, 256, face=n) for n in (1, 2))
    assert (cut_face(group, 256) == first).all() and second[..., 2].mean() > 200 > first[..., 2].mean()
    assert "face 3 of group.jpg: only 2 found" in complaint(lambda: cut_face(group, 256, face=3, name="group.jpg"))
    for wrong in (0, -1, 1.5, True, "1"):
        assert "numbered 1, 2" in complaint(lambda: cut_face(group, 256, face=wrong))


def test_with_and_without_alignment(astronaut):
    assert "choose one" in complaint(lambda: cut_face(astronaut, 512, align=False, face=1))
    assert (cut_face(astronaut, 512, align=None) == astronaut).all()   # of exactly the size: taken as a crop
    found = cut_face(astronaut, 512, face=1)                           # unless a face is asked for
    assert found.shape == (512, 512, 3) and abs(np.int16(found) - astronaut).mean() > 5
    assert cut_face(astronaut, 128, align=False).shape == cut_face(astronaut, 600, align=False)[:128, :128].shape == (128, 128, 3)
    assert "a square face crop is needed" in complaint(lambda: cut_face(astronaut[:300], 128, align=False))


def test_detected_landmarks(synthdisfa):
    pytest.importorskip("dlib")
    errors = []
    for s in TEST:
        truth, found = synthdisfa.landmarks(s)[0], detect_landmarks(synthdisfa.frame(s, 0), s)[0]
        between = np.linalg.norm(truth[36:42].mean(0) - truth[42:48].mean(0))
        errors.append(np.linalg.norm(found - truth, axis=1)[17:] / between)
    assert np.median(errors) < 0.06


def test_large_photographs(synthdisfa):
    """Larger than the detector's limit; and a large face beside a small one."""
    pytest.importorskip("dlib")
    frame = synthdisfa.frame(TEST[0], 0)
    big = cv2.resize(frame, None, fx=1600 / frame.shape[1], fy=1600 / frame.shape[1])
    difference = detect_landmarks(big)[0] * frame.shape[1] / 1600 - detect_landmarks(frame)[0]
    assert np.abs(difference).mean() < 3
    two = np.zeros((big.shape[0], big.shape[1] + frame.shape[1] * 2, 3), np.uint8)
    two[:, :big.shape[1]] = big
    two[:frame.shape[0] * 2, big.shape[1]:] = cv2.resize(frame, None, fx=2, fy=2)[:two.shape[0]]
    faces = detect_landmarks(two)
    assert np.ptp(faces[0], 0).prod() >= np.ptp(faces[-1], 0).prod()


def test_without_the_extra(monkeypatch):
    dlib_models.cache_clear()
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(PhotoExtraMissing, match=r"aueditnet\[photo\]"):
        detect_landmarks(WAVY)
    dlib_models.cache_clear()
