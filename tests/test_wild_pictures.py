"""Pictures as they come: transparent, grey, lying, tiny, huge, animated, from telephones, damaged, and files that are no pictures."""
import io
import os
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib

import cv2
import numpy as np
import pytest
from conftest import ROOT, child_env, complaint
from PIL import ExifTags, Image, ImageCms, ImageFilter, PngImagePlugin
from test_photo import inside
from typer.testing import CliRunner

from aueditnet.align import cut_face, find_faces, usable_faces
from aueditnet.files.animations import ANIMATIONS, AnimationReader, AnimationWriter, frame_reader
from aueditnet.files.errors import InputError
from aueditnet.files.face_search import levelled, quarters, search, tiles, turned_back
from aueditnet.files.io import read_image
from aueditnet.files.opening import box_kind, is_animation, is_picture
from aueditnet.files.photo_files import PhotoFile, edited_note
from aueditnet.files.picture_formats import FORMATS
from aueditnet.pipeline import Pipeline

ASTRONAUT = ROOT / "nbs" / "images" / "astronaut.jpg"
PART = (60, 0, 400, 300)   # of the photograph, with the face: left, top, right, bottom
QUICK = dict(steps=2, force=True)

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def pipe():
    pytest.importorskip("dlib")
    return Pipeline.from_pretrained("heads128", refine=0)


@pytest.fixture(scope="module")
def face():
    """A photograph of 340x300 pixels, uint8 RGB."""
    return np.ascontiguousarray(np.asarray(Image.open(ASTRONAUT).convert("RGB").crop(PART)))


@pytest.fixture(scope="module")
def moved(pipe, face):
    """The photograph with an edit, upright."""
    return pipe.photo(face, **QUICK).edit({"AU26": 5}).rgb


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*words):
    """Exit code and output of a command; a traceback fails the test."""
    from aueditnet.cli import app
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit): raise done.exception
    return done.exit_code, done.output


def grey(picture):
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


# ---- transparency

def half(face):
    """A transparency that is 0 on the left, full in the middle, and in between on the right."""
    return np.broadcast_to(np.uint8(np.interp(np.arange(face.shape[1]), [0, 40, 60, 250, 300], [0, 0, 255, 255, 90])), face.shape[:2])


TRANSPARENT = {"RGBA": lambda x: Image.fromarray(np.dstack([x, half(x)])), "LA": lambda x: Image.fromarray(np.dstack([grey(x), half(x)])),
               "palette": lambda x: with_hole(Image.fromarray(x).quantize(255)), "16 bit": lambda x: np.uint16(np.dstack([x, half(x)])) * 257}


