"""What follows from the design of the editor, for any weights and for trained ones; error messages; exact sizes."""
import pytest
from conftest import close
import torch
from torch.nn import functional as F

from aueditnet.editor import UNITS, AUEditNet, LevelLinear, PsiDec, PsiEnc, ToyWorld
from aueditnet.facs import AUS
from aueditnet.files.errors import InputError

torch.set_num_threads(1)
TRAIN, TEST = torch.arange(18 * 80), torch.arange(18 * 80, 27 * 80)


@pytest.fixture(scope="module")
def world():
    return ToyWorld()


@pytest.fixture(scope="module")
def codes(world):
    return world.w[::300][:6]


@pytest.fixture(scope="module")
def net(world):
    """An untrained editor."""
    torch.manual_seed(0)
    return AUEditNet(n_levels=4, dim=32).standardise(world.w).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def trained(world):
    """400 steps on pairs of frames, on codes and labels alone."""
    torch.manual_seed(0)
    net = AUEditNet(4, 32, hidden=64, embed=16, rank=4)
    net.init_from_ridge(world.w[TRAIN], world.y[TRAIN], world.person[TRAIN]).train()
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, 400)
    g = torch.Generator().manual_seed(0)
    for _ in range(400):
        source = torch.randint(len(TRAIN), (64,), generator=g)
        target = world.person[source] * 80 + torch.randint(80, (64,), generator=g)
        out = net(world.w[source], world.y[target])
        loss = ((out["edited"] - world.w[target]) / net.spread).square().mean()
        for name, y in (("source_estimate", world.y[source]), ("edited_estimate", world.y[target]), ("round_trip", world.y[target])):
            loss = loss + 0.3 * ((out[name] - y) / UNITS).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def goal(world):
    """For every test frame another frame of the same person."""
    return TEST.view(9, 80).roll(31, 1).flatten()


def test_toy_world(world):
    assert (world.measure(world.w, world.person) - world.truth).abs().mean() < 0.15
    assert torch.corrcoef(world.truth.T)[4, 6] > 0.8                                # AU6 with AU12
    assert world.synthesize(world.w[:2], 64).shape == (2, 3, 64, 64)


def test_psi_before_training():
    y = torch.rand(8, 12) * 5
    psi_enc, psi_dec = PsiEnc(4), PsiDec(4)
    close(psi_enc(y), (y / 5)[:, None].expand(-1, 4, -1), 0.15)
    close(psi_dec(psi_enc(y)), y, 0.5)
    assert psi_dec(torch.zeros(1, 4, 12)).abs().max() == 0


def test_psi_enc_is_odd_increasing_and_apart_with_any_weights():
    psi_enc, y = PsiEnc(4).requires_grad_(False), torch.rand(8, 12) * 5
    torch.nn.init.normal_(psi_enc.gain)
    torch.nn.init.normal_(psi_enc.bend)
    assert psi_enc(torch.zeros(1, 12)).abs().max() == 0
    close(psi_enc(-y), -psi_enc(y))
    ramp = torch.linspace(-2, 7, 91)[:, None].expand(-1, 12)
    assert (psi_enc(ramp).diff(dim=0) > 0).all()
    one = torch.zeros(1, 12)
    one[0, 6] = 4
    assert psi_enc(one).abs().sum((0, 1)).nonzero().flatten().tolist() == [6]


def test_level_linear_is_a_layer_for_each_level():
    layer, x = LevelLinear(4, 16, 5), torch.randn(2, 4, 16)
    for i in range(4):
        close(layer(x)[:, i], F.linear(x[:, i], layer.weight[i].T, layer.bias[i]))


def test_own_estimate_changes_nothing(net, codes):
    own = net.read(codes)[1]
    for request in (own, net.estimate(codes), torch.full((12,), torch.nan)):
        close(net.edit(codes, request), codes)
    close(net.edit_like(codes, codes), codes)


def test_source_given_and_equal_to_the_target(net, codes):
    target = torch.rand(6, 12) * 5
    close(net.edit(codes, target, source=target), codes)


def test_two_branches_are_the_equation(net, codes):
    target = torch.rand(6, 12) * 5
    z, own = net.read(codes)
    close(net.edit(codes, target), codes - net.displacement(z, own) + net.displacement(z, net.psi_enc(target)))


def test_unnamed_aus_keep_their_label(net, codes):
    own = net.read(codes)[1]
    smile = torch.full((12,), torch.nan)
    smile[AUS.index("AU12")] = 4.
    changed = (net.label(smile, own) - own).abs().amax((0, 1)).nonzero().flatten()
    assert [AUS[k] for k in changed] == ["AU12"]


def test_monotone_from_minus_two_to_seven(net, codes):
    requests = torch.full((91, 12), torch.nan)
    requests[:, 6] = torch.linspace(-2, 7, 91)
    moved = net.edit(codes[:1].expand(91, -1, -1), requests) - codes[:1]
    direction = net.displacement(net.read(codes[:1])[0], torch.eye(12)[6].expand(1, 4, -1))
    assert ((moved * direction).sum(-1).diff(dim=0) > 0).all()                       # (91, L)


