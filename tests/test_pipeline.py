"""The pipeline's rules. None depends on what the networks have learnt, so they are tested on small networks with random weights."""
from pathlib import Path

import numpy as np
import pytest
import torch
from fastcore.test import test_close as assert_close
from PIL import Image

from aueditnet.editor import AUEditNet
from aueditnet.facs import AUS
from aueditnet.files.errors import InputError
from aueditnet.inversion import Encoder, Inverter, to_tensor
from aueditnet.losses import perceptual_distance
from aueditnet.pipeline import FaceModel, Pipeline, Pixels
from aueditnet.recognition import IRSE50, AUNet, IRSEBody, identity_crop
from aueditnet.stylegan2 import Generator

FACES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
REQUESTS = [{"AU12": 4}, {}, {"AU4": -1.5, "AU26": 6}]


def untrained(size=32, seed=0):
    """A pipeline of small networks with seeded random weights."""
    torch.manual_seed(seed)
    generator = Generator(size, 16, {4: 8, 8: 8, 16: 8, 32: 8}, n_mlp=2)
    encoder = Encoder([[16] * n for n in (2, 2, 2, 3, 3, 3, 3, 4)], 16, (16,) * 5, (1, 1, 1, 1))
    networks = generator, encoder, AUEditNet(generator.n_levels, 16), AUNet((4, 4), 16, 8), IRSE50((16, 16, 16), (1, 1), 8, 28)
    generator, encoder, editor, evaluator, identity = [n.eval().requires_grad_(False) for n in networks]
    return Pipeline(Inverter(encoder, generator, size_in=size, zoom=1.25), editor, evaluator, identity)


@pytest.fixture(scope="module")
def pipe():
    return untrained()


def same(a, b):
    """Equal edits, up to the rounding of one grey level."""
    assert max(abs(np.int16(a.image) - b.image).max(), abs(np.int16(a.inversion) - b.inversion).max()) <= 1
    assert list(a.requested) == list(b.requested)
    for x, y in ((a.source, b.source), (a.requested, b.requested), (a.measured, b.measured)):
        assert_close([*x.values()], [*y.values()], eps=1e-2)
    assert_close(a.identity, b.identity, eps=1e-2)


def test_an_empty_request_returns_the_inversion(pipe):
    empty = pipe.edit(FACES[0], {})
    assert (empty.image == empty.inversion).all() and empty.requested == {}
    own = pipe.edit(FACES[0], empty.source)     # as does a request for the source intensities
    assert (own.image == own.inversion).all()
    assert (pipe.edit(FACES[0], relative={"AU4": 0}).image == empty.image).all()
    assert (pipe.edit(FACES[0]).image == empty.image).all()


def test_relative_adds_to_the_estimate(pipe):
    source = pipe.estimate(FACES[0])
    relative = pipe.edit(FACES[0], {"AU1": 1}, relative={"AU12": +2})
    assert_close(relative.requested["AU12"], source["AU12"] + 2, eps=1e-5)
    same(relative, pipe.edit(FACES[0], {"AU1": 1, "AU12": source["AU12"] + 2}))


def test_a_batch_is_one_edit_after_the_other(pipe):
    """Without refinement, as here. Refinement amplifies rounding, which depends on the size of the batch."""
    assert pipe.inverter.steps == 0
    for a, b in zip(pipe.edit_batch(list(FACES), REQUESTS), [pipe.edit(f, r) for f, r in zip(FACES, REQUESTS)], strict=True):
        same(a, b)
    for a, b in zip(pipe.edit_batch(FACES, {"AU9": 3}), [pipe.edit(f, {"AU9": 3}) for f in FACES], strict=True):
        same(a, b)
    for a, b in zip(pipe.edit_batch(FACES[0], REQUESTS), [pipe.edit(FACES[0], r) for r in REQUESTS], strict=True):
        same(a, b)
    assert len(pipe.edit_batch(FACES[0], None)) == 1 and pipe.edit_batch([], {"AU9": 3}) == [] and pipe.edit_batch(FACES[0], []) == []


def test_transfer_requests_all_that_the_target_shows(pipe):
    moved = pipe.transfer(FACES[0], FACES[1])
    assert_close([*moved.requested.values()], [*pipe.estimate(FACES[1]).values()], eps=1e-4)
    own = pipe.transfer(FACES[0], FACES[0])
    assert_close([*own.source.values()], [*pipe.estimate(FACES[0]).values()], eps=1e-4)
    same(own, pipe.edit(FACES[0], own.source))