def with_hole(picture):
    picture.info["transparency"] = int(np.asarray(picture)[0, 0])
    return picture


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_is_kept_or_its_loss_is_said(tmp_path, face, moved, kind):
    source = TRANSPARENT[kind](face)
    if kind == "16 bit": cv2.imwrite(str(tmp_path / "in.png"), source[..., [2, 1, 0, 3]])
    else: source.save(tmp_path / "in.png")
    file = PhotoFile.open(tmp_path / "in.png")
    assert file.transparent and not PhotoFile.open(face).transparent
    at = (moved != face).any(-1)
    edited = np.where(at[..., None], moved, file.rgb)
    for suffix in FORMATS:
        remarks = file.save(file.merge(edited), tmp_path / f"out{suffix}", edited_note({"AU26": 5}))
        back = PhotoFile.open(tmp_path / f"out{suffix}")
        if FORMATS[suffix] in ("JPEG", "BMP"):
            assert sum("no transparency, transparent places are white: PNG, TIFF and WebP keep it" in said for said in remarks) == 1
            assert abs(np.int16(back.rgb[:, :20]) - file.rgb[:, :20]).mean() < 3 and not back.transparent
        else:
            assert not any("transparency" in said for said in remarks)
            own, new = (x.pixels[..., -1] // (257 if x.pixels.dtype == np.uint16 else 1) for x in (file, back))
            lossy = FORMATS[suffix] == "AVIF"
            assert abs(np.int16(own) - new).max() <= 4 * lossy and (lossy or abs(np.int16(back.rgb) - file.rgb)[~at].max() <= 1)


def test_an_opaque_picture_loses_nothing(tmp_path, face):
    file = PhotoFile.open(np.dstack([face, np.full(face.shape[:2], 255, np.uint8)]))
    assert file.save(file.merge(file.rgb), tmp_path / "out.jpg", "edited") == []


def test_transparency_of_a_face_alone(here, pipe, face, caplog):
    """A face is drawn by a generator, which knows no transparency: its loss is said by every way that leads to one."""
    TRANSPARENT["RGBA"](face).save("in.png")
    code, said = command("edit", "in.png", "--au", "AU26=5", "--crop", "--no-tune", "--refine", 0, "-o", "out.png")
    assert code == 0 and "the face alone is drawn without transparency" in said and Image.open("out.png").mode == "RGB"
    for call in (lambda: pipe.edit("in.png", {"AU26": 5}), lambda: pipe.edit_batch(["in.png"], {"AU26": 5}), lambda: pipe.transfer("in.png", face)):
        caplog.clear()
        call()
        assert [r.getMessage() for r in caplog.records] == ["in.png: transparent places are white in the face"]
    caplog.clear()
    pipe.edit(face)
    assert not caplog.records


def test_downloads_of_the_page_keep_transparency(pipe, face, moved):
    from aueditnet.photographs.previews import as_file
    file = PhotoFile.open(TRANSPARENT["RGBA"](face))
    name, content, kind = as_file("me.webp", file, file.merge(file.rgb), "edited")
    with Image.open(io.BytesIO(content)) as picture:
        assert (name, kind, picture.mode) == ("me-edited.webp", "image/webp", "RGBA") and (np.asarray(picture.getchannel("A")) == half(face)).all()


# ---- grey

GREYS = {"L": grey, "LA": lambda x: np.dstack([grey(x), np.full(x.shape[:2], 255, np.uint8)]), "16 bit": lambda x: np.uint16(grey(x)) * 257 + 3,
         "RGB": lambda x: np.dstack([grey(x)] * 3), "CMYK": None}


@pytest.mark.parametrize("kind", ("L", "LA", "16 bit", "RGB"))
def test_grey_stays_grey(here, pipe, face, kind):
    given = GREYS[kind](face)
    picture = Image.fromarray(given)
    picture.save("in.png")
    edit, *more = pipe.edit_batch([picture], {"AU26": 5}) if kind == "LA" else [pipe.edit(given, {"AU26": 5})]
    if kind == "L": more = [pipe.edit("in.png", {"AU26": 5}), pipe.transfer(picture, face)]
    for one in (edit, *more):
        assert all((x == x[..., :1]).all() for x in (one.image, one.inversion, one.crop)) and (one.image != one.inversion).any()
    assert kind != "L" or (more[0].image == edit.image).all()
    if kind in ("LA", "16 bit"): return
    code, _ = command("edit", "in.png", "--au", "AU26=5", "--crop", "--no-tune", "--refine", 0, "-o", "face.png")
    crop = PhotoFile.open("face.png")
    assert code == 0 and crop.mode == kind and (crop.rgb == crop.rgb[..., :1]).all()
    if kind == "RGB": return
    Image.fromarray(edit.crop).convert("L").save("crop.png")
    assert command("edit", "crop.png", "--au", "AU26=5", "--no-align", "--refine", 0, "-o", "drawn.png")[0] == 0
    assert Image.open("drawn.png").mode == "L"


def test_a_grey_photograph_stays_grey_with_a_tuned_face(here, pipe, face):
    photo = pipe.photo(grey(face), **QUICK)
    edit = photo.edit({"AU26": 5})
    assert edit.image.ndim == 2 and (edit.face == edit.face[..., :1]).all() and (edit.face != photo.crop).any()
    Image.fromarray(grey(face)).save("in.jpg")
    assert command("edit", "in.jpg", "--au", "AU26=5", "--crop", "--steps", 2, "--force", "-o", "face.jpg")[0] == 0
    assert Image.open("face.jpg").mode == "L"


def test_a_coloured_face_keeps_its_colours(pipe, face):
    edit = pipe.edit(face, {"AU26": 5})
    assert (edit.image != edit.image[..., :1]).any()


# ---- on its side

@pytest.mark.parametrize("k", (1, 2, 3))
def test_a_lying_face_is_found_and_edited_where_it_is(pipe, face, moved, k):
    lying = np.ascontiguousarray(np.rot90(face, k))
    photo = pipe.photo(lying, **QUICK)
    edit = photo.edit({"AU26": 5})
    how = {1: "90 degrees to the right", 2: "180 degrees", 3: "90 degrees to the left"}[k]
    assert photo.warnings[0] == f"the face is not upright: it is found in the picture turned by {how}; the result lies as the picture does"
    assert quarters(photo.landmarks) == 4 - k and edit.rgb.shape == lying.shape
    changed = (edit.rgb != lying).any(-1)
    assert changed.any() and not (changed & ~inside(photo)).any()
    assert abs(np.int16(np.rot90(edit.rgb, -k)) - moved).mean() < 0.05    # as in the upright picture


def test_a_lying_face_in_files_and_commands(here, pipe, face, caplog):
    Image.fromarray(np.rot90(face)).save("lying.png")
    assert pipe.estimate("lying.png") == pytest.approx(pipe.estimate(face), abs=0.05)
    assert "lying.png: the face is not upright: it is found in the picture turned by 90 degrees to the right" in caplog.text
    code, said = command("edit", "lying.png", "--au", "AU26=5", "--steps", 2, "--force", "-o", "out.png")
    assert code == 0 and "turned by 90 degrees to the right" in said and Image.open("out.png").size == (300, 340)
    code, said = command("transfer", ASTRONAUT, "lying.png", "--steps", 2, "--force", "-o", "t.png")
    assert code == 0 and Image.open("t.png").size == (512, 512)


def test_upright_faces_are_not_turned(face):
    """Nor does a good upright face cost a second look; and where there is no face, no turn finds one."""
    looks = []
    def find(picture): looks.append(picture.shape); return find_faces(picture)
    assert len(search(face, find)) == 1 and len(looks) == 1
    hidden = face.copy()
    hidden[20:220, 60:260] = 90
    assert all(f.doubtful for f in search(hidden, find)) and len(looks) == 5
    assert "no face found in tin.png" in complaint(lambda: usable_faces(hidden, "tin.png"))


def test_turned_and_tilted(face):
    """Faces at 90 degrees more or less, and a group of which one lies: the upright one wins."""
    h, w = face.shape[:2]
    tilted = cv2.warpAffine(face, cv2.getRotationMatrix2D((w / 2, h / 2), 12, 1), (w, h), borderMode=cv2.BORDER_REFLECT)
    assert quarters(usable_faces(np.rot90(tilted))[0].landmarks) == 3
    side = max(h, w)
    both = np.concatenate([cv2.copyMakeBorder(x, 0, side - x.shape[0], 0, side - x.shape[1], cv2.BORDER_REPLICATE) for x in (face, np.rot90(face))], 1)
    assert [quarters(f.landmarks) for f in usable_faces(both)] == [0]


def test_geometry_of_turns():
    random = np.random.default_rng(0)
    points = random.uniform(0, 50, (68, 2))
    for k in range(4):
        there = turned_back(points, k, (60, 90) if k % 2 == 0 else (90, 60))
        assert there.min() >= 0 and (turned_back(turned_back(points, k, (60, 90)), (4 - k) % 4, np.zeros((60, 90)).T.shape if k % 2 else (60, 90)) - points).max() < 1e-9
        assert np.allclose(levelled(points).mean(0), points.mean(0))


# ---- small in a large picture

def tiny(width, height=3000, wide=4000):
    """A picture with noise and texture, in which a face is `width` pixels wide."""
    whole = np.asarray(Image.open(ASTRONAUT).convert("RGB"))
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, wide, 3), np.uint8), (0, 0), 3)
    small = cv2.resize(whole, None, fx=width / 93, fy=width / 93, interpolation=cv2.INTER_AREA)
    y, x = int(0.6 * height), int(0.53 * wide)
    picture[y:y + len(small), x:x + small.shape[1]] = small
    return picture, np.array([x, y]) + np.array([220, 121]) * width / 93


