"""Requests as text, names and vectors: what is accepted, and the one line that a mistake is answered with."""
import numpy as np
import pytest

from aueditnet.facs import AUS, LETTERS, MUSCLES, NAMES, PRESETS, parse, to_dict, to_vector
from aueditnet.files.errors import InputError


def test_tables_belong_together():
    assert len(AUS) == 12 and set(NAMES) == set(MUSCLES) == set(AUS)
    assert sorted(AUS, key=lambda au: int(au[2:])) == list(AUS)
    assert all(set(preset) <= set(AUS) and all(0 < value <= 5 for value in preset.values()) for preset in PRESETS.values())
    assert not any(au in preset for preset in PRESETS.values() for au in ("AU17", "AU25"))
    assert PRESETS["surprise"]["AU5"] == LETTERS.index("B")


@pytest.mark.parametrize("text, expected", [
    ("AU12=4,AU6=2.5", {"AU12": 4.0, "AU6": 2.5}),
    (" au01=0 ,AU26 = 7.25", {"AU1": 0.0, "AU26": 7.25}),
    ("au6 = 1, 26=-0.5", {"AU6": 1.0, "AU26": -0.5})])
def test_parse(text, expected):
    assert parse(text) == expected and list(parse(text)) == list(expected)


@pytest.mark.parametrize("text, words", [
    ("AU3", ("AU3", "not one of the twelve", *AUS)), ("AU3=1", ("AU3", "not one of the twelve", *AUS)),
    ("smile=2", ("smile", "not one of the twelve")), ("AU\u0661=2", ("not one of the twelve",)),   # an Arabic digit
    ("AU12=big", ("AU12=big", "not a number")), ("AU12=", ("AU12=", "not a number")), ("AU12=nan", ("not a number",)),
    ("AU12=inf", ("not a number",)), ("AU12=1=2", ("not a number",)), ("AU12", ("no intensity",)),
    ("AU12=1,au12=2", ("AU12", "twice")), ("AU12=4,", ("empty item",)), (",", ("empty item",)),
    ("", ("no action unit given",)), ("   ", ("no action unit given",))])
def test_parse_refuses_in_one_line(text, words):
    with pytest.raises(InputError) as problem:
        parse(text)
    message = str(problem.value)
    assert all(word in message for word in words) and "\n" not in message


def test_vectors():
    assert to_vector({}).dtype == np.float32 and to_vector({}).shape == (12,)
    own = to_vector({"AU4": 1.5, "AU25": 2})
    smile = to_vector(PRESETS["happiness"], base=own)
    assert [smile[AUS.index(au)] for au in ("AU4", "AU6", "AU12", "AU25")] == [1.5, 3.0, 4.0, 2.0]
    assert (to_vector(to_dict(smile)) == smile).all()
    assert own[AUS.index("AU12")] == 0   # the base is left as it was


@pytest.mark.parametrize("call", [
    lambda: to_vector({"AU3": 1}), lambda: to_vector({"AU1": "x"}), lambda: to_vector({"AU1": float("nan")}),
    lambda: to_vector({}, base=[0, 1]), lambda: to_dict([1, 2, 3])])
def test_vectors_refuse(call):
    with pytest.raises(InputError):
        call()


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


def test_requests_as_users_make_them():
    from aueditnet.facs import N_DRAWS, REQUESTED, draw_requests
    rng = np.random.default_rng(0)
    y, draw = rng.integers(0, 6, (4000, 12)).astype(float), rng.random((4000, N_DRAWS))
    asked = draw_requests(y, draw)
    assert asked.shape == (4000, 12) and asked.dtype == np.float32
    assert REQUESTED[0] <= asked.min() < -0.9 and 6.4 < asked.max() <= REQUESTED[1]
    one, alone, emotion, removed = (asked[(low <= draw[:, 0]) & (draw[:, 0] < high)] for low, high in ((0, .4), (.4, .6), (.6, .8), (.8, 1)))
    assert 0.35 < len(one) / 4000 < 0.45 and ((one != y[draw[:, 0] < .4]).sum(1) <= 1).all()
    assert ((alone != 0).sum(1) <= 1).all() and (alone != 0).any(0).all()
    assert (emotion >= 0).all() and not emotion[:, [AUS.index("AU17"), AUS.index("AU25")]].any()
    assert ((removed == y[draw[:, 0] >= .8]) | (removed == 0)).all() and (removed.sum(1) < y[draw[:, 0] >= .8].sum(1)).any()


def test_requests_at_the_edges():
    from aueditnet.facs import N_DRAWS, draw_requests
    assert draw_requests(np.zeros((0, 12)), np.zeros((0, N_DRAWS))).shape == (0, 12)
    last = np.full((3, N_DRAWS), 1 - 1e-12)     # rounds to 1 in float32
    last[:, 0] = 0.1, 0.5, 0.7
    assert np.isfinite(draw_requests(np.zeros((3, 12)), last)).all()
    kept = draw_requests(np.full((1, 12), np.nan), np.zeros((1, N_DRAWS)))
    assert np.isnan(kept).sum() == 11           # a kept AU without a label
    with pytest.raises(InputError, match="do not go together"):
        draw_requests(np.zeros((2, 12)), np.zeros((3, N_DRAWS)))
