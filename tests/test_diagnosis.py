"""A network that is read wrong is noticed, and the right reading named; one that is read right is not."""

import pytest
import torch

import sde_gen as sg

DDPM = sg.DDPM()
LAW = sg.GaussianMixture(
    [0.3, 0.7], [[-0.8, 0.5], [0.6, -0.1]], [[[0.05, 0.0], [0.0, 0.02]], [[0.03, 0.01], [0.01, 0.04]]]
)
X0 = LAW.sample(200, seed=1)


def exact(what, p=DDPM, law=LAW):
    """A perfect network that knows the index of its chain, and says the noise or v."""
    oracle = law.model(p)

    def network(x, index):
        t = (index.double().clamp(0, p.length - 1) + 1) / p.length
        return getattr(oracle(x.double(), t), what).to(x.dtype)

    network.noise_dtype = torch.float64
    return network


def model(what, parameterization):
    return sg.ScoreModel(exact(what), DDPM, parameterization)


INDEX = sg.Convention(DDPM, "index")


@pytest.mark.parametrize("right", [
    model("noise", sg.NoisePrediction(INDEX)), model("v", sg.VPrediction(INDEX)),
    model("noise", sg.NoisePrediction(INDEX)).under(sg.VE()), LAW.model(sg.VP()), LAW.model(sg.FlowMatching()),
], ids=str)  # fmt: skip
def test_what_is_right_passes(right):
    found = sg.diagnose(right, X0)
    assert found.is_sound
    assert found.likely is None
    assert "read as it was trained" in repr(found)
    assert 8 <= len(found.rows) <= 9
    assert all(row.error <= 1.02 * row.linear for row in found.rows)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (model("noise", sg.NoisePrediction()), "told 1 index for the time"),
        (model("noise", sg.NoisePrediction(sg.Convention(DDPM, "t"))), "told 1 index for the time"),
        (model("noise", sg.NoisePrediction(sg.Convention(DDPM, "index", -1.0, 999.0))), "told 1 index for the time"),
        (model("v", sg.NoisePrediction(INDEX)), "its output is VPrediction, not NoisePrediction"),
        (model("noise", sg.VPrediction(INDEX)), "its output is NoisePrediction, not VPrediction"),
        (model("denoised", sg.NoisePrediction(INDEX)), "its output is DataPrediction"),
        (model("noise", sg.ScorePrediction(INDEX)), "its output is NoisePrediction, not ScorePrediction"),
    ],
)
def test_what_is_wrong_is_named(wrong, named):
    found = sg.diagnose(wrong, X0)
    assert not found.is_sound
    assert found.likely is not None
    assert named in found.likely
    assert named in repr(found)
    assert "wrong" in repr(found)
    assert found.tried > 5


def test_the_scale_of_the_data():
    law = sg.GaussianMixture([1.0], [[0.1, -0.2]], [[[0.1, 0.0], [0.0, 0.02]]])
    x0 = law.sample(300).clamp(-1, 1)
    right = sg.ScoreModel(exact("noise", law=law), DDPM, sg.NoisePrediction(INDEX))
    assert sg.diagnose(right, x0).is_sound
    found = sg.diagnose(right, (x0 + 1) / 2)
    assert "2 x0 - 1" in (found.likely or "")


def test_an_untrained_network_fits_no_reading():
    torch.manual_seed(0)
    found = sg.diagnose(sg.ScoreModel(sg.networks.MLP(2), sg.VP()), X0.float())
    assert not found.is_sound
    assert found.likely is None
    assert "not trained" in repr(found)


def test_it_is_the_same_twice_and_leaves_the_model_as_it_was():
    net = sg.networks.MLP(2).train()
    made = sg.ScoreModel(net, sg.VP())
    assert sg.diagnose(made, X0.float()).rows == sg.diagnose(made, X0.float()).rows
    assert net.training


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((1, X0), "model must be a ScoreModel, got int"),
        ((LAW.model(sg.VP()), X0[:1]), "with B >= 2, got torch.float64"),
        ((LAW.model(sg.VP()), X0.long()), "must be a floating tensor"),
        ((LAW.model(sg.VP()), torch.zeros(4, 2)), "not all the same"),
        ((LAW.model(sg.VP()), X0 / 0), "must be finite"),
    ],
)
def test_refused(given, match):
    with pytest.raises(sg.ConfigError, match=match):
        sg.diagnose(*given)