SECOND_LOOK = """
import resource, sys, time
import numpy as np
from aueditnet.align import find_faces, usable_faces
from test_wild_pictures import tiny
picture, middle = tiny(35)
find_faces(picture)
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
found = usable_faces(picture)
seconds, more = time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(seconds, more, len(found), np.hypot(*(found[0].landmarks.mean(0) - middle)), np.ptp(found[0].landmarks[:17, 0]))
"""


def test_the_second_look_is_bounded():
    pytest.importorskip("dlib")
    done = subprocess.run([sys.executable, "-c", SECOND_LOOK], capture_output=True, text=True, env=child_env(PYTHONPATH=str(ROOT / "tests")), cwd=ROOT)
    seconds, more, n, off, width = map(float, done.stdout.split())
    assert n == 1 and off < 6 and abs(width - 35) < 4, done.stdout
    assert seconds < 20 and more < 300, done.stdout   # of all cores; MB


def test_a_face_of_35_pixels(here, pipe, caplog):
    """Found, refused with the reason, edited with force, read with a warning."""
    picture, _ = tiny(35, 700, 1500)
    Image.fromarray(picture).save("large.png")
    assert not [f for f in find_faces(picture) if not f.doubtful]
    code, said = command("edit", "large.png", "--au", "AU12=4", "-o", "out.png")
    assert code == 2 and "large.png: the face is only 3" in said and "pixels wide (60 are needed)" in said and "--force" in said and "no face" not in said
    code, said = command("edit", "large.png", "--au", "AU12=4", "--force", "--steps", 2, "-o", "out.png")
    assert code == 0 and "pixels wide" in said
    changed = (read_image("out.png") != picture).any(-1)
    assert 0 < changed.sum() < 60 * 60
    pipe.estimate("large.png")
    assert "large.png: the face is only 3" in caplog.text and "too small to trust" in caplog.text


