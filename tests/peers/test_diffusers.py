"""The same trajectories as diffusers (compared with 0.42.1), and where it differs.

Time-step conventions: index i of diffusers, 0 ... K-1, is the node t = (i+1)/K here. Its schedulers hold their tables
in float32; where a scheduler steps in the dtype of the state it is given a float64 table and compared to 1e-10.
"""

import math

import numpy as np
import pytest
import torch

import sde_gen as sg
from tests.peers.problem import F64, Noise, model_of, states

pytest.importorskip("diffusers")
import diffusers
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm

# Its own code calls numpy in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def exact_table(scheduler, p):
    scheduler.alphas_cumprod = p.alpha(p.nodes) ** 2
    scheduler.betas = p.betas
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=F64)
    return scheduler


@pytest.mark.parametrize(
    ("ours", "theirs", "beta_schedule"),
    [
        (sg.DDPM(1000), {}, "linear"),
        (sg.DDPM(1000, "quadratic"), {}, "scaled_linear"),
        (sg.DDPM(1000, "sigmoid"), {}, "sigmoid"),
        (sg.DDPM(100, "linear"), {"beta_start": 1e-3, "beta_end": 0.2, "num_train_timesteps": 100}, "linear"),
    ],
    ids=str,
)
def test_tables(ours, theirs, beta_schedule):
    """Equal to the rounding of its float32 tables, which accumulates over 1,000 factors."""
    scheduler = diffusers.DDPMScheduler(beta_schedule=beta_schedule, **theirs)
    np.testing.assert_allclose(scheduler.betas, ours.betas, rtol=3e-6)
    np.testing.assert_allclose(scheduler.alphas_cumprod, ours.alpha(ours.nodes) ** 2, rtol=3e-5)


def test_cosine_table():
    """Its betas are 1 - f(t_{k+1})/f(t_k) as here; taken in float32, clipped at the same 0.999."""
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    np.testing.assert_allclose(scheduler.betas, sg.DDPM(1000, "cosine").betas, rtol=1e-6)