@pytest.mark.parametrize("wrong, message", [({"AU3": 1}, "AU3"), ({"AU12": "big"}, "AU12=big"), ({"AU12": float("nan")}, "not a number"),
                                            ([3], r"not \[3\]|not 3"), ("AU12=4", "given as a dict")])
def test_bad_requests(pipe, wrong, message):
    with pytest.raises(InputError, match=message):
        pipe.edit(FACES[0], wrong)


def test_requests_that_do_not_fit(pipe):
    with pytest.raises(InputError, match="AU1 is requested both"):
        pipe.edit(FACES[0], {"AU1": 1}, relative={"AU1": 1})
    with pytest.raises(InputError, match="3 edits need 3 dicts of intensities, not 1"):
        pipe.edit_batch(list(FACES), [{}])
    with pytest.raises(InputError, match="2 edits need 2 dicts of intensities, not 1"):
        pipe.edit_batch(FACES[0], [{}, {}], [{}])
    with pytest.raises(InputError):
        pipe.edit(FACES[0].astype(float), {})


def test_names_of_action_units_may_be_short(pipe):
    assert pipe.edit(FACES[0], {"au12": 1, "4": 2}).requested == {"AU4": 2.0, "AU12": 1.0}


# alignment: the model's own size is taken as it is, everything else goes through the detector, and `align` overrides both

def none_found(image, name="image", wanted=1):
    raise InputError(f"no face found in {name}")


def at_the_eyes(image, name="image", wanted=1):
    points = np.zeros((1, 68, 2), np.float32)
    points[0, 36:42], points[0, 42:48], points[0, [48, 54]] = (20, 27.4), (43.2, 27.4), (31.5, 40)
    return points


def test_when_a_face_is_looked_for(pipe, monkeypatch, tmp_path):
    monkeypatch.setattr("aueditnet.align.detect_landmarks", none_found)
    larger = FACES[0].repeat(2, 0).repeat(2, 1)
    assert (pipe.face(FACES[0]) == FACES[0]).all() and (pipe.face(larger, align=False) == FACES[0]).all()
    for image, how in [(larger, {}), (FACES[0], {"align": True})]:
        with pytest.raises(InputError, match="no face found in image"):
            pipe.face(image, **how)
    with pytest.raises(InputError, match="64x40 pixels; without alignment a square face crop is needed"):
        pipe.face(larger[:40], align=False)
    with pytest.raises(InputError, match="no face found in image 2"):
        pipe.edit_batch([FACES[0], larger], {})
    Image.fromarray(larger).save(tmp_path / "me.png")
    with pytest.raises(InputError, match="me.png"):
        pipe.face(tmp_path / "me.png")
    Image.fromarray(FACES[0]).save(tmp_path / "crop.png")
    same(pipe.edit(tmp_path / "crop.png", {"AU5": 2}), pipe.edit(Image.fromarray(FACES[0]), {"AU5": 2}))


@pytest.mark.parametrize("call", ["edit", "estimate", "transfer"])
def test_a_face_with_a_number_is_looked_for(pipe, monkeypatch, call):
    monkeypatch.setattr("aueditnet.align.detect_landmarks", none_found)
    def run(face):
        return pipe.transfer(FACES[1], FACES[0], target_face=face) if call == "transfer" else getattr(pipe, call)(FACES[0], face=face)
    with pytest.raises(InputError, match="no face found"):
        run(1)
    with pytest.raises(InputError, match="numbered 1, 2"):
        run(0)


def test_no_face_without_alignment(pipe):
    with pytest.raises(InputError, match="face 2"):
        pipe.edit(FACES[0], align=False, face=2)


def test_a_face_that_was_found_is_cut_out(pipe, monkeypatch):
    monkeypatch.setattr("aueditnet.align.detect_landmarks", at_the_eyes)
    assert pipe.face(FACES[0].repeat(2, 0).repeat(2, 1)).shape == (32, 32, 3)
    assert abs(np.int16(pipe.face(np.full((2000, 3000, 3), 77, np.uint8))) - 77).max() <= 1


# the model

def test_unknown_models():
    for kind in (FaceModel, Pipeline):
        with pytest.raises(InputError, match="'heads64': neither a folder nor a bundled model .heads128"):
            kind.from_pretrained("heads64")