def test_tiles_cover_a_picture():
    for shape in ((3000, 4000), (1024, 1025), (64, 5000), (1, 1)):
        seen = np.zeros(shape, bool)
        for x, y in tiles(*shape): seen[y:y + 1024, x:x + 1024] = True
        assert seen.all()


def test_forty_faces(face):
    small = cv2.resize(face, (170, 150), interpolation=cv2.INTER_AREA)
    crowd = np.concatenate([np.concatenate([small] * 8, 1)] * 5)
    found = usable_faces(crowd, "crowd", 40)
    assert len(found) == 40 and len({(round(f.box[0] / 170), round(f.box[1] / 150)) for f in found}) == 40
    assert "only 40 found" in complaint(lambda: cut_face(crowd, 128, face=41))


@pytest.mark.parametrize("x", (180, -140))
def test_a_face_at_the_border(pipe, face, x):
    """A part of the face lies outside: either it is refused with a reason, or only the seen pixels change."""
    points = usable_faces(face)[0].landmarks
    part = np.ascontiguousarray(face[:, int(points[36, 0]):] if x > 0 else face[:, :int(points[45, 0]) + 4])
    try: photo = pipe.photo(part, **QUICK)
    except ValueError as problem: assert "no face found" in str(problem) or "turned" in str(problem); return
    edit = photo.edit({"AU26": 5})
    assert edit.rgb.shape == part.shape and photo.warnings and not ((edit.rgb != part).any(-1) & ~inside(photo)).any()


# ---- HEIC and AVIF

def brands(*names):
    return struct.pack(">I", 12 + 4 * len(names)) + b"ftyp" + names[0] + b"\0\0\0\0" + b"".join(names[1:])


def test_heic_and_avif_are_known_by_their_content():
    assert box_kind(brands(b"heic", b"mif1", b"heic")) == box_kind(brands(b"mif1", b"heic")) == "HEIC"
    assert box_kind(brands(b"avif", b"mif1")) == box_kind(brands(b"mif1", b"avif", b"miaf")) == "AVIF"
    assert box_kind(brands(b"isom", b"mp42")) == box_kind(b"") == box_kind(b"\xff\xd8\xff\xe0" + bytes(30)) == ""


def test_heic_without_the_extra_names_it(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    for name in ("phone.heic", "phone.jpg", "phone"):
        (here / name).write_bytes(brands(b"heic", b"mif1", b"heic") + bytes(500))
        for command_ in ("edit", "estimate"):
            code, said = command(command_, name, *["--au", "AU12=4", "-o", "out.png"] * (command_ == "edit"))
            assert code == 2 and said.strip() == f"aueditnet: {name}: HEIC is read with an extra: pip install 'aueditnet[heic]', or convert it to JPEG or PNG"
        assert "aueditnet[heic]" in complaint(lambda: read_image(here / name)) and is_picture(here / name)
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    (here / "new.avif").write_bytes(brands(b"avif", b"mif1") + bytes(500))
    assert "AVIF is read by Pillow from version 11.3: pip install -U pillow" in complaint(lambda: PhotoFile.open(here / "new.avif"))


def test_heic_with_the_extra(here, pipe, face):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Model] = 6, "A telephone"
    Image.fromarray(np.rot90(face)).save("phone.heic", quality=95, exif=exif.tobytes())   # bytes: the turn is written as HEIC has it
    Image.OPEN.pop("HEIF", None)
    file = PhotoFile.open("phone.heic")
    assert file.format == "HEIF" and file.size == (340, 300) and abs(np.int16(file.rgb) - face).mean() < 6 and file.notes == []
    code, said = command("edit", "phone.heic", "--au", "AU26=5", "--steps", 2, "--force")
    assert code == 0 and "written to edited.png" in said
    with Image.open("edited.png") as out: assert out.size == (340, 300) and out.getexif()[ExifTags.Base.Model] == "A telephone"
    code, said = command("edit", "phone.heic", "--au", "AU26=5", "-o", "out.heic")
    assert code == 2 and "must end in one of .png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff, .avif" in said


def test_avif_there_and_back(here, pipe, face):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Model] = 6, "A telephone"
    Image.fromarray(np.rot90(face)).save("in.avif", quality=95, exif=exif)
    file = PhotoFile.open("in.avif")
    assert file.size == (340, 300) and abs(np.int16(file.rgb) - face).mean() < 6
    code, said = command("edit", "in.avif", "--au", "AU26=5", "--steps", 2, "--force")
    assert code == 0 and "written to edited.avif" in said
    with Image.open("edited.avif") as out:
        assert out.format == "AVIF" and out.size == (340, 300) and out.getexif()[ExifTags.Base.Model] == "A telephone"
        assert out.getexif()[ExifTags.Base.ImageDescription].startswith("Edited.") and abs(np.int16(out.convert("RGB"))[:, :40] - file.rgb[:, :40]).mean() < 3


