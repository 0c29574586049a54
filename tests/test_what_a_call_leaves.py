"""What calls a network leaves everything as it was: modes, buffers, tensors that it was handed, also with threads."""

import threading

import pytest
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.model import evaluating


class Net(nn.Module):
    """With dropout, a running mean, and one part that is kept in evaluation mode while the rest trains."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout, self.norm = nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)
        self.frozen = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
        self.modes: list[bool] = []

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.modes.append(any(module.training for module in self.modules()))
        return self.linear(self.dropout(self.norm(self.frozen(x))))


X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
CALLS = {
    "sampler": lambda m: sg.DDIM(steps=2)(m, (4, 2)),
    "adaptive": lambda m: sg.ProbabilityFlow(rtol=1e-1, atol=1e-1)(m, (4, 2)),
    "stochastic": lambda m: sg.PredictorCorrector(steps=2)(m, (4, 2)),
    "log_likelihood": lambda m: sg.log_likelihood(m, X, steps=4),
    "variational_bound": lambda m: sg.variational_bound(m, X, terms=2),
    "encode": lambda m: sg.encode(m, X, rtol=1e-1, atol=1e-1),
    "decode": lambda m: sg.decode(m, X, rtol=1e-1, atol=1e-1),
    "Auto": lambda m: sg.Auto(nfe=2, count=8, effort=0.0).choose(m, (2,)),
    "fit_grid": lambda m: sg.fit_grid(m, 2, shape=(2,), count=8, tries=1),
    "under": lambda m: m.under(sg.VE()),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_every_submodule_keeps_its_mode_and_its_buffers(name: str, training: bool) -> None:
    net = Net().train(training)
    net.frozen.eval()
    model = sg.ScoreModel(net, sg.VP())
    before = [(n, m.training) for n, m in model.named_modules()]
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    CALLS[name](model)
    assert [(n, m.training) for n, m in model.named_modules()] == before
    assert all(torch.equal(b, buffers[n]) for n, b in net.named_buffers())
    assert not any(net.modes)  # and no call saw a part of it in training mode


def test_modes_come_back_after_an_error() -> None:
    net = Net()
    net.frozen.eval()
    model = sg.ScoreModel(net, sg.VP())
    before = [m.training for m in model.modules()]
    with pytest.raises(sg.ConfigError):
        sg.DDIM(steps=2)(model, (4, 2), condition={"label": torch.zeros(3)})
    with pytest.raises(RuntimeError, match="running_mean"):
        sg.DDIM(steps=2)(model, (4, 3))
    assert [m.training for m in model.modules()] == before


def test_threads_that_share_a_network_do_not_wake_each_other() -> None:
    """One enters first and leaves first: the network stays as the second needs it, and wakes when that one leaves."""
    net = Net()
    one, two = sg.ScoreModel(net, sg.VP()), sg.ScoreModel(net, sg.VE())
    inside, left, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with evaluating(one):
            inside.wait(10)
        left.set()

    def second() -> None:
        with evaluating(two):
            inside.set()
            left.wait(10)
            seen.append(net.training or net.dropout.training)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [False]
    assert net.training
    assert net.dropout.training


def test_many_threads_give_the_answer_of_one() -> None:
    net = Net()
    model = sg.ScoreModel(net, sg.VP())
    expected = sg.DDIM(steps=10)(model, (64, 2), seed=1).x
    found: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(sg.DDIM(steps=10)(model, (64, 2), seed=1).x)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(x, expected) for x in found)
    assert net.training


# -- memory ------------------------------------------------------------------------------------------------------------

LINEAR = nn.Linear(2, 2)
WAYS = {
    "state": lambda x, c, label: LINEAR(x.relu_()),
    "noise level": lambda x, c, label: LINEAR(x.relu()) * c.mul_(1.0).cos()[:, None] * 1.0,
    "condition": lambda x, c, label: LINEAR(x.relu() + 0.01 * label.mul_(2)[:, None]),
    "output": lambda x, c, label: LINEAR(x.relu()),
}
PURE = {
    "state": lambda x, c, label: LINEAR(x.relu()),
    "noise level": lambda x, c, label: LINEAR(x.relu()) * c.cos()[:, None],
    "condition": lambda x, c, label: LINEAR(x.relu() + 0.02 * label[:, None]),
    "output": lambda x, c, label: LINEAR(x.relu()),
}
RULES = [
    sg.DDIM(steps=5), sg.Ancestral(steps=5), sg.Heun(steps=4), sg.DPMSolverPP2M(steps=5), sg.UniPC(steps=5, order=4),
    sg.PredictorCorrector(steps=4), sg.SingleStep(steps=3), sg.AnnealedLangevin(steps=4), sg.SDEDPMSolverPP(steps=5),
    sg.StochasticHeun(steps=4), sg.Restart(steps=4), sg.ProbabilityFlow(rtol=1e-2, atol=1e-2), sg.AdaptiveSDE(rtol=0.5),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::sde_gen.errors.BetweenNodesWarning")
@pytest.mark.parametrize("p", [sg.VP(), sg.DDPM(steps=40), sg.VE()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("way", WAYS)
def test_a_network_may_work_in_place(way: str, rule: sg.Sampler, p: sg.Perturbation) -> None:
    label = torch.arange(4.0)
    answers = [rule(sg.ScoreModel(net[way], p), (4, 2), seed=1, label=label).x for net in (WAYS, PURE)]
    assert torch.equal(*answers)
    assert torch.equal(label, torch.arange(4.0))


def test_the_state_that_is_given_stays_as_it_was() -> None:
    model = sg.ScoreModel(lambda x, c: x.mul_(0.5), sg.VP())
    x, start = X.clone(), X.clone()
    model(x, 0.5)
    sg.DDIM(steps=3)(model, start=start)
    sg.DenoisingScoreMatching()(model, x)
    sg.log_likelihood(model, x, steps=4)
    assert torch.equal(x, X)
    assert torch.equal(start, X)


@pytest.mark.parametrize("rule", [sg.DDIM(steps=6), sg.DPMSolverPP2M(steps=6), sg.AnnealedLangevin(steps=4)], ids=repr)
def test_what_a_hook_keeps_is_not_overwritten(rule: sg.Sampler) -> None:
    """Under VP the input is scaled by 1, so that the state itself could be handed over."""
    net = nn.Linear(2, 2)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return self.net(x)

    kept: list[Tensor] = []
    seen: list[Tensor] = []
    handle = net.register_forward_hook(lambda module, inputs, output: (kept.append(inputs[0]), seen.append(
        inputs[0].clone()), None)[-1])  # fmt: skip
    rule(sg.ScoreModel(Wrapped(), sg.VP()), (5, 2), seed=0)
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(kept, seen, strict=True))


def test_a_network_that_begins_to_work_in_place_is_refused() -> None:
    calls = []

    def net(x: Tensor, c_noise: Tensor) -> Tensor:
        calls.append(0)
        return x.mul_(0.5) if len(calls) > 2 else 0.5 * x

    with pytest.raises(sg.ConfigError, match="in place"):
        sg.DDIM(steps=5)(sg.ScoreModel(net, sg.VP()), (3, 2))