@pytest.mark.parametrize(("variance", "theirs"), [("small", "fixed_small"), ("large", "fixed_large")])
@pytest.mark.parametrize("p", [sg.DDPM(50), sg.DDPM(50, "cosine")], ids=str)
def test_ddpm(monkeypatch, p, variance, theirs):
    """All K nodes; the last step has no noise and is the denoised estimate in both."""
    noise, model, x = Noise(), model_of(p), states()
    scheduler = exact_table(
        diffusers.DDPMScheduler(p.steps, variance_type=theirs, clip_sample=False, beta_schedule="linear"), p
    )
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", noise.in_order())
    path, mine = [], []
    y = x
    for i in range(p.steps - 1, -1, -1):
        y = scheduler.step(model(y, float(p.nodes[i])).noise, i, y).prev_sample
        path.append(y)
    result = sg.Ancestral(variance=variance)(
        model, start=x, noise=noise, callback=lambda step, t, state: mine.append(state.clone())
    )
    assert len(mine) == p.steps + 1
    for a, b in zip(mine[1:], path, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert result.nfe == p.steps


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_on_a_subset_of_nodes(monkeypatch, variance):
    """spacing "linspace" is the grid used here: the first and the last node and an even choice between."""
    p, noise, x = sg.DDPM(1000), Noise(), states()
    model = model_of(p)
    scheduler = exact_table(
        diffusers.DDPMScheduler(variance_type=f"fixed_{variance}", clip_sample=False, timestep_spacing="linspace"), p
    )
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", noise.in_order())
    scheduler.set_timesteps(20)
    sampler = sg.Ancestral(variance=variance, steps=20)
    index = (sampler.times(model) * 1000).round().long() - 1
    assert index.tolist() == scheduler.timesteps.tolist()
    # Given as a list, so that it steps to the next time of the list (by itself it steps by K // n, see below).
    scheduler.set_timesteps(timesteps=index.tolist())
    y = x
    for i in index.tolist():
        y = scheduler.step(model(y, float(p.nodes[i])).noise, i, y).prev_sample
    torch.testing.assert_close(sampler(model, start=x, noise=noise).x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim(monkeypatch, eta, steps):
    """spacing "trailing" with a divisor of K: nodes K, K - K/n, ...; the step from the last one is onto clean data."""
    p, noise, x = sg.DDPM(1000), Noise(), states()
    model = model_of(p)
    scheduler = exact_table(diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), p)
    monkeypatch.setattr(scheduling_ddim, "randn_tensor", noise.in_order())
    scheduler.set_timesteps(steps)
    times = [float(p.nodes[i]) for i in scheduler.timesteps]
    y = x
    for i, t in zip(scheduler.timesteps.tolist(), times, strict=True):
        y = scheduler.step(model(y, t).noise, i, y, eta=eta).prev_sample
    mine = sg.DDIM(eta=eta, grid=times)(model, start=x, noise=noise).x
    torch.testing.assert_close(mine, y, rtol=1e-10, atol=1e-10)


def test_where_its_ddim_is_wrong_it_steps_past_the_next_time():
    """With spacing "linspace" it visits 999, 888, ... but steps by K // n = 100 each time, so the state it hands to
    the network at 888 has the noise of 899. The answer is off by more than 1 % of a standard deviation."""
    p, x = sg.DDPM(1000), states()
    model = model_of(p)
    scheduler = exact_table(diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="linspace"), p)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[:2].tolist() == [999, 888]
    y = x
    for i in scheduler.timesteps.tolist():
        y = scheduler.step(model(y, float(p.nodes[i])).noise, i, y).prev_sample
    mine = sg.DDIM(steps=10)(model, start=x)
    assert [round(1000 * t) - 1 for t in sg.DDIM(steps=10).times(model).tolist()] == scheduler.timesteps.tolist()
    assert float((mine.x - y).abs().max()) > 0.01


def test_where_its_trailing_list_is_wrong_it_ends_below_the_first_node():
    """For some step counts round(arange(K, 0, -K/n)) - 1 contains -1, which indexes the table from its end. The grids
    here never leave the nodes."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    bad = []
    for n in range(1, 1001):
        scheduler.set_timesteps(n)
        if int(scheduler.timesteps.min()) < 0:
            bad.append(n)
    assert len(bad) == 62
    model = model_of(sg.DDPM(1000))
    for n in bad:
        times = sg.DDIM(steps=n).times(model)
        assert len(times) == n
        assert float(times.min()) == 0.001


# -- Karras' grid: its schedulers step in float32 ----------------------------------------------------------------------


def karras(scheduler, n=12):
    scheduler.set_timesteps(n)
    sigmas = scheduler.sigmas.double()
    sigmas = sigmas[sigmas > 0].unique().flip(0)
    assert len(sigmas) == n
    p = sg.EDM(float(sigmas[-1]), float(sigmas[0]))
    mine = p.sigma(sg.KarrasRho().times(p, n, 0.0, 1.0))
    np.testing.assert_allclose(mine, sigmas, rtol=2e-6)
    return p, sg.GivenLambdas(tuple((-sigmas.log()).tolist()))


def widened(p):
    """The same process with room for the rounding of its end points."""
    return sg.EDM(p.sigma_min * (1 - 1e-6), p.sigma_max * (1 + 1e-6))


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_euler_and_heun_on_karras_sigmas(name):
    """Noise prediction on x = x0 + sigma eps; its last step lands on sigma = 0, which is the denoised estimate."""
    scheduler = getattr(diffusers, name)(use_karras_sigmas=True, timestep_spacing="linspace")
    p, grid = karras(scheduler)
    p = widened(p)
    model, x = model_of(p, torch.float32), states(p, dtype=torch.float32)
    y = x
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(y, t)  # only to tell it that we know
        sigma = float(scheduler.sigmas[scheduler.step_index if scheduler.step_index is not None else i])
        # At the second stage of Heun's step the model is asked at the time the Euler step went to.
        y = scheduler.step(model(y, float(p.time(-math.log(sigma)))).noise, t, y).prev_sample
    sampler = sg.DDIM(grid=grid) if name.startswith("Euler") else sg.Heun(grid=grid)
    mine = sampler(model, start=x)
    assert mine.nfe == len(scheduler.timesteps)
    # 12 steps of float32, from a state of size 15 p.prior_std/15 down to 1.
    torch.testing.assert_close(mine.x, y, rtol=2e-5, atol=2e-5 * p.prior_std)


@pytest.mark.parametrize(("exact", "solver_type"), [(False, "midpoint"), (True, "heun")])
@pytest.mark.parametrize("steps", [6, 20])
@pytest.mark.parametrize("uses_karras", [False, True])
def test_dpm_solver_pp_2m(exact, solver_type, steps, uses_karras):
    """exact=False is the paper's ("midpoint"); exact=True what it calls "heun". VP scaling, first-order last step."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_type=solver_type, use_karras_sigmas=uses_karras, timestep_spacing="linspace"
    )
    scheduler.set_timesteps(steps)
    lambdas = -scheduler.sigmas[:-1].double().log()
    p = sg.VP(0.1, 21.0)  # a little wider than the chain, so that it has all of its noise levels
    model, x = model_of(p, torch.float32), states(dtype=torch.float32)
    y = x
    for lam, t in zip(lambdas, scheduler.timesteps, strict=True):
        y = scheduler.step(model(y, p.time(lam)).noise, t, y).prev_sample
    mine = sg.DPMSolverPP2M(exact=exact, grid=sg.GivenLambdas(tuple(lambdas.tolist())))(model, start=x)
    assert mine.nfe == steps
    torch.testing.assert_close(mine.x, y, rtol=5e-5, atol=5e-5)


