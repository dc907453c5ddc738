"""Counterfactual renders: which intensities, one person in all of them, and a cache that knows what it holds."""
import numpy as np
import pytest
import torch

from aueditnet.data import SUBJECTS
from aueditnet.facs import AUS
from aueditnet.files.errors import InputError
from aueditnet.files.io import cache_dir
from aueditnet.synth import counterfactual
from aueditnet.synth.counterfactual import MIXES, NEGATIVE, SINGLE, expressions, render_subject, rendered_codes, rendered_grid


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "cache"))


def test_expressions():
    y = expressions("SN001")
    single = y[1:1 + 12 * len(SINGLE)].reshape(12, len(SINGLE), 12)
    assert y.shape == (1 + 12 * len(SINGLE) + MIXES, 12) and y.dtype == np.float32 and not y[0].any()
    assert all((single[k] == np.eye(12)[k] * np.array(SINGLE)[:, None]).all() for k in range(12))
    assert ((y[-MIXES:] > 0.5).sum(1) >= 2).all() and (y[-MIXES:] >= 0).all() and (y[-MIXES:] <= 5).all()
    assert (y == expressions("SN001")).all() and (y[-MIXES:] != expressions("SN002")[-MIXES:]).any()
    assert expressions("SN032", (2.,), 0).shape == (13, 12)
    with pytest.raises(InputError, match="not a subject of synthdisfa"): expressions("SN099")


def test_negative_intensities_have_words_or_none():
    assert set(NEGATIVE) == set(AUS) and sum(v is None for v in NEGATIVE.values()) == 3


def test_one_action_unit_below_zero():
    neutral, lids, same = render_subject("SN001", [np.zeros(12), np.eye(12)[3] * -2, np.zeros(12)])
    changed = abs(neutral.astype(int) - lids).max(-1)
    assert neutral.shape == (128, 128, 3) and (neutral == same).all()
    eyes, below = changed[56:64, 24:104].mean(), changed[64:, 24:104].mean()      # the crop follows the eyes a little
    assert changed.max() > 30 and eyes > 3 * below


def test_a_grid_is_rendered_once(monkeypatch):
    drawn = []
    def render(subject, intensities):
        drawn.append(subject)
        return np.stack([np.full((128, 128, 3), 10 * (1 + SUBJECTS.index(subject)), np.uint8) for _ in intensities])
    monkeypatch.setattr(counterfactual, "render_subject", render)
    monkeypatch.setattr(counterfactual, "_probe", lambda: "one")
    folder, people = cache_dir() / "counterfactual", SUBJECTS[:2]
    for s in people: counterfactual._subject_file(s, expressions(s, (2.,), 1), folder)
    x, y, who = rendered_grid(people, (2.,), 1)                # everything is there: no process is started
    assert drawn == people and x.shape == (28, 128, 128, 3) and y.shape == (28, 12) and who.tolist() == [s for s in people for _ in range(14)]
    assert (x[:14] == 10).all() and (x[14:] == 20).all()
    counterfactual._subject_file(people[0], expressions(people[0], (2.,), 1), folder)
    assert drawn == people
    monkeypatch.setattr(counterfactual, "_probe", lambda: "other")     # another renderer
    counterfactual._subject_file(people[0], expressions(people[0], (2.,), 1), folder)
    assert drawn == [*people, people[0]]


def test_nobody_and_strangers_are_refused():
    with pytest.raises(InputError, match="pictures of nobody"): rendered_grid([])
    with pytest.raises(InputError, match="'SN099'"): rendered_grid(["SN001", "SN099"])


class Inverter:
    zoom = 1.25
    def fingerprint(self): return "toy"
    class generator: n_levels, style_dim = 1, 3
    def invert(self, x): return torch.as_tensor(x).float()[:, 64, 20].unsqueeze(1)     # a pixel on the left


def test_codes_of_a_grid(monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 256, (10, 128, 128, 3), dtype=np.uint8)
    y = np.random.default_rng(1).random((10, 12), np.float32)
    monkeypatch.setattr(counterfactual, "rendered_grid", lambda *how: (pictures, y, None))
    codes = rendered_codes(["SN001", "SN002"], Inverter(), 32)
    assert codes.spans() == {0: (0, 5), 1: (5, 5)} and (codes.y.numpy() == y).all()
    assert (codes.w[:, 0].numpy() == pictures[:, 64, 20]).all() and (codes.mirrored[:, 0].numpy() == pictures[:, 64, 107]).all()
    assert codes.pictures.shape == (10, 3, 32, 32) and codes.pictures.dtype == torch.uint8
    means = pictures.mean((1, 2))
    assert abs(codes.pictures.float().mean((2, 3)).numpy() - means).max() < 3
    other = Inverter()
    other.zoom = 1.
    with pytest.raises(InputError, match="crop zoom"): rendered_codes(["SN001"], other, 32)