def test_a_batch_equals_single_edits(net, codes):
    mixed = torch.where(torch.rand(6, 12) < 0.5, torch.nan, torch.rand(6, 12) * 5)
    close(net.edit(codes, mixed), torch.cat([net.edit(c[None], m) for c, m in zip(codes, mixed)]))


def test_levels_do_not_mix(net, codes):
    """Given the label, a change of one level of the code changes the displacement of this level only."""
    z, own = net.read(codes)
    other = codes.clone()
    other[:, 2] += 1
    difference = net.displacement(net.read(other)[0], own) - net.displacement(z, own)
    assert (difference.abs().amax((0, 2)) > 1e-6).tolist() == [False, False, True, False]


def test_from_state_dict(net, codes):
    back, target = AUEditNet.from_state_dict(net.state_dict()), torch.rand(6, 12) * 5
    assert back.config == net.config and not back.training
    close(back.edit(codes, target), net.edit(codes, target))
    with pytest.raises(InputError, match="not an AUEditNet"):
        AUEditNet.from_state_dict({"x": torch.zeros(1)})
    with pytest.raises(InputError, match="missing: std"):
        AUEditNet.from_state_dict({k: v for k, v in net.state_dict().items() if k != "std"})


def test_a_request_has_twelve_intensities(net, codes):
    with pytest.raises(InputError, match="12 intensities"):
        net.edit(codes, torch.zeros(3))


def test_size_of_the_bundled_kind():
    """Below 6 MB as float16."""
    assert sum(p.numel() for p in AUEditNet(12, 192).state_dict().values()) * 2 < 6e6


def test_a_shared_term_cancels_and_has_no_gradient(world, trained, goal):
    """What both branches add without regard to the label neither changes an edit nor could be learned."""
    w, c = world.w[TEST], torch.zeros(4, 32, requires_grad=True)
    z, own = trained.read(w)
    label = trained.psi_enc(world.truth[goal])

    def dual(c): return w - (trained.displacement(z, own) + c) + (trained.displacement(z, label) + c)
    def single(c): return w + trained.displacement(z, label) + c
    def gradient(edit): return torch.autograd.grad((edit(c) - world.w[goal]).square().mean(), c)[0].norm().item()

    close(dual(world.people[0] - world.people[1]), dual(0.))
    assert gradient(dual) < 1e-6 < 1e-3 < gradient(single)


def test_trained_edits_land_and_keep_the_person(world, trained, goal):
    w, person = world.w[TEST], world.person[TEST]
    error = lambda code: (world.measure(code, person) - world.truth[goal]).abs().mean()

    def drift(code):
        explained = world.neutral(person) + world.displacement(person, world.measure(code, person))
        return (code - explained).square().mean().sqrt()

    edited = trained.edit(w, world.truth[goal])
    assert error(edited) < 0.35 * error(w)
    assert drift(edited) < 1.2 * drift(w)


def test_trained_directions(world, trained):
    z, label = trained.read(world.w[TEST][::80])
    learned = torch.stack([trained.displacement(z, unit.expand_as(label)) for unit in torch.eye(12)], 2)
    true = world.directions(world.person[TEST][::80])
    cosine = F.cosine_similarity(true.transpose(1, 2).flatten(2), learned.transpose(1, 2).flatten(2), dim=-1).mean(0)
    assert cosine.min() > 0.8 and cosine.mean() > 0.9


def test_trained_responses_rise(world, trained):
    for k in (2, 6, 11):
        requests = torch.full((37, 12), torch.nan)
        requests[:, k] = torch.linspace(-2, 7, 37)
        curves = [world.measure(trained.edit(w.expand(37, -1, -1), requests), p.expand(37))[:, k]
                  for w, p in zip(world.w[TEST][::80], world.person[TEST][::80])]
        assert (torch.stack(curves).mean(0).diff() > 0).all()


def test_there_and_back(world, trained, goal):
    w = world.w[TEST]
    there = trained.edit(w, world.truth[goal])
    back = trained.edit(there, trained.estimate(w))
    assert (back - w).square().mean().sqrt() < 0.35 * (there - w).square().mean().sqrt()


def test_expression_transfer(world, trained):
    w, person = world.w[TEST], world.person[TEST]
    swapped = trained.edit_like(w, w.view(9, 80, 4, 32).roll(1, 0).reshape(w.shape))
    target = world.truth[TEST].view(9, 80, 12).roll(1, 0).reshape(-1, 12)
    before, after = ((world.measure(code, person) - target).abs().mean() for code in (w, swapped))
    assert after < 0.5 * before
    assert trained.edit_like(w[:6], w[:1]).shape == (6, 4, 32)


# the gain

GAIN = torch.tensor([0., 2., 3., 4.5, 6., 7., 7.2, 7.4]).repeat(12, 1)
GAIN[4] = torch.tensor([0., 2.3, 3.7, 6.8, 9., 9.2, 9.4, 9.6])
GAIN[0] = torch.tensor([0., 1.1, 1.9, 2.8, 3.7, 4.8, 7., 7.2])     # below the request in places


