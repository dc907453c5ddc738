"""Inversion: heads, encoder, loss, refinement, inverter, and whole folders."""
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from aueditnet.files.errors import InputError, PhotoExtraMissing
from aueditnet.files.latents import LatentCache
from aueditnet.inversion import (Encoder, Inverter, StyleHead, bands, complete_basis, face_weight, gradient_eigenbasis,
                                 pyramid_loss, refine, run_heads, to_tensor, to_uint8)
from aueditnet.runs.folders import invert, open_source
from aueditnet.stylegan2 import Generator

near = torch.testing.assert_close
SIZES = dict(head_widths=[[40, 20, 20]] + [[40, 12, 12]] * 2 + [[40, 12, 12, 12]] * 4 + [[40, 12, 12, 12, 12]] * 3, dim=24,
             widths=(16, 16, 24, 32, 40), blocks=(1, 1, 2, 1))
VALUES = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)     # every value


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def encoder():
    return Encoder(**SIZES).eval().requires_grad_(False)


def small_generator(width=8, n_mlp=2):
    return Generator(64, style_dim=24, channels={r: width for r in (4, 8, 16, 32, 64)}, n_mlp=n_mlp).requires_grad_(False)


@pytest.fixture
def inverter(encoder):
    return Inverter(encoder, small_generator(), torch.randn(10, 24), size_in=64)


def test_heads_together_and_one_by_one():
    heads = nn.ModuleList([StyleHead([40, 12, 12, 12], dim=24) for _ in range(5)]).requires_grad_(False)
    maps = torch.randn(2, 40, 8, 8)
    one_by_one = torch.stack([h.linear(h.convs(maps).flatten(1)) for h in heads], 1)
    assert one_by_one.shape == (2, 5, 24)
    near(run_heads(heads, maps), one_by_one, atol=1e-5, rtol=0)
    near(heads[3](maps), one_by_one[:, 3], atol=1e-5, rtol=0)
    wide = nn.ModuleList([StyleHead([400, 300, 20], dim=24) for _ in range(3)]).requires_grad_(False)
    with patch.object(torch, "cat", side_effect=AssertionError):    # nothing is copied together
        assert run_heads(wide, torch.randn(2, 400, 4, 4)).shape == (2, 3, 24)


def test_encoder(encoder):
    x = torch.randn(2, 3, 64, 64).clamp(-1, 1)
    (base, deltas), codes, whole = encoder.split(x), encoder(x), encoder.state_dict()
    assert base.shape == (2, 24) and deltas.shape == (2, 9, 24) and codes.shape == (2, 10, 24)
    assert torch.equal(codes[:, 0], base)
    near(codes[:, 1:] - base[:, None], deltas, atol=1e-5, rtol=0)
    near(encoder(x[1:]), codes[1:], atol=1e-5, rtol=0)
    near(Encoder.from_state_dict(whole)(x), codes, atol=1e-5, rtol=0)
    for layer, levels in (("latlayer2", [7, 8, 9]), ("latlayer1", [3, 4, 5, 6, 7, 8, 9])):     # the middle map is part of the fine sum
        without = Encoder.from_state_dict({k: torch.zeros_like(v) if k.startswith(layer) else v for k, v in whole.items()})
        assert ((without(x) - codes).abs().amax((0, 2)) > 1e-4).nonzero().flatten().tolist() == levels
    six = Encoder(**SIZES | dict(head_widths=SIZES["head_widths"][:6]))      # fewer levels than a fine map needs
    assert Encoder.from_state_dict(six.state_dict())(x).shape == (2, 6, 24)


def test_encoder_files_that_do_not_fit(encoder):
    whole = encoder.state_dict()
    for state in ({}, Generator(8, 8, {4: 4, 8: 4}, 1).state_dict()):
        with pytest.raises(InputError, match="not an e4e encoder"):
            Encoder.from_state_dict(state)
    for change in ({"styles.3.convs.0.bias": torch.zeros(5)}, {"unheard.of": torch.zeros(1)}):
        with pytest.raises(InputError):
            Encoder.from_state_dict(whole | change)


