"""Every formulation with every sampler, through the library and through the commands' configuration."""

from pathlib import Path

import pytest
import torch

import sde_gen as sg
from sde_gen.config import build, load_config
from sde_gen.config.folder import config_dir

CONF = Path(config_dir())
SDES = sorted(path.stem for path in (CONF / "sde").glob("*.yaml"))
SAMPLERS = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))


pytestmark = [
    # The first forward-mode derivative of a process loads a part of torch that still uses TorchScript.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    # An adaptive solver goes between the nodes of a chain.
    pytest.mark.filterwarnings("ignore::sde_gen.errors.BetweenNodesWarning"),
]


@pytest.fixture(scope="module")
def perturbations() -> dict[str, sg.Perturbation]:
    own = {"linear": ["sde.drift=[-0.05,-10]", "sde.diffusion=[0.3,4.5]"]}
    own["table"] = ["sde.log_alpha_bar=[-0.1,-1,-3,-6]"]
    return {name: build(load_config("train", [f"sde={name}", *own.get(name, [])]).sde) for name in SDES}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sde_with_every_sampler(sampler: str, perturbations: dict[str, sg.Perturbation]) -> None:
    own = {name: ["sampler.rtol=0.03", "sampler.atol=0.03"] for name in ("ode", "adaptive_sde")}
    own["auto"] = ["sampler.nfe=4", "sampler.count=4", "sampler.effort=0"]
    own["uncalibrated"] = ["sampler.nfe=4"]
    steps = own.get(sampler, ["sampler.steps=4"])
    made = build(load_config("sample", [f"sampler={sampler}", *steps]).sampler)
    torch.manual_seed(0)
    network = sg.MLP(2, hidden=8, layers=1)
    for perturbation in perturbations.values():
        model = sg.ScoreModel(network, perturbation)
        samples = made(model, (3, 2), seed=1)
        assert samples.x.shape == (3, 2)
        assert bool(samples.x.isfinite().all()), (sampler, perturbation)
        assert samples.nfe >= 4
        assert torch.equal(samples.x, made(model, (3, 2), seed=1).x)
