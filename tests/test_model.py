"""ScoreModel: one network under every formulation."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import sde_gen as sg
from tests.perturbations.cases import ALL, CONTINUOUS, DEFAULTS
from tests.test_parameterizations import EACH, IDS

F64 = torch.float64


class Net(nn.Module):
    """Nonlinear, of no particular use; `seen` keeps what it was called with."""

    def __init__(self, dim=3, dtype=F64):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(dim, dim, dtype=dtype)
        self.seen = []

    def forward(self, x, c_noise, **condition):
        self.seen.append((x, c_noise, condition))
        return torch.tanh(self.layer(x))


def states(n=5, dim=3, dtype=F64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(7), dtype=F64).to(dtype)


def common_lambdas(a, b, n=5):
    """Noise levels that both processes have, away from the ends; nodes of `a` if it is a chain."""
    top = min(float(a.half_log_snr(max(a.t_min, 1e-3))), float(b.half_log_snr(max(b.t_min, 1e-3))))
    bottom = max(float(a.half_log_snr(a.t_max)), float(b.half_log_snr(b.t_max)))
    assert top > bottom
    if a.is_chain:
        lam = a.half_log_snr(a.nodes)
        lam = lam[(lam <= top) & (lam >= bottom)]
        return lam[:: max(1, len(lam) // n)][:n]
    return torch.linspace(bottom + 0.05, top - 0.05, n, dtype=F64)


@pytest.mark.parametrize("a", DEFAULTS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("b", DEFAULTS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("parameterization", [case[0] for case in EACH], ids=IDS)
@torch.no_grad()
def test_under_is_the_exact_change_of_variables(a, b, parameterization):
    """A state x of A is the state x alpha_B/alpha_A of B where lambda_B = lambda_A: the same x0hat and the same noise.

    Chains are asked at their nodes, so nothing warns, and to 1e-12: lambda -> t -> lambda is exact to that.
    """
    lam = common_lambdas(a, b)
    x = states(len(lam)) * (a.alpha(a.time(lam)) ** 2 + a.sigma(a.time(lam)) ** 2).sqrt()[:, None]
    model = sg.ScoreModel(Net(), a, parameterization)
    t_a, t_b = a.time(lam), b.time(lam)
    scale = (b.alpha(t_b) / a.alpha(t_a))[:, None]
    here, there = model(x, t_a), model.under(b)(x * scale, t_b)
    size = float(here.denoised.abs().max())
    torch.testing.assert_close(there.denoised, here.denoised, rtol=1e-12, atol=3e-12 * size)
    torch.testing.assert_close(there.noise, here.noise, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(there.score * scale, here.score, rtol=1e-10, atol=1e-11 * float(here.score.abs().max()))
    (seen_a, c_a, _), (seen_b, c_b, _) = model.network.seen
    torch.testing.assert_close(seen_b, seen_a, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(c_b, c_a, rtol=1e-6, atol=1e-6)


def test_under_shares_the_network_and_remembers_the_training():
    model = sg.ScoreModel(Net(), sg.VP(), sg.VPrediction())
    model.eval()
    other = model.under(sg.VE()).under(sg.DDPM())
    assert other.network is model.network
    assert other.parameterization == sg.VPrediction()
    assert other.perturbation == sg.DDPM()
    assert other.trained_under == sg.VP()
    assert not other.training
    back = other.under(sg.VP())
    x = states()
    assert torch.equal(back(x, 0.3).denoised, model(x, 0.3).denoised)
    model.train()
    assert model.under(sg.VE()).training


# -- between the nodes of a chain -------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [p for p in ALL if p.is_chain], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_no_warning_at_nodes_in_either_precision(p, dtype):
    model = sg.ScoreModel(lambda x, c: x, p)
    t = p.nodes.to(dtype)
    model(torch.zeros(len(t), 2), t)  # warnings are errors here
    model(torch.zeros(1, 2), float(p.nodes[-1]))
    for other in CONTINUOUS:
        lam = p.half_log_snr(p.nodes)
        lam = lam[(lam < other.half_log_snr(0.0)) & (lam > other.half_log_snr(1.0))]
        if len(lam):
            model.under(other)(torch.zeros(len(lam), 2), other.time(lam))


@pytest.mark.parametrize("p", [p for p in ALL if p.is_chain], ids=str)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_warning_between_nodes(p, share):
    model = sg.ScoreModel(lambda x, c: x, p)
    position = min(2, p.length) - 1 + share
    with pytest.warns(sg.BetweenNodesWarning, match=f"trained on the {p.length} nodes of .* between them") as seen:
        model(torch.zeros(2, 2), torch.tensor([1.0, position / p.length], dtype=F64))
    assert seen[0].filename == __file__ or "torch" in seen[0].filename


def test_who_is_warned():
    x, t = torch.zeros(1, 2), 0.43217
    trained = sg.ScoreModel(lambda x, c: x, sg.DDPM(50))
    for other in (sg.VP(), sg.VE(), sg.DDPM(1000), sg.NCSN()):
        with pytest.warns(sg.BetweenNodesWarning):
            trained.under(other)(x, t)
    # A network trained for all times may be asked for any, also under a chain; an oracle knows everything.
    continuous = sg.ScoreModel(lambda x, c: x, sg.VP())
    continuous.under(sg.DDPM(50))(x, t)
    oracle = sg.GaussianMixture([1.0], [[0.0, 0.0]], [torch.eye(2).tolist()])
    oracle.model(sg.DDPM(50))(x, t)
    oracle.model(sg.DDPM(50)).under(sg.NCSN())(x, t)


# -- the range of times -----------------------------------------------------------------------------------------------


def test_times_within_are_cut_to_the_trained_noise_levels():
    net = lambda x, c: x  # noqa: E731
    for p in DEFAULTS:
        assert sg.ScoreModel(net, p).times_within() == (p.t_sample, p.t_max)
        assert sg.ScoreModel(net, p).times_within(0.25) == (0.25, p.t_max)
    for a in DEFAULTS:
        for b in DEFAULTS:
            low, high = sg.ScoreModel(net, a).under(b).times_within()
            assert b.t_sample <= low < high <= b.t_max
            top, bottom = float(a.half_log_snr(a.t_min)), float(a.half_log_snr(a.t_max))
            assert float(b.half_log_snr(low)) <= top + 1e-9
            assert float(b.half_log_snr(high)) >= bottom - 1e-9
            # Cut where it must be and nowhere else.
            assert low == b.t_sample or float(b.half_log_snr(low)) == pytest.approx(top, abs=1e-9)
            assert high == b.t_max or float(b.half_log_snr(high)) == pytest.approx(bottom, abs=1e-9)
    wide = sg.VE(0.01, 500.0)
    low, high = sg.ScoreModel(net, sg.VP()).under(wide).times_within()
    assert high == pytest.approx(float(wide.time(sg.VP().half_log_snr(1.0))), abs=1e-12)
    assert high < 1.0
    oracle = sg.EmpiricalData(torch.zeros(1, 2)).model(sg.VP()).under(sg.VE())
    assert oracle.times_within() == (sg.VE().t_sample, 1.0)


# -- how the network is called ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [torch.float16, torch.bfloat16, torch.float32, F64], ids=str)
@pytest.mark.parametrize("inside", [torch.bfloat16, torch.float32, F64], ids=str)
def test_network_in_its_own_precision_and_answer_in_that_of_the_state(state, inside):
    model = sg.ScoreModel(Net(dtype=inside), sg.VP())
    out = model(states(dtype=state), torch.full((5,), 0.4))
    x, c_noise, _ = model.network.seen[0]
    assert x.dtype == inside
    assert c_noise.dtype == inside
    assert c_noise.shape == (5,)
    for name in ("denoised", "noise", "score", "v"):
        assert getattr(out, name).dtype == state
    assert model.network_dtype == inside


def test_networks_without_parameters_see_the_state_as_it_is():
    for network in (lambda x, c: x, nn.Identity().forward, nn.Sequential()):
        assert sg.ScoreModel(network, sg.VP()).network_dtype is None
    counter = nn.Module()
    counter.index = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
    assert sg.ScoreModel(counter, sg.VP()).network_dtype is None
    seen = []
    model = sg.ScoreModel(lambda x, c: seen.append(x.dtype) or x, sg.VP())
    for dtype in (torch.bfloat16, torch.float32, F64):
        model(states(dtype=dtype), 0.3)
    assert seen == [torch.bfloat16, torch.float32, F64]


def test_times_of_one_number_or_one_each_and_conditions():
    model = sg.ScoreModel(Net(), sg.VP())
    x, label = states(), torch.arange(5)
    one = model(x, 0.3, label=label, extra="yes").denoised
    told = model.network.seen[0][2]
    assert torch.equal(told["label"], label)
    assert told["extra"] == "yes"
    each = model(x, torch.full((5,), 0.3, dtype=F64)).denoised
    assert torch.equal(one, each)
    for row in range(5):
        torch.testing.assert_close(model(x[row : row + 1], torch.tensor([0.3], dtype=F64)).denoised[0], one[row])
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    mixed = model(x, t).score
    for row in range(5):
        torch.testing.assert_close(model(x[row : row + 1], float(t[row])).score[0], mixed[row])
    images = sg.ScoreModel(lambda x, c: x, sg.VP())(torch.ones(2, 3, 4, 4), torch.tensor([0.1, 0.9])).v
    assert images.shape == (2, 3, 4, 4)
    assert bool((images[0] != images[1]).all())


def test_predict_at_a_noise_level():
    p, model = sg.VP(), sg.ScoreModel(Net(), sg.VP())
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    levels = model.levels(*(c[None] for c in p.curves(t)), states())
    assert torch.equal(levels.prediction(0, states()).v, model(states(), t).v)
    assert levels.calls == 1


def test_gradients_reach_the_state_and_the_network():
    model = sg.ScoreModel(Net(), sg.VP())
    x = states().requires_grad_()
    model(x, 0.3).score.square().sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert all(float(w.grad.abs().sum()) > 0 for w in model.parameters())


# -- refusals, copies -------------------------------------------------------------------------------------------------


def test_refused():
    net = Net()
    with pytest.raises(sg.ConfigError, match="network must be a module or a callable, got int"):
        sg.ScoreModel(3, sg.VP())
    with pytest.raises(sg.ConfigError, match=r"perturbation must be a Perturbation such as VP\(\), got str"):
        sg.ScoreModel(net, "vp")
    with pytest.raises(sg.ConfigError, match=r"perturbation must be a Perturbation .* got ABCMeta"):
        sg.ScoreModel(net, sg.VP)
    with pytest.raises(sg.ConfigError, match=r"parameterization must be a Parameterization .* got str"):
        sg.ScoreModel(net, sg.VP(), "noise")
    model = sg.ScoreModel(net, sg.VP())
    for t in (torch.zeros(4), torch.zeros(5, 1)):
        with pytest.raises(sg.ConfigError, match=r"t must have shape \(\) or \(5,\) for x of shape \(5, 3\), got \("):
            model(states(), t)
    for t in (1.5, -0.1, float("nan")):
        with pytest.raises(sg.ConfigError, match=r"t must lie in \[0, 1\]"):
            model(states(), t)
    with pytest.raises(sg.ConfigError, match="real number"):
        model(states(), True)
    with pytest.raises(sg.ConfigError, match=r"this model has no network; give one, or use an oracle's .model"):
        sg.ScoreModel(None, sg.VP())(states(), 0.3).score  # noqa: B018
    assert net.seen == []


def test_default_is_noise_prediction():
    assert sg.ScoreModel(Net(), sg.VP()).parameterization == sg.NoisePrediction()


def test_state_dict_holds_the_network_and_nothing_else():
    model = sg.ScoreModel(Net(), sg.DDPM(), sg.EDMPreconditioning())
    assert list(model.state_dict()) == ["network.layer.weight", "network.layer.bias"]
    assert sg.ScoreModel(lambda x, c: x, sg.VP()).state_dict() == {}
    other = sg.ScoreModel(Net(), sg.DDPM(), sg.EDMPreconditioning())
    with torch.no_grad():
        other.network.layer.weight.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(states(), 1.0).denoised, model(states(), 1.0).denoised)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])  # noqa: S301
def test_copies_are_independent(copied):
    model = sg.ScoreModel(Net(), sg.VP()).under(sg.VE())
    other = copied(model)
    assert torch.equal(other(states(), 0.4).noise, model(states(), 0.4).noise)
    assert (other.perturbation, other.trained_under) == (sg.VE(), sg.VP())
    with torch.no_grad():
        other.network.layer.weight.zero_()
    assert float(model.network.layer.weight.detach().abs().sum()) > 0


def test_device_is_that_of_the_parameters():
    assert sg.ScoreModel(Net(), sg.VP()).device == torch.device("cpu")
    assert sg.ScoreModel(lambda x, c: x, sg.VP()).device == torch.device("cpu")
    assert sg.ScoreModel(Net(), sg.VP()).to("meta").device.type == "meta"


def test_values_are_not_read_on_a_device():
    """With everything on meta, which has no values to read, nothing can have waited for the GPU."""
    model = sg.ScoreModel(Net(dtype=torch.float32), sg.DDPM()).to("meta")
    out = model(torch.empty(4, 3, device="meta"), torch.empty(4, device="meta"))
    assert out.score.device.type == "meta"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.empty(4, 3, device="meta"), torch.full((4,), 1.0))


def test_an_output_of_another_shape_is_refused_not_broadcast():
    model = sg.ScoreModel(lambda x, c: x[:, :1], sg.VP())
    with pytest.raises(sg.ConfigError, match=r"shape of its input, \(4, 3\), got \(4, 1\)"):
        model(torch.randn(4, 3), 0.5)
    with pytest.raises(sg.ConfigError, match=r"shape of its input, \(4, 3\), got \(4, 1\)"):
        sg.DDIM(steps=2)(model, (4, 3))


@pytest.mark.parametrize("x", [torch.ones(4, 3, dtype=torch.int64), torch.tensor(1.0)], ids=["integers", "0-d"])
def test_a_state_must_be_a_batch_of_floats(x):
    with pytest.raises(sg.ConfigError, match="x must be a floating tensor"):
        sg.ScoreModel(lambda x, c: x, sg.VP())(x, 0.5)


def test_perturb_keeps_float64_coefficients_for_times_in_float32():
    x0 = torch.ones(2, 3, dtype=torch.float64)
    t = torch.tensor([0.3, 0.6])
    expected = sg.VP().alpha(t.double())[:, None] * x0
    assert torch.equal(sg.VP().perturb(x0, t, torch.zeros_like(x0)), expected)