@pytest.fixture
def gained(net):
    net = net.without_gain()
    net.response = GAIN.clone()
    return net


def test_what_the_source_shows_is_left_with_a_gain(gained, codes):
    for request in (gained.estimate(codes), gained.read(codes)[1], torch.full((12,), torch.nan)):
        close(gained.edit(codes, request), codes)
    close(gained.edit_like(codes, codes), codes)
    target = torch.rand(6, 12) * 5
    close(gained.edit(codes, target, source=target), codes)
    some = torch.where(torch.rand(6, 12) < 0.5, torch.nan, target)      # part of the source is known
    close(gained.edit(codes, some, source=some), codes)


def test_known_sources_have_no_gain_and_targets_have(gained, codes):
    z, source, target = gained.read(codes)[0], torch.full((6, 12), 1.), torch.full((6, 12), 4.)
    wanted = gained.psi_enc(GAIN[:, 4].expand(6, -1)) - gained.psi_enc(source)
    close(gained.edit(codes, target, source=source) - codes, gained.displacement(z, wanted))


def test_requests_rise_whatever_the_source_shows(gained):
    ramp = torch.linspace(-3, 9, 481)[:, None].expand(-1, 12)
    for own in (-1., 0., 0.3, 2., 3.1, 4., 5., 6.5):
        taken = gained.with_gain(ramp, torch.full((481, 12), own))
        assert (taken.diff(dim=0) >= -1e-6).all()
        assert (taken[ramp < own] <= own + 1e-6).all() and (taken[ramp > own] >= own - 1e-6).all()
        close(gained.with_gain(torch.full((1, 12), own), torch.full((1, 12), own)), torch.full((1, 12), own))
    close(gained.with_gain(torch.tensor([[2.5] * 12]), torch.zeros(1, 12))[0], (GAIN[:, 2] + GAIN[:, 3]) / 2)
    close(gained.with_gain(torch.tensor([[-2.] * 12]), torch.zeros(1, 12))[0], -2 * GAIN[:, 1])
    close(gained.with_gain(torch.tensor([[9.] * 12]), torch.zeros(1, 12))[0], GAIN[:, 7] + 2 * (GAIN[:, 7] - GAIN[:, 6]))


def test_transfer_has_the_gain_of_its_request(gained, codes):
    close(gained.edit_like(codes[:3], codes[3:]), gained.edit(codes[:3], gained.estimate(codes[3:])))
    close(gained.edit_like(codes, codes[:1]), gained.edit(codes, gained.estimate(codes[:1])[0]))


def test_a_gain_is_stored_with_the_weights(gained, net, codes, tmp_path):
    from safetensors.torch import load_file, save_file
    save_file({k: v.contiguous() for k, v in gained.state_dict().items()}, tmp_path / "editor.safetensors")
    state, target = load_file(tmp_path / "editor.safetensors"), torch.rand(6, 12) * 5
    back = AUEditNet.from_state_dict(state)
    close(back.edit(codes, target), gained.edit(codes, target))
    state["response"].zero_()                                          # the network has tensors of its own
    assert torch.equal(back.response, GAIN)
    assert AUEditNet.from_state_dict(net.state_dict()).response is None
    assert back.load(net.state_dict()).response is None
    for wrong in (GAIN[:, :6], GAIN.flip(1), GAIN * torch.nan):
        with pytest.raises(InputError, match="response"):
            AUEditNet.from_state_dict(net.state_dict() | {"response": wrong})


def test_without_gain_is_the_same_editor(gained, net, codes):
    target, plain = torch.rand(6, 12) * 5, gained.without_gain()
    assert plain.response is None and gained.response is not None and plain.config == gained.config
    assert plain.levels.base is gained.levels.base
    close(plain.edit(codes, target), net.edit(codes, target))
    assert (plain.edit(codes, target) - gained.edit(codes, target)).abs().max() > 0.01


def test_a_gain_in_half_precision_and_one_that_is_set_late(gained, codes):
    half, target = AUEditNet.from_state_dict(gained.state_dict()).half(), torch.rand(6, 12) * 5
    assert half.response.dtype == torch.float16
    half.response = GAIN                                               # of another precision than the network
    edited = half.edit(codes, target)
    assert edited.dtype == torch.float16
    close(edited.float(), gained.edit(codes, target), 0.1)


def test_gain_of_other_editors(world, codes):
    from aueditnet.baselines.latent_editors import IndependentLevels, LinearEditor, ReDirTrans, SingleBranch
    target = torch.full((6, 12), 4.)
    for kind in (SingleBranch, IndependentLevels, ReDirTrans):
        torch.manual_seed(0)
        editor = kind(4, 32).standardise(world.w).eval().requires_grad_(False)
        before = editor.edit(codes, target)
        editor.response = GAIN
        assert (editor.edit(codes, target) - before).abs().max() > 1e-4
        if kind is ReDirTrans: close(editor.edit(codes, target, source=target), codes, 1e-4)
    linear = LinearEditor(4, 32).fit(world.w, world.y, world.person)
    linear.response = GAIN
    close(linear.edit(codes, linear.estimate(codes)), codes, 1e-4)
