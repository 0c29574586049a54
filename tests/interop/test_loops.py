"""The published sampling loops and ours, from the same start with the same draws and weights, to the same end.

Each gap is max |ours - theirs| / max |theirs|. Networks are float32 on both sides; what the files of a family say goes
through `families.read`, as an import does, save where a loop tells its network otherwise.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.interop.called import Called
from sde_gen.interop.families import read
from sde_gen.likelihood.divergence import fixed_probes
from tests.interop.loops import ADM, EDM, SCORE_SDE, SNR, STEPS, TOLERANCE, Slow, Twice, draw, ended, network_of, start
from tests.interop.nets import gap
from tests.interop.pickles import write_edm
from tests.networks.references import inputs, reference

pytestmark = pytest.mark.filterwarnings("ignore::sde_gen.errors.BetweenNodesWarning")
#: What the files say of the preconditionings, and the levels that the loop takes: its own, as far as the network knows.
GIVEN = {"EDMPrecond": {"sigma_data": 0.5}, "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000},
         "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100.0}, "iDDPMPrecond": {}}  # fmt: skip
LEVELS = {"VEPrecond": sg.EDM(sigma_min=0.02)}


def churned(told: dict[str, float]) -> sg.EDMChurn:
    return sg.EDMChurn(s_churn=told["S_churn"], s_tmin=told["S_min"], s_tmax=told["S_max"], s_noise=told["S_noise"],
                       steps=18)  # fmt: skip


@pytest.mark.parametrize("cell", EDM)
def test_edm_sampler(cell: str, tmp_path: Path) -> None:
    """Algorithms 1 and 2 on every preconditioning; with iDDPM's the levels are its nodes, the nearest in sigma."""
    said, (kind, name, told) = ended("edm"), EDM[cell]
    write_edm(tmp_path / "net.pkl", kind, {"u": said["u"]} if kind == "iDDPMPrecond" else {}, **GIVEN[kind])
    found = read("edm", tmp_path / "net.pkl", sg.VP(), sg.NoisePrediction())
    network = network_of(name)
    network = Called(Twice(network), **found.called) if kind == "iDDPMPrecond" else network
    model = sg.ScoreModel(network, found.process, found.parameterization).eval()
    p, t = LEVELS.get(kind, sg.EDM()), torch.linspace(1, 0, 18, dtype=torch.float64)
    sampler = churned(told) if told else sg.Heun(steps=18)
    if kind == "VEPrecond":  # at t = 0, from where on it was trained; ours stops at t_min by itself
        sampler = sg.Heun(grid=t)
    if kind == "iDDPMPrecond":
        u, p = said["u"][:-1].double().flip(0), found.process
        nearest = (sg.EDM(sigma_min=float(u[0])).sigma(t)[:, None] - u).abs().argmin(1)
        t = p.nodes[nearest]
        sampler = sg.Heun(grid=t)
    result = sampler(model.under(p), start=start(16).double() * p.sigma(t[0]), noise=draw)
    assert result.nfe == 35
    assert gap(result.x, said[cell]) < 2e-6


class Scored(nn.Module):
    """The score of a model that was trained on all times, at those that the loop visits, by the index of its step."""

    def __init__(self, model: sg.ScoreModel, last: float) -> None:
        super().__init__()
        self.model, self.times = model, torch.linspace(last, 1, STEPS, dtype=torch.float64)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.model(x, self.times[index.long()]).score


def song(cell: str, tmp_path: Path, p: sg.Perturbation) -> sg.ScoreModel:
    torch.save({"model": reference(SCORE_SDE[cell][1])[0], "ema": {"shadow_params": []}}, tmp_path / "w.pt")
    found = read("score_sde", tmp_path / "w.pt", p, sg.NoisePrediction())
    return sg.ScoreModel(network_of(SCORE_SDE[cell][1]), p, found.parameterization).eval()


@pytest.mark.parametrize("cell", SCORE_SDE)
def test_pc_sampler(cell: str, tmp_path: Path) -> None:
    """Reverse diffusion and a step of Langevin at each of 50 times.

    A published loop of N steps takes those of a chain of N nodes, whatever N the network was trained with: betas from
    beta_min/N to beta_max/N, and sigmas from sigma_min to sigma_max. A network of all times is asked at N times from 1
    to eps; one of a chain is told t (N - 1) for them, which is up to eps (N - 1) above the node of the step. Its last
    state is (2 - sqrt(1 - beta)) x + beta score, where ours is (x + beta score)/sqrt(1 - beta): 1e-6 apart here.
    """
    chain = sg.NCSN(levels=STEPS) if cell == "ve" else sg.DDPM(STEPS)
    if cell == "vp_chain":
        told = sg.Convention(chain, "index", scale=0.999, offset=0.001 * (STEPS - 1))
        model = sg.ScoreModel(network_of(SCORE_SDE[cell][1]), chain, sg.NoisePrediction(told))
    else:
        inner = song(cell, tmp_path, sg.VE() if cell == "ve" else sg.VP())
        score = sg.ScorePrediction(sg.Convention(chain, "index"), of="score")
        model = sg.ScoreModel(Scored(inner, 1e-5 if cell == "ve" else 1e-3), chain, score)
    sampler = sg.PredictorCorrector(steps=STEPS, corrector=sg.Langevin(snr=SNR, norm="batch"))
    x = sampler(model.eval(), start=start(16) * (50 if cell == "ve" else 1), noise=draw).x
    assert gap(x, ended("score_sde")[cell]) < 5e-5


@pytest.mark.parametrize("cell", [pytest.param("vp", marks=pytest.mark.slow), "ve"])
def test_likelihood(cell: str, tmp_path: Path) -> None:
    """With the same probe, both adaptive and of the same tolerances, whose errors are what is left."""
    said, x = ended("score_sde"), 0.5 * start(16)[:1]
    assert torch.equal(fixed_probes("rademacher", 1, 0, 0, x)[0], said["probe"].float())
    model = song(cell, tmp_path, sg.VE() if cell == "ve" else sg.VP())
    model.network = Slow(model.network) if cell == "vp" else model.network
    result = sg.log_likelihood(model, x, divergence="hutchinson", rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(result.log_prob, said[f"log_prob_{cell}"].double(), rtol=5e-4, atol=0)


@pytest.mark.parametrize("cell", ADM)
def test_p_sample_loop(cell: str, tmp_path: Path) -> None:
    """A learned variance, between the two of the chain of the nodes visited.

    Where even spacing falls midway between two nodes, as 25 of 1000 do once, theirs and ours take different ones.
    """
    said, told = ended("adm"), ADM[cell]
    torch.save(reference("dit_labels")[0], tmp_path / "w.pt")
    p = sg.DDPM(told["nodes"], told["betas"])
    found = read("adm", tmp_path / "w.pt", p, sg.NoisePrediction(), rescaled=told["rescaled"])
    model = sg.ScoreModel(network_of("dit_labels"), p, found.parameterization).eval()
    model = sg.guidance.Clipped(model, -1.0, 1.0) if told["clip"] else model
    result = sg.Ancestral(steps=told["visited"], variance="learned")(
        model, start=start(8), noise=draw, label=inputs("dit_labels")[2]
    )
    assert gap(result.x, said[cell]) < 5e-6
