"""files.photo_files, files.picture_formats: each mode, depth, orientation and format of a photograph, there and back; metadata; the note."""
import io
import warnings
from functools import lru_cache

import cv2
import numpy as np
import pytest
from conftest import ROOT, complaint, run_python
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin, PngImagePlugin

from aueditnet.files.io import read_image
from aueditnet.files.photo_files import PhotoFile, edited_note
from aueditnet.files.picture_formats import FORMATS, SOURCE_TYPE, encode

H, W = 72, 90
NOTE = edited_note({"AU12": 4})
Exif, SUBJECT_AREA = ExifTags.Base, 37396


def noise(*channels, dtype=np.uint8, seed=0):
    """Smooth colours, so that lossy formats stay near; the highest and the lowest value occur."""
    small = np.random.default_rng(seed).random((6, 8, *channels)).astype(np.float32)
    x = cv2.resize(small, (W, H), interpolation=cv2.INTER_LINEAR)
    return np.rint((x - x.min()) / np.ptp(x) * np.iinfo(dtype).max).astype(dtype)


def edit(rgb):
    """A change of a box, in which some pixels become black and some white."""
    new = rgb.copy()
    new[20:50, 30:60] = (new[20:50, 30:60].astype(int) + 30).clip(0, 255)
    new[22, 33], new[23, 33] = 0, 255
    return new


INSIDE = np.zeros((H, W), bool)
INSIDE[20:50, 30:60] = True


@lru_cache(1)      # it holds the time at which it was made
def srgb():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def of_space(space):
    """A profile that claims another colour space."""
    profile = srgb()
    return profile[:16] + space + profile[20:]


def palette(transparent=None):
    picture = Image.fromarray(noise(3)).quantize(64)
    if transparent is not None:
        picture.info["transparency"] = transparent
    return picture


def half():
    alpha = noise(seed=1)
    alpha[:10], alpha[-30:] = 0, 255
    return alpha


def with_alpha(colour):
    return np.dstack([colour, half()])


MODES = {"RGB": lambda: Image.fromarray(noise(3)), "RGBA": lambda: Image.fromarray(with_alpha(noise(3))), "L": lambda: Image.fromarray(noise()),
         "LA": lambda: Image.fromarray(with_alpha(noise())), "I;16": lambda: Image.fromarray(noise(dtype=np.uint16)),
         "CMYK": lambda: Image.frombytes("CMYK", (W, H), noise(4).tobytes()), "P": palette, "P transparent": lambda: palette(3),
         "P half transparent": lambda: palette(bytes([0, 128])), "1": lambda: Image.fromarray(noise()).convert("1")}
