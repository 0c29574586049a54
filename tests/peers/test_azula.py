"""The same trajectories as azula (compared with 0.11.1), in float64, under every continuous perturbation; and where it
differs. Its samplers take any schedule (alpha, sigma) and any denoiser, so both libraries get the same of each."""

import pytest
import torch

import sde_gen as sg
from tests.peers.problem import F64, Noise, model_of, states

pytest.importorskip("azula", exc_type=ImportError)
import azula.denoise
import azula.noise
import azula.sample

PROCESSES = [sg.VP(), sg.SubVP(), sg.VE(0.01, 20.0), sg.Cosine(), sg.FlowMatching()]
STEPS, STOP = 12, 0.02


class Schedule(azula.noise.Schedule):
    def __init__(self, p):
        self.p = p

    def __call__(self, t):
        return self.p.alpha(t), self.p.sigma(t)


class Denoiser(azula.denoise.Denoiser):
    def __init__(self, model):
        super().__init__()
        self.model, self.schedule = model, Schedule(model.perturbation)

    def forward(self, x, t, **kwargs):
        return azula.denoise.DiracPosterior(self.model(x, t).denoised)


def both(monkeypatch, p, theirs, ours, steps=STEPS, **kwargs):
    noise, x, model = Noise(), states(p), model_of(p)
    monkeypatch.setattr(torch, "randn_like", noise.in_order())
    sampler = theirs(Denoiser(model), start=p.t_max, stop=STOP, steps=steps, silent=True, dtype=F64, **kwargs)
    y = sampler(x)
    grid = torch.linspace(p.t_max, STOP, steps + 1, dtype=F64).tolist()
    return ours(grid=grid, denoise=False)(model, start=x, noise=noise).x, y


@pytest.mark.parametrize("p", PROCESSES, ids=str)
@pytest.mark.parametrize(
    ("theirs", "kwargs", "ours"),
    [
        ("EulerSampler", {}, lambda **k: sg.DDIM(**k)),
        ("HeunSampler", {}, lambda **k: sg.Heun(**k)),
        ("DDPMSampler", {}, lambda **k: sg.Ancestral(variance="small", **k)),
        ("DDIMSampler", {"eta": 0.0}, lambda **k: sg.DDIM(eta=0.0, **k)),
        ("DDIMSampler", {"eta": 1.0}, lambda **k: sg.DDIM(eta=1.0, **k)),
        ("xEABSampler", {"order": 1}, lambda **k: sg.DDIM(**k)),
        ("xEABSampler", {"order": 2}, lambda **k: sg.DPMSolverPP2M(exact=True, **k)),
    ],
    ids=["euler", "heun", "ddpm", "ddim0", "ddim1", "xeab1", "xeab2"],
)
def test_same_trajectory(monkeypatch, p, theirs, kwargs, ours):
    """xEAB of order 2 integrates the line through the last two estimates exactly: DPM-Solver++ 2M with exact=True."""
    mine, y = both(monkeypatch, p, getattr(azula.sample, theirs), ours, **kwargs)
    # Its exponential integrals subtract numbers of size e^u, u = log(sigma/alpha) up to 7: a few digits are lost.
    torch.testing.assert_close(mine, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", PROCESSES, ids=str)
def test_where_it_differs_its_eta_is_the_square_of_the_papers(monkeypatch, p):
    """DDIM's noise has standard deviation eta times the posterior's (Song, Meng & Ermon 2021, eq. 16). azula multiplies
    the variance by eta: its eta = 0.25 is eta = 0.5 of the paper, and of this library."""
    theirs = azula.sample.DDIMSampler
    mine, y = both(monkeypatch, p, theirs, lambda **k: sg.DDIM(eta=0.5, **k), eta=0.25)
    torch.testing.assert_close(mine, y, rtol=1e-9, atol=1e-9)
    mine, y = both(monkeypatch, p, theirs, lambda **k: sg.DDIM(eta=0.5, **k), eta=0.5)
    assert float((mine - y).abs().max()) > 0.01


def test_karras_denoiser_is_edm_preconditioning_for_unit_data():
    """With sigma_data = 1; its c_noise is log(sigma/alpha), four times EDM's."""
    p, seen = sg.VP(), []
    t, x = torch.tensor(0.4, dtype=F64), states()
    backbone = torch.nn.Linear(1, 1, dtype=F64)
    backbone.forward = lambda x, c: seen.append((x, c)) or 0.3 * x
    theirs = azula.denoise.KarrasDenoiser(backbone, Schedule(p))(x, t).mean
    mine = sg.ScoreModel(lambda x, c: seen.append((x, c)) or 0.3 * x, p, sg.EDMPreconditioning(1.0))(x, t).denoised
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen[1][0], seen[0][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(4 * seen[1][1][0].double(), seen[0][1], rtol=1e-6, atol=1e-6)


def test_its_schedules():
    """VE is the same curve. Its VP is exp(t^2 log alpha_min), ours with beta_min = 0, plus a floor of sigma_min^2."""
    t = torch.linspace(0, 1, 11, dtype=F64)
    torch.testing.assert_close(azula.noise.VESchedule(0.01, 50.0).sigma(t), sg.VE().sigma(t), rtol=1e-12, atol=0)
    theirs, ours = azula.noise.VPSchedule(0.01, 1e-3), sg.VP(0.0, -4 * float(torch.tensor(0.01, dtype=F64).log()))
    torch.testing.assert_close(theirs.alpha(t), ours.alpha(t), rtol=1e-12, atol=0)
    torch.testing.assert_close(theirs.sigma(t) ** 2, ours.sigma(t) ** 2 + 1e-6, rtol=1e-12, atol=0)
