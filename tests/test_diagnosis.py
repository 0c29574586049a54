"""A network read as it was trained, and read wrongly: exact denoisers that know one convention, asked by others."""

import pytest
import torch

import sde_gen as sg

F64 = torch.float64
CHAIN = sg.DDPM(200)
INDEX = sg.Convention(CHAIN, "index")
MEANS = torch.tensor([[-0.8, -0.6, 0.4], [0.7, 0.8, -0.5], [0.6, -0.7, -0.8], [-0.2, 0.5, 0.9]], dtype=F64)
LAW = sg.GaussianMixture(torch.ones(4), MEANS, 0.003 * torch.eye(3).expand(4, 3, 3))
X0 = LAW.sample(400).clamp(-1, 1)


def trained(process, predicts, time=lambda c: c, law=LAW):
    """A network that answers exactly on the states of a process, told a number for its time."""
    oracle = law.model(process)

    def network(x, c):
        said = oracle(x, time(c).nan_to_num(0.5).clamp(process.t_min, process.t_max))
        return said.noise - said.denoised if predicts == "velocity" else getattr(said, predicts)

    network.noise_dtype = F64
    return network


def of_index(c):
    return (c + 1) / CHAIN.length


NOISE, V = trained(CHAIN, "noise", of_index), trained(CHAIN, "v", of_index)
FLOW, ON_VP = trained(sg.FlowMatching(), "velocity"), trained(sg.VP(), "noise", lambda c: c / 1000)