# ---- limits

def test_no_warning_of_pillow_is_seen_and_the_limit_is_named(here, face, monkeypatch):
    Image.fromarray(face).save("in.png")
    pixels = face.shape[0] * face.shape[1]
    from aueditnet.files.label_files import read_grid
    (here / "truth.csv").write_text("image,subject,AU1\nin.png,A,1\n")
    def readers():
        yield lambda: PhotoFile.open("in.png")
        yield lambda: PhotoFile.open(io.BytesIO((here / "in.png").read_bytes()))
        yield lambda: read_image("in.png")
        yield lambda: cut_face("in.png", 300, align=True)
        yield lambda: read_grid(here, ["AU1"], lambda row: np.zeros(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels - 1)    # above: a warning; above twice as many: an error
        for read in readers(): read()
        assert not is_animation("in.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 2 - 1)
        for read in list(readers())[:4]:
            assert "million pixels are not read; make the picture smaller" in complaint(read)
    code, said = command("estimate", "in.png")
    assert code == 2 and said.count("\n") == 1 and "more than 0 million pixels" in said


def test_a_bomb_costs_nothing(here):
    """400 million pixels in 50 kB, and a header that announces 2^31 by 2^31."""
    Image.new("1", (20_000, 20_000)).save("bomb.png")
    (here / "header.png").write_bytes(png(2 ** 31 - 1, 2 ** 31 - 1, b"x"))
    for name in ("bomb.png", "header.png"):
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert "more than 179 million pixels are not read" in complaint(lambda: PhotoFile.open(name))
        assert time.monotonic() - began < 1 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def png(width, height, rows, depth=8, colour=2, clear=b""):
    """A PNG file; `clear`: the value that means transparency."""
    def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    more = chunk(b"tRNS", clear) if clear else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("colour, depth", ((0, 8), (2, 8), (0, 16), (2, 16)))
def test_a_colour_that_means_transparency(here, face, colour, depth):
    """PNG has it for grey and colour of 8 and 16 bit."""
    own = (np.uint16(face if colour else grey(face)) * (257 if depth == 16 else 1)).astype(">u2")
    key, bytes_ = np.array(own[5, 5], ">u2"), own if depth == 16 else own.astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in bytes_)
    (here / "in.png").write_bytes(png(face.shape[1], face.shape[0], rows, depth, colour, key.tobytes()))
    file = PhotoFile.open("in.png")
    clear = (own == key).reshape(*own.shape[:2], -1).all(-1)
    assert clear.any() and file.mode == ("RGBA" if colour else "LA") and ((file.pixels[..., -1] == 0) == clear).all()
    assert (file.rgb[clear] == 255).all() and (file.pixels[..., :-1].reshape(own.shape) == own).all() and file.pixels.dtype.itemsize * 8 == depth
    file.save(file.merge(255 - file.rgb), "out.png", edited_note())
    assert ((PhotoFile.open("out.png").pixels[..., -1] == 0) == clear).all()


def test_files_that_are_too_large_are_not_read(here, face, monkeypatch):
    Image.fromarray(face).save("in.png")
    with open("in.png", "r+b") as file: file.truncate(3_000_000_000)    # sparse: no disk is used
    assert "3 GB; pictures of more than 2 GB are not read" in complaint(lambda: PhotoFile.open("in.png"))


# ---- animations

def animation(face, n=3):
    return [np.roll(face, 3 * i, 1) for i in range(n)]


@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_an_animation_is_edited_as_one(here, face, suffix):
    frames, lengths = animation(face), [80, 120, 400]
    if suffix == ".gif": frames = [np.asarray(Image.fromarray(x).quantize(200).convert("RGB")) for x in frames]
    first, *rest = map(Image.fromarray, frames)
    first.save(f"in{suffix}", save_all=True, append_images=rest, duration=lengths, loop=2, **({"lossless": True} if suffix == ".webp" else {}))
    assert is_animation(f"in{suffix}")
    code, said = command("edit", f"in{suffix}", "--au", "AU26=5", "--steps", 2, "--force")
    assert code == 0 and "3 frames, 3 edited" in said and f"written to edited{suffix}" in said
    with frame_reader(f"edited{suffix}") as result: after = [frame.picture for frame in result.frames()]
    assert result.durations == lengths and result.loop == 2 and len(after) == 3
    for before, picture in zip(frames, after):
        changed = (picture != before).any(-1)
        assert 500 < changed.sum() < 0.4 * changed.size and not changed[:20].any() and not changed[-60:].any()
    content = (here / f"edited{suffix}").read_bytes()
    assert b"Edited. The facial expression" in content and b"AU26 = 5" in content


def test_an_animation_with_transparency_keeps_it(here, face):
    frames = [Image.fromarray(np.dstack([x, np.where(np.arange(x.shape[1]) < 30, 0, 255) * np.ones((len(x), 1))]).astype(np.uint8)) for x in animation(face, 3)]
    frames[0].save("in.png", save_all=True, append_images=frames[1:], duration=100)
    assert command("edit", "in.png", "--au", "AU26=5", "--steps", 2, "--force", "-o", "out.webp")[0] == 0
    with frame_reader("out.webp") as result: after = list(result.frames())
    assert len(after) == 3 and all((x.own.pixels[:, :30, 3] == 0).all() and (x.own.pixels[:, 30:, 3] == 255).all() for x in after)


def test_an_animation_as_a_video_and_what_is_refused(here, face):
    frames = [Image.fromarray(x) for x in animation(face, 3)]
    frames[0].save("in.gif", save_all=True, append_images=frames[1:], duration=100)
    code, said = command("edit", "in.gif", "--au", "AU26=5", "--no-tune", "--crop", "--refine", 0, "-o", "out.mp4")
    assert code == 0 and "3 frames" in said
    code, said = command("edit", "in.gif", "--au", "AU26=5", "-o", "out.jpg")
    assert code == 2 and "must end in one of" in said and ".gif" in said
    file = PhotoFile.open("in.gif")    # one picture is wanted: the first, and it is said how to have all
    assert file.notes == ["in.gif: has 3 pictures, only the first is taken; aueditnet edit FILE -o RESULT.gif edits all"]


def test_durations_that_a_format_cannot_hold(here):
    def converted(lengths, out):
        frames = [Image.new("RGB", (60, 40), (60 * k, 0, 0)) for k in range(len(lengths))]
        frames[0].save("in.webp", save_all=True, append_images=frames[1:], duration=lengths, lossless=True)
        with AnimationReader("in.webp") as source, AnimationWriter(out, source) as target:
            for frame in source.frames():
                target.write(frame.own.rgb, frame)
        return AnimationReader(out).durations
    assert converted([3, 16, 34, 0], "out.gif") == [10, 20, 30, 0]      # a GIF counts hundredths of a second
    assert converted([3, 16, 34, 0], "out.png") == [3, 16, 34, 0]
    for out in ("long.gif", "long.png"):
        with pytest.raises(InputError, match=rf"{out}: cannot be written .* 16000 s.*\.mp4"):
            converted([16_000_001, 100], out)
        assert not (here / out).exists()


def test_pages_are_no_animation(here, face):
    first = Image.fromarray(face)
    first.save("scan.tif", save_all=True, append_images=[first.filter(ImageFilter.BLUR)] * 2)
    assert not is_animation("scan.tif") and PhotoFile.open("scan.tif").notes == ["scan.tif: has 3 pictures, only the first is taken"]
    code, said = command("estimate", "scan.tif")
    assert code == 0 and "only the first is taken" in said
    first.save("still.gif")
    assert not is_animation("still.gif") and PhotoFile.open("still.gif").notes == []


# ---- every other kind

def encoded(picture, kind, **how):
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def kinds(face):
    """name: (content, greatest mean difference to the photograph in grey levels)."""
    picture = Image.fromarray(face)
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    yield "cmyk.jpg", encoded(picture.convert("CMYK"), "JPEG", quality=95), 8
    yield "cmyk.tif", encoded(picture.convert("CMYK"), "TIFF"), 2
    yield "progressive.jpg", encoded(picture, "JPEG", progressive=True, quality=95), 4
    yield "tail.jpg", encoded(picture, "JPEG", quality=95) + bytes(9999), 4
    yield "two.jpg", encoded(picture, "MPO", save_all=True, append_images=[picture.resize((90, 80))], quality=95), 4
    yield "truly-a-png.jpg", encoded(picture, "PNG"), 0
    yield "truly-a-jpg.png", encoded(picture, "JPEG", quality=95), 4
    yield "nosuffix", encoded(picture, "PNG"), 0
    yield "ycbcr.tif", encoded(picture.convert("YCbCr"), "TIFF"), 3
    yield "jpeg-in.tif", encoded(picture, "TIFF", compression="jpeg", quality=95), 4
    yield "lzw.tif", encoded(picture, "TIFF", compression="tiff_lzw"), 0
    yield "a.bmp", encoded(picture, "BMP"), 0
    yield "a.ppm", encoded(picture, "PPM"), 0
    yield "a.tga", encoded(picture, "TGA"), 0
    yield "a.jp2", encoded(picture, "JPEG2000"), 1
    yield "a.pcx", encoded(picture, "PCX"), 0
    yield "palette.png", encoded(picture.quantize(256), "PNG"), 12
    yield "still.gif", encoded(picture.quantize(256), "GIF"), 12
    yield "profile.png", encoded(picture, "PNG", icc_profile=wide.tobytes()), 0
    yield "no-profile.jpg", encoded(picture, "JPEG", quality=95, icc_profile=os.urandom(70_000)), 4
    yield "no-exif.jpg", encoded(picture, "JPEG", quality=95, exif=b"Exif\0\0" + os.urandom(400)), 4
    yield "deep.png", cv2.imencode(".png", np.uint16(face[..., ::-1]) * 257)[1].tobytes(), 0


def test_kinds_that_are_read(here, face):
    wrong = {}
    for name, content, most in kinds(face):
        (here / name).write_bytes(content)
        file = PhotoFile.open(name)
        off = abs(np.int16(file.rgb) - face).mean() if file.size == (340, 300) else np.inf
        plain = abs(np.int16(read_image(name)) - file.rgb).max()
        if off > most or plain > 1 or file.notes or is_animation(name) or not is_picture(name): wrong[name] = (off, plain, file.notes)
    assert wrong == {}


def test_kinds_that_are_edited(here, face, moved):
    """Each kind is written in its own format, or as PNG, with the size that it had; pixels outside the face stay."""
    at = (moved != face).any(-1)
    for name, content, most in kinds(face):
        (here / name).write_bytes(content)
        file = PhotoFile.open(name)
        suffix = {"JPEG": ".jpg", "TIFF": ".tif"}.get(file.format, ".png")
        file.save(file.merge(np.where(at[..., None], moved, file.rgb)), f"out{suffix}", edited_note())
        back = PhotoFile.open(f"out{suffix}")
        assert back.size == (340, 300) and back.mode == file.mode and abs(np.int16(back.rgb) - file.rgb)[~at].max() <= (40 if suffix == ".jpg" else 0), name
        assert abs(np.int16(back.rgb) - file.rgb)[at].max() > 20, name


REFUSED = {"empty.jpg": (b"", "the file is empty"), "text.png": (b"hello" * 50, "not a picture"), "zeros.png": (bytes(900), "not a picture"),
           "page.html": (b"<html></html>", "not a picture"), "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
           "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n", "a drawing (EPS); export it as PNG"),
           "raw.cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(200), "a kind of TIFF that is not read"), "zero.png": (png(0, 0, b""), "not a picture"),
           "one.png": (png(1, 1, b"\0abc"), "1x1 pixels are too small"), "archive.zip": (b"PK\3\4" + bytes(99), "not a picture"),
           "layers.psd": (b"8BPS" + bytes(99), "not a picture"), "new.jxl": (b"\xff\x0a" + bytes(99), "not a picture"),
           "half.jpg": (None, "cannot be read as a picture"), "junk.webp": (b"RIFF\0\1\0\0WEBPVP8 " + bytes(99), "read"),
           "junk.avif": (brands(b"avif", b"mif1") + bytes(99), "a damaged AVIF file"), "cut.png": (None, "cannot be read as a picture")}


