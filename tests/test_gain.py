"""The gain of an editor: measured without itself, inverted to a rising curve, and the evaluator that may set it."""
import numpy as np
import pytest
import torch
from conftest import close

from aueditnet.data import Codes
from aueditnet.editor import AUEditNet
from aueditnet.facs import AUS
from aueditnet.files.errors import InputError
from aueditnet.runs.gain import ASKED, KNOTS, calm_codes, fit_gain, instrument, inverse_response, measured_response

CURVE = torch.arange(8.).repeat(12, 1)


class Shy(AUEditNet):
    """Codes (B, 1, 12) are intensities; an edit arrives by `share`, and no further than `end`."""
    share, end = 0.5, 20.

    def __init__(self):
        super().__init__(1, 12, 4, 4, 2)
        self.eval().requires_grad_(False)

    def estimate(self, w): return w[:, 0]

    def edit(self, w, target, source=None):
        own = self.estimate(w)
        wanted = self.with_gain(torch.where(target.isnan(), own, target), own)
        return w + (self.share * (wanted - own)).clamp(max=self.end)[:, None]


class Model:
    """Pictures are codes. The evaluators read what they show; the first is broken."""
    evaluator, evaluator_b = staticmethod(lambda x: x * 0 - 1), staticmethod(lambda x: x)

    def edit_codes(self, w, target, editor): return editor.edit(w, target)
    def synthesize(self, w): return w[:, 0].numpy()
    def read(self, pictures, evaluator=None): return evaluator(pictures)


class Uncalibrated:
    calibration = None


@pytest.fixture
def codes():
    y = torch.tensor([[3.] + [0.] * 11, [0.] * 12, [1.] * 12, [torch.nan] * 11 + [0.5], [2.] * 12])
    return Codes(y.nan_to_num()[:, None], y, torch.tensor([0, 0, 0, 1, 1]))


def test_calm_frames_of_everyone(codes):
    assert calm_codes(codes).shape == (2, 1, 12) and torch.equal(calm_codes(codes)[0], codes.w[1])
    assert torch.equal(calm_codes(codes)[1], codes.w[3])       # an unknown label counts as 0
    assert len(calm_codes(codes, most=1)) == 1


def test_the_response_with_gain_is_the_request(codes):
    model, editor = Model(), Shy()
    close(measured_response(model, codes.w[1:2], editor)[:, 3], np.array(ASKED) / 2)
    assert fit_gain(model, codes, editor) is editor
    assert editor.response.shape == (12, len(KNOTS)) and (editor.response.diff() > 0).all()
    close(editor.response[:, :6], 2 * torch.arange(6.).expand(12, -1), 0.05)   # requests of up to 10 were measured
    before, after = (measured_response(model, codes.w[1:2], editor, range(6), gain=gain)[:, 7] for gain in (False, True))
    close(before, np.arange(6) / 2)                            # the gain itself is never measured
    close(after, np.arange(6), 0.05)
    assert editor.response is not None
    some = measured_response(model, codes.w[1:2], editor, (0, 2), aus=("AU26", "AU1"))
    assert some.shape == (2, 2)


def test_the_second_evaluator_sets_the_gain_and_only_calibrated_ones_do(codes):
    model, bare = Model(), Model()
    assert instrument(model) is model.evaluator_b
    model.evaluator_b = Uncalibrated()
    assert instrument(model) is model.evaluator
    model.evaluator_b = None
    assert instrument(model) is model.evaluator
    bare.evaluator, bare.evaluator_b = Uncalibrated(), None
    assert instrument(bare) is None
    assert fit_gain(bare, codes, Shy()).response is None
    other = object()                                           # an editor of another kind has no gain
    assert fit_gain(Model(), codes, other) is other


def test_the_gain_of_an_editor_that_ends_early(codes):
    """Beyond the end of the response the gain rises by its least step and no more."""
    editor = Shy()
    editor.end = 2.
    gain = fit_gain(Model(), codes, editor).response
    close(gain[:, :3], 2 * torch.arange(3.).expand(12, -1), 0.05)
    assert (gain.diff() > 0).all() and gain.max() < 6


def test_responses_that_fall_or_stand_still():
    at = np.array(ASKED)
    for reading in (at * 0, -at, np.where(at < 4, at, 4 - at), np.random.default_rng(0).normal(size=11)):
        gain = inverse_response(np.repeat(reading[:, None], 12, 1))
        assert gain.dtype == torch.float32 and gain.isfinite().all() and (gain[:, 0] == 0).all()
        assert (gain.half().float().diff() > 0).all()          # also in the precision of the file
    close(inverse_response(np.repeat(at[:, None], 12, 1)), CURVE, 0.02)


@pytest.mark.parametrize("measured, at", [
    (np.zeros((11, 3)), ASKED), (np.zeros((5, 12)), ASKED), (np.full((11, 12), np.nan), ASKED), (np.zeros((3, 12)), (1, 2, 3))])
def test_responses_that_cannot_be_inverted(measured, at):
    with pytest.raises(InputError, match="12 AUs"):
        inverse_response(measured, at)


def test_names_of_action_units():
    with pytest.raises(ValueError):
        measured_response(Model(), torch.zeros(1, 1, 12), Shy(), (0,), aus=("AU3",))
    assert len(AUS) == 12