MODES_OUT = {"P": "RGB", "P transparent": "RGBA", "P half transparent": "RGBA", "1": "L"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_keeps_what_is_not_edited(mode):
    picture = MODES[mode]()
    photo = PhotoFile.open(picture)
    assert photo.rgb.shape == (H, W, 3) and photo.rgb.dtype == np.uint8 and photo.size == (W, H)
    out = MODES_OUT.get(mode, mode)
    plain = picture if picture.mode == out else picture.convert(out)
    same = photo.merge(photo.rgb)
    assert same.mode == out and (np.asarray(same) == np.asarray(plain)).all()
    edited = edit(photo.rgb)
    merged = photo.merge(edited)
    assert merged.mode == out
    new, old = np.asarray(merged), np.asarray(plain)
    assert (new[~INSIDE] == old[~INSIDE]).all() and (new != old).any()
    again = PhotoFile.open(merged).rgb
    opaque = as_alpha(merged) == 255 if "A" in out else np.ones((H, W), bool)
    reached = edited.astype(int) if out not in ("L", "LA", "I;16") else np.asarray(Image.fromarray(edited).convert("L"))[..., None]
    assert abs(again.astype(int) - reached)[INSIDE & opaque].max() <= 1, "the edit is seen in the result"


def as_alpha(picture):
    return np.asarray(picture.getchannel("A"))


def test_transparent_places_show_white_and_keep_their_transparency():
    photo = PhotoFile.open(MODES["RGBA"]())
    assert (photo.rgb[:10] == 255).all()
    composed = Image.alpha_composite(Image.new("RGBA", (W, H), "white"), MODES["RGBA"]()).convert("RGB")
    assert abs(photo.rgb.astype(int) - np.asarray(composed)).max() <= 1
    merged = photo.merge(np.zeros_like(photo.rgb))
    assert (as_alpha(merged) == half()).all() and (np.asarray(merged)[:10] == np.asarray(MODES["RGBA"]())[:10]).all()


def test_edits_without_a_change_leave_rounded_places_alone():
    """16 bit and half transparent pixels do not take the rounded value back."""
    for picture in (MODES["I;16"](), MODES["RGBA"]()):
        photo = PhotoFile.open(picture)
        assert (np.asarray(photo.merge(photo.rgb.copy())) == np.asarray(picture)).all()


# Arrays

@pytest.mark.parametrize("dtype", (np.uint8, np.uint16))
@pytest.mark.parametrize("channels", ((), (3,), (4,)))
def test_arrays_give_arrays(channels, dtype):
    array = noise(*channels, dtype=dtype)
    photo = PhotoFile.open(array)
    merged = photo.merge(edit(photo.rgb))
    assert type(merged) is np.ndarray and merged.dtype == dtype and merged.shape == array.shape
    assert (merged[~INSIDE] == array[~INSIDE]).all() and (merged != array).any()
    assert (photo.merge(photo.rgb) == array).all()
    if dtype == np.uint16:
        assert (photo.rgb == PhotoFile.open(np.uint8((array.astype(int) + 128) // 257)).rgb).all()


def test_merging_leaves_the_source_alone():
    array = noise(3)
    photo = PhotoFile.open(array)
    merged = photo.merge(photo.rgb)
    merged[:] = 0
    assert (photo.rgb == noise(3)).all() and (array == noise(3)).all()


@pytest.mark.parametrize("array, says", [
    (np.zeros((70, 70, 3)), "HxW, HxWx3 or HxWx4 of uint8 or uint16, not 70x70x3 float64"), (np.zeros((70, 70, 5), np.uint8), "not 70x70x5 uint8"),
    (np.zeros((70, 70, 1), np.uint8), "not 70x70x1"), (np.zeros(70, np.uint8), "not 70 uint8"), (np.zeros((70, 70), bool), "not 70x70 bool"),
    (np.zeros((63, 70), np.uint8), "70x63 pixels are too small, at least 64"), (None, "uint8 or uint16")])
def test_unusable_arrays(array, says):
    assert says in complaint(lambda: PhotoFile.open(array))


def test_an_edit_of_another_size():
    photo = PhotoFile.open(noise(3), "me")
    for wrong in (photo.rgb[1:], photo.rgb.astype(float), photo.rgb[..., 0]):
        assert "me: the edited picture must be (72, 90, 3) uint8" in complaint(lambda: photo.merge(wrong))


# Depth

@pytest.mark.parametrize("suffix", (".png", ".tif"))
@pytest.mark.parametrize("channels", (3, 4))
def test_colours_of_16_bit(tmp_path, suffix, channels):
    deep = noise(channels, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), deep[..., [2, 1, 0, 3][:channels]])
    photo = PhotoFile.open(tmp_path / f"deep{suffix}")
    assert (photo.pixels == deep).all() and photo.mode == "RGBA"[:channels]
    edited = edit(photo.rgb)
    for out in ("out.png", "out.tif"):
        assert photo.save(photo.merge(edited), tmp_path / out, NOTE) == []
        back = PhotoFile.open(tmp_path / out)
        assert back.pixels.dtype == np.uint16 and (back.pixels == photo.merge(edited)).all() and (back.pixels[~INSIDE] == deep[~INSIDE]).all()
    if channels == 3:
        moved = back.pixels.astype(int) - deep
        assert set(np.unique(moved[30:50, 30:60][edited[30:50, 30:60] < 255])) == {30 * 257}
    [remark] = photo.save(photo.merge(edited), tmp_path / "out.webp", NOTE)
    assert "WEBP holds 8 bit" in remark and (PhotoFile.open(tmp_path / "out.webp").rgb[~INSIDE] == photo.rgb[~INSIDE]).all()


def grey_alpha_png(pixels):
    """A PNG of grey and transparency with 16 bit, which neither Pillow nor OpenCV writes."""
    import struct
    import zlib
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, 4, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_grey_with_transparency_of_16_bit(tmp_path):
    deep = noise(2, dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(grey_alpha_png(deep))
    photo = PhotoFile.open(tmp_path / "deep.png")
    assert photo.mode == "LA" and (photo.pixels == deep).all()
    merged = photo.merge(edit(photo.rgb))
    photo.save(merged, tmp_path / "out.tif", NOTE)
    photo.save(merged, tmp_path / "out.png", NOTE)
    assert (PhotoFile.open(tmp_path / "out.png").pixels[..., [0, 3]] == merged).all()     # as colour, whose channels are equal


def test_grey_of_16_bit_reads_as_its_rounded_value():
    for picture in (Image.fromarray(noise(dtype=np.uint16)), Image.fromarray(noise(dtype=np.uint16).astype(np.int32))):
        photo = PhotoFile.open(picture)
        assert (photo.rgb == np.uint8((noise(dtype=np.uint16).astype(int) + 128) // 257)[..., None]).all()
        assert (np.asarray(photo.merge(photo.rgb)) == noise(dtype=np.uint16)).all()


def test_values_without_a_white(tmp_path):
    Image.fromarray(noise().astype(np.float32)).save(tmp_path / "float.tif")
    cv2.imwrite(str(tmp_path / "colours.tif"), noise(3).astype(np.float32))
    Image.fromarray(noise().astype(np.int32) * 1000).save(tmp_path / "int.tif")
    for file, says in (("float.tif", "floating-point values are not read"), ("colours.tif", "a kind of TIFF that is not read"), ("int.tif", "32-bit values")):
        said = complaint(lambda: PhotoFile.open(tmp_path / file))
        assert said.startswith(str(tmp_path / file)) and says in said and "convert" in said
    assert "CIELAB" in complaint(lambda: PhotoFile.open(Image.new("LAB", (70, 70))))


# Orientation

TRANSPOSED = dict(zip(range(2, 9), (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE,
                                    Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix, mode", ((".jpg", "RGB"), (".png", "I;16"), (".tif", "RGBA"), (".webp", "RGB")))
def test_orientations(tmp_path, turn, suffix, mode):
    exif = Image.Exif()
    exif[Exif.Orientation] = turn
    picture = MODES[mode]()
    picture.save(tmp_path / f"turned{suffix}", exif=exif, dpi=(72, 144), **({"lossless": True} if suffix == ".webp" else {}))
    photo = PhotoFile.open(tmp_path / f"turned{suffix}")
    upright = picture if turn == 1 else picture.transpose(TRANSPOSED[turn])
    assert photo.size == upright.size and abs(photo.pixels.astype(int) - np.asarray(upright)).mean() <= (4 if suffix == ".jpg" else 0)
    photo.save(photo.merge(255 - photo.rgb), tmp_path / f"out{suffix}", NOTE)
    with Image.open(tmp_path / f"out{suffix}") as out:
        assert out.size == photo.size and out.getexif().get(Exif.Orientation, 1) == 1
        if "dpi" in out.info:
            assert [round(d) for d in out.info["dpi"]] == ([144, 72] if turn > 4 else [72, 144])


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_of_deep_colours(tmp_path, turn):
    deep, exif = noise(3, dtype=np.uint16), Image.Exif()
    exif[Exif.Orientation] = turn
    for kind, name in (("TIFF", "turned.tif"), ("PNG", "turned.png")):
        (tmp_path / name).write_bytes(encode(deep, "RGB", kind, exif))
        photo = PhotoFile.open(tmp_path / name)
        grey = Image.fromarray(deep[..., 0])
        assert (photo.pixels[..., 0] == np.asarray(grey if turn == 1 else grey.transpose(TRANSPOSED[turn]))).all()


# Formats

@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_every_format(tmp_path, mode, suffix):
    photo = PhotoFile.open(MODES[mode]())
    merged, out = photo.merge(edit(photo.rgb)), tmp_path / f"out{suffix}"
    remarks = photo.save(merged, out, NOTE)
    back, expected = PhotoFile.open(out), PhotoFile.open(merged)
    kind, kept = FORMATS[suffix], photo.mode
    lossless = kind in ("PNG", "TIFF") and mode != "CMYK" or kind == "TIFF"
    if lossless:
        assert back.mode == kept and back.pixels.dtype == expected.pixels.dtype and (back.pixels == expected.pixels).all() and remarks == []
    elif kind in ("JPEG", "AVIF"):
        assert abs(back.rgb.astype(int) - expected.rgb).mean() < (6 if mode in ("1", "CMYK") else 3)
    elif mode != "CMYK" and kind != "WEBP" or kind == "WEBP" and "A" not in kept:
        assert abs(back.rgb.astype(int) - expected.rgb).max() <= (0 if mode != "CMYK" else 255)
    said = " ".join(remarks)
    assert ("no transparency" in said) == (kept in ("LA", "RGBA") and kind in ("JPEG", "BMP"))
    assert ("8 bit" in said) == (mode == "I;16" and kind not in ("PNG", "TIFF"))
    assert ("no CMYK" in said) == (mode == "CMYK" and kind not in ("JPEG", "TIFF"))
    assert ("no note" in said) == (kind == "BMP")
    assert not kind == "JPEG" or Image.open(out).mode == {"I;16": "L", "CMYK": "CMYK", "L": "L", "LA": "L", "1": "L"}.get(mode, "RGB")


def test_webp_keeps_transparency_and_what_is_under_it(tmp_path):
    photo = PhotoFile.open(MODES["RGBA"]())
    photo.save(photo.merge(edit(photo.rgb)), tmp_path / "out.webp", NOTE)
    assert (PhotoFile.open(tmp_path / "out.webp").pixels == np.asarray(photo.merge(edit(photo.rgb)))).all()


def test_encode_gives_what_save_writes(tmp_path):
    photo = PhotoFile.open(MODES["RGBA"]())
    merged = photo.merge(edit(photo.rgb))
    photo.save(merged, tmp_path / "out.png", NOTE)
    assert photo.encode(merged, ".png", NOTE) == (tmp_path / "out.png").read_bytes()
    assert "must end in" in complaint(lambda: photo.encode(merged, ".gif", NOTE))


def test_unknown_format(tmp_path):
    photo = PhotoFile.open(noise(3))
    assert "out.gif: the result's name must end in one of .png" in complaint(lambda: photo.save(photo.rgb, tmp_path / "out.gif"))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    photo = PhotoFile.open(noise(3))
    (tmp_path / "out.png").write_bytes(b"old")
    monkeypatch.setattr("aueditnet.files.io.os.replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        photo.save(photo.rgb, tmp_path / "out.png", NOTE)
    assert [f.name for f in tmp_path.iterdir()] == ["out.png"] and (tmp_path / "out.png").read_bytes() == b"old"


# JPEG and WebP

@pytest.mark.parametrize("quality, sampling", ((60, 2), (85, 0), (98, 1)))
def test_jpeg_is_written_with_the_tables_of_its_source(tmp_path, quality, sampling):
    Image.fromarray(noise(3)).save(tmp_path / "in.jpg", quality=quality, subsampling=sampling)
    photo = PhotoFile.open(tmp_path / "in.jpg")
    photo.save(photo.merge(edit(photo.rgb)), tmp_path / "out.jpg", NOTE)
    before, after = Image.open(tmp_path / "in.jpg"), Image.open(tmp_path / "out.jpg")
    assert after.quantization == before.quantization and JpegImagePlugin.get_sampling(after) == sampling
    assert abs(np.asarray(after).astype(int) - np.asarray(before))[:16].mean() < 1
    photo.save(photo.merge(photo.rgb), tmp_path / "copy.jpg")
    assert (tmp_path / "copy.jpg").read_bytes() == (tmp_path / "in.jpg").read_bytes(), "not edited: the file itself"


def test_cmyk_jpeg(tmp_path):
    picture = MODES["CMYK"]()
    picture.save(tmp_path / "in.jpg", quality=95, icc_profile=of_space(b"CMYK"))
    photo = PhotoFile.open(tmp_path / "in.jpg")
    assert photo.mode == "CMYK" and abs(photo.pixels.astype(int) - np.asarray(picture)).mean() < 4
    photo.save(photo.merge(edit(photo.rgb)), tmp_path / "out.jpg", NOTE)
    after = Image.open(tmp_path / "out.jpg")
    assert after.mode == "CMYK" and after.info["icc_profile"] == of_space(b"CMYK")
    assert abs(np.asarray(after).astype(int) - photo.pixels)[60:].mean() < 1
    remarks = photo.save(photo.merge(edit(photo.rgb)), tmp_path / "out.png", NOTE)    # the profile is damaged: Pillow's own conversion
    assert "no CMYK" in remarks[0] and "icc_profile" not in Image.open(tmp_path / "out.png").info


def test_webp_is_lossless_where_its_source_is(tmp_path):
    Image.fromarray(noise(3)).save(tmp_path / "exact.webp", lossless=True)
    Image.fromarray(noise(3)).save(tmp_path / "lossy.webp", quality=50)
    for name in ("exact", "lossy"):
        photo = PhotoFile.open(tmp_path / f"{name}.webp")
        photo.save(photo.merge(edit(photo.rgb)), tmp_path / f"{name}2.webp", NOTE)
        content = (tmp_path / f"{name}2.webp").read_bytes()
        assert (b"VP8L" in content) == (name == "exact")
        assert (PhotoFile.open(tmp_path / f"{name}2.webp").rgb == edit(photo.rgb)).all() == (name == "exact")


# Metadata

@pytest.fixture
def camera():
    """EXIF data as a camera writes them."""
    exif = Image.Exif()
    exif.update({Exif.Make: "Maker", Exif.Model: "A camera", Exif.Orientation: 1, Exif.Software: "Editor 3", Exif.DateTime: "2020:01:02 03:04:05",
                 Exif.ImageDescription: "She looks sad", Exif.Copyright: "A. Photographer", Exif.XPComment: "faces".encode("utf-16-le")})
    exif.get_ifd(ExifTags.IFD.Exif).update({Exif.DateTimeOriginal: "2020:01:01 00:00:00", Exif.FNumber: 2.8, Exif.MakerNote: b"faces at 3, 4",
                                            SUBJECT_AREA: (1, 2, 3, 4), Exif.ImageUniqueID: "abc", Exif.SceneType: b"\1", Exif.UserComment: b"ASCII\0\0\0mine"})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (52.0, 30.0, 0.0)})
    return exif


@pytest.mark.parametrize("suffix", (".png", ".jpg", ".webp", ".tif"))
@pytest.mark.parametrize("source", (".png", ".jpg", ".webp", ".tif"))
def test_metadata_that_stay_true(tmp_path, camera, source, suffix):
    picture = Image.fromarray(noise(3))
    if source == ".tif":    # Pillow writes no EXIF directory into it
        (tmp_path / "in.tif").write_bytes(encode(noise(3), "RGB", "TIFF", camera, "She looks sad, regions, history", srgb(), (300, 300)))
    else:
        picture.save(tmp_path / f"in{source}", exif=camera, icc_profile=srgb(), dpi=(300, 300), xmp=b"<x:xmpmeta>regions, history</x:xmpmeta>")
    photo = PhotoFile.open(tmp_path / f"in{source}")
    photo.save(photo.merge(edit(photo.rgb)), out := tmp_path / f"out{suffix}", NOTE)
    with Image.open(out) as after:
        after.load()
        exif = after.getexif()
        details, place = exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
        assert after.info["icc_profile"] == srgb()
        if suffix != ".webp" and source != ".webp":
            assert [round(d) for d in after.info["dpi"]] == [300, 300]
    assert (exif[Exif.Make], exif[Exif.Model], exif[Exif.Copyright]) == ("Maker", "A camera", "A. Photographer")
    assert details[Exif.DateTimeOriginal] == "2020:01:01 00:00:00" and float(details[Exif.FNumber]) == 2.8
    assert place[ExifTags.GPS.GPSLatitudeRef] == "N" and [float(v) for v in place[ExifTags.GPS.GPSLatitude]] == [52, 30, 0]
    assert not {Exif.MakerNote, SUBJECT_AREA, Exif.ImageUniqueID, Exif.SceneType} & details.keys()
    assert not {Exif.Orientation, Exif.DateTime, Exif.XPComment} & (exif.keys() if suffix != ".tif" else set())
    assert exif[Exif.ImageDescription] == NOTE and exif[Exif.Software].startswith("aueditnet ")
    assert details[Exif.UserComment].endswith(NOTE.encode()) and (details[Exif.ExifImageWidth], details[Exif.ExifImageHeight]) == (W, H)
    content = out.read_bytes()
    assert SOURCE_TYPE.encode() in content and b"regions, history" not in content and b"She looks sad" not in content and b"Editor 3" not in content


@pytest.mark.parametrize("suffix", (".png", ".jpg", ".webp", ".tif"))
@pytest.mark.parametrize("mode", ("RGB", "L", "RGBA", "I;16", "LA"))
def test_the_note_is_there_in_every_mode(tmp_path, mode, suffix):
    photo = PhotoFile.open(MODES[mode]())
    photo.save(photo.merge(edit(photo.rgb)), out := tmp_path / f"out{suffix}", NOTE)
    with Image.open(out) as after:
        assert after.getexif()[Exif.ImageDescription] == NOTE
        xmp = str(after.getxmp() if suffix != ".tif" else after.tag_v2[700])
        if suffix == ".png":
            assert after.text["Description"] == NOTE and after.text["Software"].startswith("aueditnet")
        if suffix == ".jpg":
            assert after.info["comment"] == NOTE.encode()
    assert SOURCE_TYPE in xmp and "AU12 = 4" in xmp
    photo.save(photo.merge(photo.rgb), out)
    assert SOURCE_TYPE.encode() not in out.read_bytes(), "nothing was edited"


def test_deep_colours_carry_their_metadata(tmp_path, camera):
    deep = noise(3, dtype=np.uint16)
    photo = PhotoFile.open(deep)
    photo.how |= {"profile": srgb(), "dpi": (300.0, 300.0)}
    for out in (tmp_path / "out.png", tmp_path / "out.tif"):
        photo.save(deep, out, NOTE)
        with Image.open(out) as after:
            assert after.info["icc_profile"] == srgb() and [round(d) for d in after.info["dpi"]] == [300, 300]
            assert after.getexif()[Exif.ImageDescription] == NOTE
        assert SOURCE_TYPE.encode() in out.read_bytes() and (PhotoFile.open(out).pixels == deep).all()


@pytest.mark.parametrize("space, mode, suffix, kept", [(b"RGB ", "RGB", ".png", True), (b"GRAY", "L", ".png", True), (b"GRAY", "L", ".tif", True),
                                                       (b"GRAY", "L", ".webp", False), (b"RGB ", "RGBA", ".jpg", True), (b"CMYK", "CMYK", ".tif", True),
                                                       (b"GRAY", "LA", ".jpg", True), (b"RGB ", "L", ".png", False)])
def test_profiles_that_fit_are_kept(tmp_path, space, mode, suffix, kept):
    picture = MODES[mode]()
    picture.info["icc_profile"] = of_space(space)
    photo = PhotoFile.open(picture)
    merged = photo.merge(edit(photo.rgb))
    assert merged.info["icc_profile"] == of_space(space)
    photo.save(merged, tmp_path / f"out{suffix}", NOTE)
    assert ("icc_profile" in Image.open(tmp_path / f"out{suffix}").info) == kept


def test_texts_of_a_png(tmp_path):
    texts = PngImagePlugin.PngInfo()
    for key, words in {"Author": "Zoë", "Title": "Sad", "Software": "Editor", "Comment": "as it was"}.items():
        texts.add_itxt(key, words)
    Image.fromarray(noise(3)).save(tmp_path / "in.png", pnginfo=texts)
    photo = PhotoFile.open(tmp_path / "in.png")
    photo.save(photo.rgb, tmp_path / "out.png", NOTE)
    text = Image.open(tmp_path / "out.png").text
    assert text.keys() == {"Author", "Software", "Description", "XML:com.adobe.xmp"} and text["Author"] == "Zoë"


def test_a_date_of_its_own(tmp_path):
    """A camera that says only one date: it is the date of the photograph, not of the edit."""
    exif = Image.Exif()
    exif[Exif.DateTime] = "2020:01:02 03:04:05"
    Image.fromarray(noise(3)).save(tmp_path / "in.jpg", exif=exif)
    photo = PhotoFile.open(tmp_path / "in.jpg")
    photo.save(photo.rgb, tmp_path / "out.jpg", NOTE)
    after = Image.open(tmp_path / "out.jpg").getexif()
    assert Exif.DateTime not in after and after.get_ifd(ExifTags.IFD.Exif)[Exif.DateTimeOriginal] == "2020:01:02 03:04:05"


@pytest.mark.parametrize("exif", (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x05\0" * 40))
@pytest.mark.parametrize("suffix", (".jpg", ".png", ".webp"))
def test_damaged_metadata(tmp_path, exif, suffix):
    Image.fromarray(noise(3)).save(tmp_path / f"in{suffix}", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo = PhotoFile.open(tmp_path / f"in{suffix}")
        photo.save(photo.merge(edit(photo.rgb)), tmp_path / f"out{suffix}", NOTE)
    assert Image.open(tmp_path / f"out{suffix}").getexif()[Exif.ImageDescription] == NOTE


def test_a_note_names_what_was_asked_for():
    assert "AU12 = 4, AU6 = 2.5" in edited_note({"AU12": 4.0, "AU6": 2.5}) and "video" in edited_note(what="video") and edited_note().isascii()


# What cannot be read

def test_unreadable_files(tmp_path):
    Image.fromarray(noise(3)).save(tmp_path / "good.png")
    Image.fromarray(noise(3)).save(tmp_path / "good.jpg", quality=95)
    Image.fromarray(noise(3)).save(tmp_path / "good.tif", compression="tiff_lzw")
    Image.fromarray(noise(3)).save(tmp_path / "good.webp")
    cv2.imwrite(str(tmp_path / "deep.png"), noise(3, dtype=np.uint16))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    for name in ("good.png", "good.jpg", "good.tif", "good.webp", "deep.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(content[:len(content) * 2 // 3])
    for file, says in {"absent.png": "no such file", ".": "is a folder, not a picture", "text.png": "not a picture, or of an unknown format", "empty.jpg": "not a picture",
                       "phone.heic": "HEIC is read with an extra: pip install 'aueditnet[heic]'|a damaged HEIC file", "cut_good.png": "cannot be read", "cut_good.jpg": "cannot be read", "cut_good.tif": "TIFF|read",
                       "cut_good.webp": "read", "cut_deep.png": "cannot be read"}.items():
        said = complaint(lambda: PhotoFile.open(tmp_path / file))
        assert said.startswith(str(tmp_path / file)) and any(part in said for part in says.split("|")), said
    assert complaint(lambda: PhotoFile.open(tmp_path / "absent.png", "upload")).startswith("upload: no such file")
    assert "not a picture" in complaint(lambda: PhotoFile.open(io.BytesIO(b"nothing"), "upload"))
    with open(tmp_path / "good.png", "rb") as file:
        assert (PhotoFile.open(file).rgb == noise(3)).all()
    photo = PhotoFile.open(tmp_path / "good.png")
    assert PhotoFile.open(photo) is photo


def test_large_pictures_come_without_a_warning(tmp_path, monkeypatch):
    Image.fromarray(noise(3)).save(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H - 1)
        assert (PhotoFile.open(tmp_path / "large.png").rgb == noise(3)).all()
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        assert "million pixels are not read; make the picture smaller" in complaint(lambda: PhotoFile.open(tmp_path / "large.png"))


@pytest.mark.parametrize("suffix", (".gif", ".webp", ".png", ".tif"))
def test_only_the_first_of_several_pictures(tmp_path, suffix):
    frames = [Image.fromarray(noise(3, seed=i)) for i in range(3)]
    how = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"moving{suffix}", save_all=True, append_images=frames[1:], **how)
    photo = PhotoFile.open(tmp_path / f"moving{suffix}")
    [said] = photo.notes
    assert said.startswith(f"{tmp_path / f'moving{suffix}'}: has 3 pictures, only the first is taken")
    assert said.endswith(f"; aueditnet edit FILE -o RESULT{suffix} edits all") == (suffix != ".tif")
    assert abs(photo.rgb.astype(int) - noise(3)).mean() < 8
    assert PhotoFile.open(frames[0]).notes == []


def test_a_phone_s_second_picture(tmp_path):
    """MPO: a JPEG file with a smaller picture behind the photograph."""
    Image.fromarray(noise(3)).save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[Image.fromarray(noise(3, seed=1))])
    photo = PhotoFile.open(tmp_path / "phone.jpg")
    assert photo.notes == [] and photo.format == "JPEG" and photo.how["jpeg"]
    photo.save(photo.merge(edit(photo.rgb)), tmp_path / "out.jpg", NOTE)
    assert Image.open(tmp_path / "out.jpg").format == "JPEG"


# The plain reader, and videos

@pytest.mark.parametrize("compression", (None, "tiff_lzw"))
@pytest.mark.parametrize("mode", ("RGB", "RGBA", "L"))
def test_read_image_turns_a_tiff_once(tmp_path, mode, compression):
    exif = Image.Exif()
    exif[Exif.Orientation] = 6
    picture = MODES["RGB"]().convert(mode)
    picture.save(tmp_path / "turned.tif", exif=exif, compression=compression)
    assert (read_image(tmp_path / "turned.tif") == np.rot90(np.asarray(picture.convert("RGB")), -1)).all()


def test_read_image_says_nothing_of_large_pictures(tmp_path, monkeypatch):
    Image.fromarray(noise(3)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_image(tmp_path / "large.png") == noise(3)).all()


@pytest.mark.parametrize("suffix", (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"))
def test_videos_carry_the_note(tmp_path, suffix):
    import av
    from aueditnet.files.videofile import VideoReader, VideoWriter, make_clip
    make_clip(tmp_path / "in.mp4", [noise(3, seed=i) for i in range(3)], tone=None)
    for note in (None, "another note"):
        with VideoReader(tmp_path / "in.mp4") as video, VideoWriter(tmp_path / f"out{suffix}", video, note) as result:
            for frame in video.frames():
                result.write(frame.picture, frame)
        with av.open(str(tmp_path / f"out{suffix}")) as box:
            assert {k.lower(): v for k, v in box.metadata.items()}["comment"] == (note or edited_note(what="video"))


# Memory

MEASURE = """
import sys
from pathlib import Path
import numpy as np
from aueditnet.files.io import read_image
from aueditnet.files.photo_files import PhotoFile, edited_note
file, out, still = sys.argv[1:]
np.ones(10)
PhotoFile.open(still)
def peak(): return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
photo = PhotoFile.open(file)
edited = photo.rgb.copy()
edited[1000:2000, 1000:2000] //= 2
photo.save(photo.merge(edited), out, edited_note())
print((peak() - before) / 36e3)
"""


@pytest.mark.parametrize("mode, out, copies", (("RGB", "png", 6), ("RGB", "jpg", 6), ("RGBA", "png", 9), ("I;16", "png", 6), ("deep", "png", 10), ("deep", "tif", 10)))
def test_memory_for_12_megapixels(tmp_path, mode, out, copies):
    """Peak memory in copies of the photograph as RGB, 36 MB, all libraries included."""
    large = cv2.resize(PhotoFile.open(ROOT / "nbs" / "images" / "astronaut.jpg").rgb, (4000, 3000))
    picture = {"RGB": lambda: large, "RGBA": lambda: np.dstack([large, large[..., 0]]), "I;16": lambda: np.uint16(large[..., 0]) * 257,
               "deep": lambda: np.uint16(large) * 257}[mode]()
    file = tmp_path / ("large.jpg" if mode == "RGB" else "large.png")
    if mode == "deep": cv2.imwrite(str(file), picture)
    else: Image.fromarray(picture).save(file, **({} if mode == "RGB" else {"compress_level": 1}))
    result = run_python("-c", MEASURE, file, tmp_path / f"out.{out}", ROOT / "nbs" / "images" / "astronaut.jpg", cwd=tmp_path)
    assert float(result.stdout) < copies, result.stdout