def test_edm_preconditioning():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    sigma, x, raw = torch.tensor(0.7), states(dtype=torch.float32), states(n=5, dtype=torch.float32) * 0.3
    model = sg.ScoreModel(lambda scaled, c: seen.append((scaled, c)) or raw, sg.EDM(), sg.EDMPreconditioning(0.5))
    seen = []
    denoised = model(x, sg.EDM().time(-sigma.double().log())).denoised
    torch.testing.assert_close(denoised, scheduler.precondition_outputs(x, raw, sigma), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[0][0], scheduler.precondition_inputs(x, sigma), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[0][1][0], scheduler.precondition_noise(sigma), rtol=1e-5, atol=1e-6)


def test_langevin_corrector_of_its_score_sde_ve(monkeypatch):
    """norm="batch": one corrector step at the largest level of a VE chain, from the same state with the same noise."""
    from diffusers.schedulers import scheduling_sde_ve

    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=10, snr=0.17, sigma_min=0.01, sigma_max=8.0)
    scheduler.set_timesteps(10)
    scheduler.set_sigmas(10)
    p, noise, x = sg.NCSN(0.01, 8.0, 10), Noise(), states(sg.NCSN(0.01, 8.0, 10), dtype=torch.float32)
    np.testing.assert_allclose(scheduler.discrete_sigmas, p.sigma(p.nodes), rtol=1e-5)
    model, mine = model_of(p, torch.float32), []
    monkeypatch.setattr(scheduling_sde_ve, "randn_tensor", lambda shape, **kwargs: noise(x, 0, 1))
    theirs = scheduler.step_correct(model(x, 1.0).score, x).prev_sample
    corrector = sg.Langevin(snr=0.17, norm="batch")
    sg.PredictorCorrector(predictor=None, corrector=corrector, steps=10)(
        model, start=x, noise=noise, callback=lambda step, t, state: mine.append(state.clone())
    )
    torch.testing.assert_close(mine[1], theirs, rtol=1e-5, atol=1e-5)