def test_pictures_and_tensors():
    x = to_tensor(VALUES)
    assert (to_uint8(x)[0] == VALUES).all() and (x.min().item(), x.max().item()) == (-1, 1)
    outside = torch.tensor([-7., 7.]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert to_uint8(outside)[0, 0].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert to_tensor(np.stack([VALUES] * 2)).shape == (2, 3, 16, 16)
    assert to_tensor(torch.zeros(3, 4, 4)).shape == (1, 3, 4, 4)
    for wrong in (VALUES / 255, VALUES[..., :2], VALUES[0], VALUES[None, None]):
        with pytest.raises(InputError):
            to_tensor(wrong)


def test_bands_lose_nothing():
    x = torch.randn(1, 3, 64, 64)
    parts = bands(x, 4)
    assert [p.shape[-1] for p in parts] == [64, 32, 16, 8]
    whole = parts[-1]
    for p in parts[-2::-1]:
        whole = p + F.interpolate(whole, scale_factor=2, mode="bilinear", align_corners=False)
    near(whole, x, atol=1e-5, rtol=0)


def test_bands_separate_light_from_edges():
    i = torch.arange(128)
    checker = 0.1 * ((i[:, None] + i) % 2 * 2. - 1).expand(1, 3, 128, 128)
    energy = lambda x: [p.square().mean().item() for p in bands(x, 5)]
    assert max(energy(torch.full((1, 3, 128, 128), 0.1))[:-1]) < 1e-9 < 0.009 < energy(torch.full((1, 3, 128, 128), 0.1))[-1]
    assert energy(checker)[0] > 0.009 and max(energy(checker)[1:]) < 1e-9


def test_pyramid_loss():
    a, b = torch.rand(2, 1, 3, 128, 128) * 2 - 1
    assert pyramid_loss(a, a).item() == 0 and pyramid_loss(a, b) > pyramid_loss(a, (a + b) / 2) > 0
    near(face_weight(64, 1.25).mean(), torch.tensor(1.), atol=1e-5, rtol=0)
    wide, tight = (face_weight(128, zoom)[0, 0, :, 64].argmax() for zoom in (1.0, 1.25))
    assert wide < tight                                              # a wider crop shows the mouth higher up
    eyes, corner = a.clone(), a.clone()
    eyes[..., 50:60, 35:55] -= 0.5
    corner[..., 0:10, 0:20] -= 0.5
    assert pyramid_loss(eyes, a) > 3 * pyramid_loss(corner, a)
    spots, everywhere = torch.zeros(5000), torch.full((5000,), 0.02)  # equal absolute errors: the penalty of large ones is bounded
    spots[::50] = 1
    penalty = lambda e: ((e.square() + 0.5 ** 2).sqrt() - 0.5).mean()
    assert penalty(spots) / penalty(everywhere) < 0.7 * (spots.square().mean() / everywhere.square().mean())


def test_complete_basis():
    known = torch.linalg.qr(torch.randn(40, 40))[0]
    whole = complete_basis(known[:6])
    near(whole @ whole.T, torch.eye(40), atol=1e-4, rtol=0)
    near((whole[:6] @ known[:6].T).abs(), torch.eye(6), atol=1e-4, rtol=0)


def test_refinement():
    generator, true = small_generator(), torch.randn(3, 10, 24)
    pictures, start = generator.synthesize(true), true + 0.3 * torch.randn(3, 10, 24)
    error = lambda w: pyramid_loss(generator.synthesize(w), pictures).item()
    found = refine(generator, start, pictures, 30)
    assert error(found) < 0.6 * error(start)
    assert (refine(generator, start, pictures, 30, proximity=1000.) - start).abs().mean() < 0.5 * (found - start).abs().mean()
    near(refine(generator, start[:1], pictures[:1], 8), refine(generator, start, pictures, 8)[:1], atol=0.05, rtol=0)  # any batch
    assert torch.equal(refine(generator, start, pictures, 0), start)


def test_refinement_along_an_eigenbasis():
    generator, true = small_generator(), torch.randn(4, 10, 24)
    pictures, start = generator.synthesize(true), true + 0.3 * torch.randn(4, 10, 24)
    rows = gradient_eigenbasis(generator, [(start[:2], pictures[:2]), (start[2:], pictures[2:])], 3)
    assert rows.shape == (3, 240)
    near(rows @ rows.T, torch.eye(3), atol=1e-4, rtol=0)
    error = lambda w: pyramid_loss(generator.synthesize(w), pictures).item()
    assert error(refine(generator, start, pictures, 20, complete_basis(rows))) < 0.7 * error(start)


def test_inverter(inverter):
    x = torch.randn(2, 3, 64, 64).clamp(-1, 1)
    codes = inverter.encoder(x)
    near(inverter.invert(x), codes + inverter.latent_avg, atol=1e-5, rtol=0)
    assert inverter.synthesize(inverter.invert(x)).shape == (2, 3, 64, 64)
    assert inverter.synthesize(inverter.invert(x), size=16).shape == (2, 3, 16, 16)
    assert inverter.invert(VALUES).shape == (1, 10, 24)              # other sizes are brought to the encoder's
    assert not torch.equal(inverter.invert(x, steps=2), inverter.invert(x))
    near(Inverter(inverter.encoder, inverter.generator, inverter.latent_avg[0], 64).invert(x), codes + inverter.latent_avg[0])
    near(Inverter(inverter.encoder, inverter.generator, size_in=64).invert(x), codes)


def test_inverter_refuses_what_does_not_fit(inverter):
    with pytest.raises(InputError, match="do not fit the generator"):
        Inverter(inverter.encoder, Generator(32, 24, {4: 4, 8: 4, 16: 4, 32: 4}, 1))
    with pytest.raises(InputError, match="average latent"):
        Inverter(inverter.encoder, inverter.generator, torch.zeros(10, 23))


def test_fingerprint(inverter):
    """It stands for everything that a code depends on; for generator and preconditioner only where codes are refined."""
    encoder, generator, average = inverter.encoder, inverter.generator, inverter.latent_avg

    def changed(model, name, amount=1e-4):
        state = {k: v.clone() for k, v in model.state_dict().items()}
        state[name].view(-1)[0] += amount
        return type(model).from_state_dict(state)
    rows, other = torch.eye(240)[:3], torch.eye(240)[1:4]
    differ = [inverter, Inverter(changed(encoder, "body.2.res_layer.1.weight"), generator, average, 64),
              Inverter(changed(encoder, "input_layer.1.running_mean"), generator, average, 64),
              Inverter(encoder, generator, average + 1e-4, 64), Inverter(encoder, generator, average, 128),
              Inverter(encoder, generator, average, 64, zoom=1.25), Inverter(encoder, generator, average, 64, steps=3),
              Inverter(encoder, generator, average, 64, steps=4), Inverter(encoder, generator, average, 64, steps=3, preconditioner=rows),
              Inverter(encoder, generator, average, 64, steps=3, preconditioner=other),
              Inverter(encoder, changed(generator, "conv1.conv.weight"), average, 64, steps=3)]
    assert len({i.fingerprint() for i in differ}) == len(differ)
    same_weights = Encoder.from_state_dict(encoder.state_dict())     # its memory is laid out differently
    for same in (Inverter(same_weights, small_generator(4, 1), average, 64), Inverter(encoder, generator, average, 64, preconditioner=rows)):
        assert same.fingerprint() == inverter.fingerprint()


def test_bundled_inverter():
    inverter = Inverter.from_pretrained("heads128")
    size = inverter.generator.n_levels * inverter.generator.style_dim
    assert inverter.preconditioner.shape == (size, size) and inverter.eigenbasis.shape == (96, size)
    assert inverter.steps == 20 and Inverter.from_pretrained("heads128", steps=3).steps == 3


def test_e4e_files(inverter, tmp_path):
    x, file = torch.randn(1, 3, 64, 64).clamp(-1, 1), tmp_path / "e4e.pt"
    parts = {"encoder": inverter.encoder, "decoder": inverter.generator}
    state = {f"{part}.{k}": v for part, model in parts.items() for k, v in model.state_dict().items()}
    for flag in (True, False):
        torch.save({"state_dict": state, "latent_avg": inverter.latent_avg, "opts": {"start_from_latent_avg": flag}}, file)
        small = Inverter.from_e4e(file)
        small.size_in = 64
        near(small.invert(x), inverter.encoder(x) + inverter.latent_avg * flag, atol=1e-5, rtol=0)
        near(small.synthesize(inverter.encoder(x)), inverter.synthesize(inverter.encoder(x)), atol=1e-4, rtol=1e-4)
    decoder = {k: v for k, v in state.items() if k.startswith("decoder.")}
    for wrong in ({"g_ema": decoder}, {"state_dict": decoder}, [1, 2], {"state_dict": {**state, "encoder.unheard": torch.zeros(1)}},
                  {"state_dict": state, "latent_avg": torch.zeros(18, 512)}):
        torch.save(wrong, file)
        with pytest.raises(InputError):
            Inverter.from_e4e(file)


@pytest.fixture
def album(tmp_path):
    """A folder as one finds it: three crops, one of them below, and texts with and without a picture's name."""
    folder = tmp_path / "album"
    (folder / "more").mkdir(parents=True)
    for k, name in enumerate(("crop0.png", "crop1.png", "more/crop2.png")):
        picture = np.random.default_rng(k).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / name)
    (folder / "letter.jpg").write_text("Dear reader")
    (folder / "notes.txt").write_text("not called a picture")
    return folder