def test_parts_can_be_exchanged():
    pixels = Pixels()
    changed = FaceModel.from_pretrained("heads128", inverter=pixels, evaluator_b=None)
    assert changed.inverter is pixels and changed.evaluator_b is None and (changed.size, changed.zoom) == (128, 1.25)
    frames = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    assert (changed.synthesize(changed.invert(frames)) == frames).all()     # an editor of pictures loses nothing
    assert changed.distance(frames, frames).tolist() == [0, 0] and (changed.distance(frames, frames[::-1]) > 0).all()


def test_refinement_is_the_users_choice():
    assert Pipeline.from_pretrained("heads128", 0).inverter.steps == 0 < Pipeline.from_pretrained("heads128").inverter.steps


def test_old_names_of_the_evaluators(pipe):
    second = Pipeline(pipe.inverter, pipe.editor, pipe.evaluator, pipe.identity_evaluator, "second")
    assert second.judge is second.evaluator and second.judge_b == second.evaluator_b == "second"


def test_batches_do_not_matter(pipe):
    small = Pipeline(pipe.inverter, pipe.editor, pipe.evaluator, pipe.identity_evaluator, batch=2)
    assert abs(small.read(FACES) - pipe.read(FACES)).max() < 1e-4 and abs(small.embed(FACES) - pipe.embed(FACES)).max() < 1e-4
    assert abs(np.int16(small.synthesize(small.invert(FACES))) - pipe.synthesize(pipe.invert(FACES))).max() <= 1


def test_an_edit_in_words_and_pictures(pipe, tmp_path):
    edit = pipe.edit(FACES[0], {"AU12": 4, "AU1": 2.5})
    assert "AU1 2.5 (measured" in repr(edit) and "identity" in repr(edit) and "empty request" in repr(pipe.edit(FACES[0]))
    Path(tmp_path, "row.png").write_bytes(edit._repr_png_())
    assert Image.open(tmp_path / "row.png").width > 3 * 32
    assert set(edit.measured) == set(edit.source) == set(AUS) and -1 <= edit.identity <= 1


def test_no_pictures_give_no_results(pipe):
    """Every reading of zero pictures has the shape of the others."""
    for none in (FACES[:0], []):
        w = pipe.invert(none)
        assert w.shape == (0, 8, 16) and pipe.synthesize(w).shape == (0, 32, 32, 3)
        assert pipe.read(none).shape == (0, 12) and pipe.embed(none).shape == (0, 8) and pipe.distance(none, none).shape == (0,)
        assert pipe.edit_codes(w, np.float32([4] * 12)).shape == w.shape and pipe.estimate_codes(w).shape == (0, 12)
    assert pipe.edit_batch([], {"AU12": 4}) == pipe.edit_batch(FACES[:0]) == pipe.edit_batch(FACES[0], []) == []
    with pytest.raises(InputError, match="2 pictures and 1 others"):
        pipe.distance(FACES[:2], FACES[:1])


def test_distances_are_seen_at_the_networks_own_side():
    """A slim identity network made for 48 px gives the distance of its own pictures; ArcFace keeps its 112 px."""
    torch.manual_seed(0)
    for network, side in ((IRSE50((16, 16, 16, 16), (1, 1, 1), 8, 6), 48), (IRSE50((8, 8, 8, 8, 8), (1, 1, 1, 1), 8, 7), 112)):
        network.eval()
        model, seen = FaceModel(Pixels(128), identity_evaluator=network), []
        network.input_layer.register_forward_hook(lambda module, x, out: seen.append(x[0].shape[-1]))
        big = np.random.default_rng(1).integers(0, 256, (2, 128, 128, 3), np.uint8)
        far = model.distance(big, big[::-1])
        model.embed(big)
        assert set(seen) == {side} == {network.side_in}
        crops = [torch.nn.functional.adaptive_avg_pool2d(identity_crop(to_tensor(x), 1.25), side) for x in (big, big[::-1].copy())]
        with torch.no_grad():
            own = perceptual_distance(*([*IRSEBody.stages(network, x)] for x in crops))
        assert_close(far, own.numpy(), eps=1e-5)


@pytest.mark.parametrize("face", [0, -1, 1.5, "1", True, float("nan")])
def test_numbers_that_no_face_has(pipe, face):
    with pytest.raises(InputError, match="faces are numbered 1, 2, ..."):
        pipe.edit(FACES[0], {"AU12": 4}, face=face)