@pytest.mark.parametrize("command_", ("edit", "estimate", "transfer"))
def test_files_that_are_no_pictures(here, face, command_):
    """One line that names the file, exit code 2, nothing written."""
    picture = Image.fromarray(face)
    contents = {name: content for name, (content, _) in REFUSED.items()}
    contents["half.jpg"], contents["cut.png"] = encoded(picture, "JPEG")[:6000], encoded(picture, "PNG")[:40_000]
    (here / "in").mkdir()
    for name, content in contents.items(): (here / "in" / name).write_bytes(content)
    (here / "in" / "folder.png").mkdir()
    os.mkfifo(here / "in" / "pipe.png")
    os.symlink("nowhere.png", here / "in" / "dangling.png")
    os.symlink("loop.png", here / "in" / "loop.png")
    more = {"folder.png": "is a folder", "pipe.png": "a pipe or a device", "dangling.png": "no such file", "loop.png": "symbolic link", "absent.png": "no such file",
            "x" * 300 + ".png": "name too long"}
    cases = {name: words for name, (_, words) in REFUSED.items()} | more
    if command_ == "estimate": cases["folder.png"] = "a folder; name the table"   # this command reads folders too
    if command_ == "transfer": cases = {name: cases[name] for name in ("text.png", "pipe.png", "half.jpg")}   # a model is loaded each time
    for name, words in cases.items():
        rest = {"edit": ["--au", "AU12=4", "-o", "out.png"], "estimate": [], "transfer": [ASTRONAUT, "-o", "out.png"]}[command_]
        code, said = command(command_, f"in/{name}", *rest)
        assert code == 2 and said.startswith(f"aueditnet: in/{name}: ") and words in said and said.count("\n") == 1, said
        assert not (here / "out.png").exists()
    assert "a pipe or a device" in complaint(lambda: PhotoFile.open("/dev/zero")) and "no file can have this name" in complaint(lambda: PhotoFile.open("a\0b.png"))