def test_folders(album, inverter, tmp_path):
    cache = invert(album, tmp_path / "codes", inverter, align=False)
    assert cache.manifest["names"] == ["crop0.png", "crop1.png", "letter.jpg", "more/crop2.png"] and list(cache.problems) == [2]
    crops = np.stack([np.array(Image.open(album / name)) for name in ("crop0.png", "crop1.png", "more/crop2.png")])
    near(cache[[0, 1, 3]], inverter.invert(crops), atol=1e-4, rtol=1e-4)
    invert(album, tmp_path / "codes", inverter, align=False)                         # nothing changed: the codes are taken as they are
    (album / "letter.jpg").write_text("Dear writer")                                 # another content of the same name and size
    with pytest.raises(InputError, match="digest"):
        invert(album, tmp_path / "codes", inverter, align=False)
    (album / "crop3.png").write_bytes((album / "crop1.png").read_bytes())
    with pytest.raises(InputError, match="pictures: 4, now 5"):
        invert(album, tmp_path / "codes", inverter, align=False)


def test_a_missing_detector_is_no_fault_of_the_pictures(album, inverter, tmp_path):
    with patch("aueditnet.align.find_faces", side_effect=PhotoExtraMissing("needs dlib")):
        with pytest.raises(PhotoExtraMissing):
            invert(album, tmp_path / "bare", inverter, align=True)
    with pytest.raises(InputError, match="not finished"):
        LatentCache(tmp_path / "bare")


def test_sources_that_cannot_be_inverted(album, tmp_path):
    (tmp_path / "empty").mkdir()
    for wrong, message in ((album / "none", "no such folder"), (album / "crop0.png", "is one picture"), (album / "notes.txt", "no frame can be read"),
                           (tmp_path / "empty", "no pictures")):
        with pytest.raises(InputError, match=message):
            open_source(wrong)