RIGHT = [
    (NOISE, CHAIN, sg.NoisePrediction(INDEX)),
    (V, CHAIN, sg.VPrediction(INDEX)),
    (FLOW, sg.FlowMatching(), sg.VelocityPrediction()),
    (ON_VP, sg.VP(), sg.NoisePrediction(sg.Convention(sg.VP(), "t", scale=1000.0))),
    (trained(sg.VE(), "score", lambda c: sg.VE().time(-c)), sg.VE(),
     sg.ScorePrediction(sg.Convention(sg.VE(), "log_sigma"), of="score")),
    (trained(CHAIN, "denoised", of_index), CHAIN, sg.DataPrediction(INDEX)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("network", "process", "parameterization"),
    RIGHT,
    ids=[f"{p!r:.20}-{q!r:.24}-{i}" for i, (_, p, q) in enumerate(RIGHT)],
)
def test_a_right_reading_is_called_right_under_every_formulation(network, process, parameterization):
    model = sg.ScoreModel(network, process, parameterization)
    for asked in (model, model.under(sg.VE()), model.under(sg.EDM())):
        found = sg.diagnose(asked, X0)
        assert found.is_right, found
        assert found.likely == ""
        assert "no misreading" in repr(found)
        assert len(found.ratio) == len(repr(found).splitlines()[1].split()) - 2 == 9
        assert max(found.ratio) <= 1.05


WRONG = [
    ("told lambda for an index", NOISE, CHAIN, sg.NoisePrediction(), "time='index'"),
    ("told t for an index", NOISE, CHAIN, sg.NoisePrediction(sg.Convention(CHAIN, "t")), "another time"),
    ("time reversed", NOISE, CHAIN, sg.NoisePrediction(sg.Convention(CHAIN, "index", -1.0, 199.0)), "time='index'"),
    ("time reversed on a scale of its own", trained(CHAIN, "noise", lambda c: of_index(100 * c)), CHAIN,
     sg.NoisePrediction(sg.Convention(CHAIN, "index", -0.01, 1.99)), "time the other way round"),
    ("v for noise", V, CHAIN, sg.NoisePrediction(INDEX), "another prediction, VPrediction"),
    ("noise for v", NOISE, CHAIN, sg.VPrediction(INDEX), "another prediction, NoisePrediction"),
    ("data for noise", NOISE, CHAIN, sg.DataPrediction(INDEX), "another prediction, NoisePrediction"),
    ("the sign", NOISE, CHAIN, sg.ScorePrediction(INDEX), "another prediction, NoisePrediction"),
    ("noise for a velocity", FLOW, sg.FlowMatching(), sg.NoisePrediction(sg.Convention(sg.FlowMatching(), "t")),
     "another prediction, VelocityPrediction"),
    ("the sign of a velocity", FLOW, sg.FlowMatching(), sg.VelocityPrediction(sign=-1),
     "another prediction, VelocityPrediction()"),
    ("time in [0, 1] for [0, 1000]", ON_VP, sg.VP(), sg.NoisePrediction(sg.Convention(sg.VP(), "t")), "another time"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "network", "process", "parameterization", "likely"), WRONG, ids=[w[0] for w in WRONG])
def test_a_wrong_reading_is_noticed_and_the_right_one_named(what, network, process, parameterization, likely):
    found = sg.diagnose(sg.ScoreModel(network, process, parameterization), X0)
    assert found.excess > 1
    assert likely in found.likely
    assert f"probably misread: its error is {found.excess:.2g} times" in repr(found)


def test_another_schedule_is_named():
    """On wide clusters; a denoiser of tight ones at a wrong level may still beat the linear denoiser."""
    cosine, law = sg.DDPM(200, "cosine"), sg.GaussianMixture(torch.ones(4), 3 * MEANS, torch.eye(3).expand(4, 3, 3))
    network = trained(CHAIN, "noise", of_index, law)
    found = sg.diagnose(sg.ScoreModel(network, cosine, sg.NoisePrediction(sg.Convention(cosine, "index"))),
                        law.sample(400))  # fmt: skip
    assert "another schedule" in found.likely
    assert repr(CHAIN) in found.likely


def test_data_on_another_scale_are_named():
    model = sg.ScoreModel(NOISE, CHAIN, sg.NoisePrediction(INDEX))
    for wrong, words in (((X0 + 1) / 2, "2 x0 - 1"), (((X0 + 1) * 127.5), "x0/127.5 - 1")):
        found = sg.diagnose(model, wrong)
        assert not found.is_right
        assert words in found.likely


def test_a_network_that_learnt_nothing_is_not_explained_away():
    """On data of unit variance what says 0, read as v, would be the best linear denoiser."""
    for x0 in (X0, X0 / X0.std()):
        found = sg.diagnose(sg.ScoreModel(lambda x, c: torch.zeros_like(x), CHAIN, sg.NoisePrediction(INDEX)), x0)
        assert not found.is_right
        assert found.likely == ""
        assert "no other reading that was tried fits" in repr(found)


def test_the_best_linear_denoiser_has_a_ratio_of_one_and_the_error_of_its_formula():
    law = sg.GaussianMixture([1.0], [[0.3] * 4], 0.04 * torch.eye(4)[None])
    x0 = law.sample(20_000)
    found = sg.diagnose(law.model(sg.VP()), x0)
    for lam, error, ratio in zip(found.half_log_snr, found.error, found.ratio, strict=True):
        snr = torch.tensor(2 * lam).exp().item()
        assert error == pytest.approx(0.04 / (0.04 * snr + 1), rel=0.03)  # v sigma^2/(alpha^2 v + sigma^2)
        assert ratio == pytest.approx(1, abs=2e-3)
    assert found.is_right


def test_samples_are_judged_on_the_nodes_of_a_chain_and_with_their_conditions():
    asked = []

    def network(x, c, label):
        asked.append(c)
        return label[:, None].to(x) * NOISE(x, c)

    network.noise_dtype = F64
    model = sg.ScoreModel(network, CHAIN, sg.NoisePrediction(INDEX))
    assert sg.diagnose(model, X0, label=torch.ones(len(X0))).is_right
    assert all(bool((c == c.round()).all()) for c in asked)
    assert not sg.diagnose(model, X0, condition={"label": torch.zeros(len(X0))}).is_right
    with pytest.raises(sg.ConfigError, match="has 3 rows for 400 samples"):
        sg.diagnose(model, X0, label=torch.ones(3))


def test_a_table_of_times_is_never_looked_up_outside():
    """On a GPU that would end the process."""
    table = torch.nn.Embedding(200, 1)

    def network(x, c):
        table(c.long())  # raises outside [0, 199]
        return V(x, c)

    network.noise_dtype = F64
    told = sg.Convention(CHAIN, "index", rounded=True)
    found = sg.diagnose(sg.ScoreModel(network, CHAIN, sg.NoisePrediction(told)), X0)
    assert "VPrediction" in found.likely


@pytest.mark.parametrize(
    ("x0", "match"),
    [
        (torch.zeros(8, 3), "finite and not all the same"),
        (torch.full((8, 3), float("nan")), "finite and not all the same"),
        (torch.zeros(8), "two samples or more"),
        (torch.randn(1, 3), "two samples or more"),
        (torch.zeros(8, 3, dtype=torch.long), "must be a floating tensor"),
        ([[0.0]], "must be a floating tensor"),
    ],
)
def test_refusals(x0, match):
    with pytest.raises(sg.ConfigError, match=match):
        sg.diagnose(sg.ScoreModel(NOISE, CHAIN), x0)
    with pytest.raises(sg.ConfigError, match="levels"):
        sg.diagnose(sg.ScoreModel(NOISE, CHAIN), X0, levels=1)
    with pytest.raises(sg.ConfigError, match="model must be a ScoreModel"):
        sg.diagnose(NOISE, X0)