@pytest.mark.parametrize("name", ("with space.png", "new\nline.png", "Ωμέγα 顔.png", "😀.png", "-dash.png", "%41&;$(x) 'q\".png", ".hidden.png", "UPPER.PNG", "ü" + "x" * 240 + ".png"))
def test_names(here, pipe, face, name):
    Image.fromarray(face).save(here / name, "PNG")
    os.symlink(here / name, "link.png")
    assert (read_image(name) == face).all() and (PhotoFile.open("link.png").rgb == face).all()
    out = here / f"out {name[:100]}.png"
    code, said = command("edit", "--au", "AU26=5", "--crop", "--no-tune", "--refine", 0, "-o", out, "--", name)
    assert code == 0 and Image.open(out).size == (128, 128)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientations_of_the_camera(here, face, moved, turn):
    """A tag turns or mirrors the picture; no second look is needed, and the result is upright without a tag."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    T = Image.Transpose
    back = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}.get(turn)
    picture = Image.fromarray(face)
    (picture.transpose(back) if back is not None else picture).save("in.png", exif=exif)
    file = PhotoFile.open("in.png")
    assert (file.rgb == face).all() and quarters(usable_faces(file.rgb)[0].landmarks) == 0
    file.save(file.merge(moved), "out.png", edited_note())
    with Image.open("out.png") as out: assert out.getexif().get(ExifTags.Base.Orientation, 1) == 1 and (np.asarray(out) == moved).all()


def test_values_without_a_white_are_refused_with_the_remedy(here, face):
    Image.fromarray(face).convert("F").save("float.tif")
    Image.fromarray(np.int32(grey(face)) * 1000).save("int.tif")
    Image.fromarray(face).convert("LAB").save("lab.tif")
    for name, words in {"float.tif": "floating-point values", "int.tif": "32-bit values", "lab.tif": "CIELAB colours"}.items():
        assert words in (said := complaint(lambda: PhotoFile.open(name))) and "convert" in said and said.startswith(name)


def test_sides_that_a_format_cannot_hold(here, face):
    wide = cv2.copyMakeBorder(face, 0, 0, 0, 17_000, cv2.BORDER_CONSTANT)
    file = PhotoFile.open(wide)
    assert complaint(lambda: file.save(wide, "out.webp", "edited")).startswith("out.webp: WEBP holds at most 16383 pixels on a side, the picture has 17340x300")
    assert file.save(wide, "out.png", "edited") == [] and not (here / "out.webp").exists()


def test_a_text_of_megabytes_in_a_png(here, face):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 500_000)
    Image.fromarray(face).save("in.png", pnginfo=texts)
    assert (PhotoFile.open("in.png").rgb == face).all()


# ---- memory

MEMORY = """
import resource, sys
import numpy as np
from aueditnet.files.photo_files import PhotoFile
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
file = PhotoFile.open(sys.argv[1])
print(peak() - before, file.pixels.nbytes / 2 ** 20)
"""


@pytest.mark.parametrize("kind", ("RGB", "RGBA", "16 bit", "palette"))
def test_memory_of_reading(here, face, kind):
    """A picture needs its pixels, their RGB, its file, and no more than twice as much in passing."""
    whole = np.tile(face, (8, 9, 1))[:2400, :3000]
    picture = {"RGB": lambda: Image.fromarray(whole), "palette": lambda: Image.fromarray(whole[..., 0]).convert("P"),
               "RGBA": lambda: Image.fromarray(np.dstack([whole, whole[..., 0]]))}.get(kind)
    if picture: picture().save("in.png", compress_level=1)
    else: cv2.imwrite("in.png", np.uint16(whole) * 257, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    done = subprocess.run([sys.executable, "-c", MEMORY, "in.png"], capture_output=True, text=True, env=child_env(PYTHONPATH=str(ROOT)), cwd=here)
    more, pixels = map(float, done.stdout.split())
    size = 2400 * 3000 / 2 ** 20
    assert more < 2 * (pixels + 3 * size) + (here / "in.png").stat().st_size / 2 ** 20 + 20, done.stdout
