"""Where published sampling loops end, from a start and draws that a formula gives: references that the tests compare
with.

    python benchmarks/loop_references.py edm CLONE         NVlabs/edm
    python benchmarks/loop_references.py score_sde CLONE   yang-song/score_sde_pytorch
    python benchmarks/loop_references.py adm CLONE         openai/guided-diffusion

CLONE is a folder with the published code, which is run, and not copied. Networks and their weights are those of
`benchmarks/network_references.py`; of edm and score_sde the published ones, of adm our DiT, which has been compared
there. What the loops are is in `tests/interop/loops.py`, and where they end is written to tests/interop/loops/.
"""

import argparse
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock, patch

import numpy as np
import torch
import torch.utils.cpp_extension
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from network_references import made  # noqa: E402

from sde_gen.likelihood.divergence import fixed_probes  # noqa: E402
from tests.interop.loops import ADM, EDM, FOLDER, SCORE_SDE, SNR, STEPS, TOLERANCE, Slow, Twice, draw, network_of, start  # noqa: E402
from tests.networks.references import CONFIGURATIONS, inputs, reference  # noqa: E402


def drawn(*places: tuple[int, int]) -> Callable[..., Tensor]:
    """In place of torch.randn_like: draws by their place, in the order in which the loop asks."""
    order = iter(places)
    return lambda like, *_, **__: draw(like, *next(order))


def published(family: str, name: str) -> nn.Module:
    """A published network with the weights of its reference."""
    make, _ = made(family)
    network = make(**CONFIGURATIONS[name][1]).eval()
    network.load_state_dict(reference(name)[0], strict=False)
    return network


def edm() -> dict[str, Tensor]:
    """`edm_sampler` of 18 steps on each preconditioning."""
    for name in ("click", "requests"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = MagicMock()
    from generate import edm_sampler  # pyright: ignore[reportMissingImports]
    from training import networks  # pyright: ignore[reportMissingImports]

    out = {}
    for cell, (kind, name, told) in EDM.items():
        given = {k: v for k, v in CONFIGURATIONS[name][1].items() if k not in ("in_channels", "out_channels")}
        net = getattr(networks, kind)(img_channels=3, model_type="SongUNet", **given).eval()
        inner = published("edm", name)
        net.model = Twice(inner) if kind == "iDDPMPrecond" else inner
        steps = drawn(*((k, 0) for k in range(18)))
        with torch.no_grad():
            out[cell] = edm_sampler(net, start(16), randn_like=steps, **told).float()
        if kind == "iDDPMPrecond":
            out["u"] = net.u
    return out


def score_sde() -> dict[str, Tensor]:
    """The PC sampler of 50 steps, reverse diffusion and Langevin, and the likelihood by the ODE."""
    torch.utils.cpp_extension.load = MagicMock()  # pyright: ignore[reportAttributeAccessIssue]
    import likelihood  # pyright: ignore[reportMissingImports]
    import sampling  # pyright: ignore[reportMissingImports]
    import sde_lib  # pyright: ignore[reportMissingImports]

    out = {}
    for cell, (kind, name, continuous) in SCORE_SDE.items():
        sde, network, begin = getattr(sde_lib, kind)(N=STEPS), published("score_sde", name), start(16)
        sde.prior_sampling = lambda shape, x=begin * (50 if kind == "VESDE" else 1): x
        loop = sampling.get_pc_sampler(
            sde, tuple(begin.shape), sampling.ReverseDiffusionPredictor, sampling.LangevinCorrector, lambda x: x, SNR,
            continuous=continuous, eps=1e-5 if kind == "VESDE" else 1e-3, device="cpu",
        )  # fmt: skip
        order = itertools.chain.from_iterable(((k, 1), (k, 0)) for k in range(STEPS))
        with patch("torch.randn_like", drawn(*order)):
            out[cell] = loop(network)[0]
        if continuous:
            x = 0.5 * begin[:1]
            probe = fixed_probes("rademacher", 1, 0, 0, x)[0]
            sde = getattr(sde_lib, kind)()
            ask = likelihood.get_likelihood_fn(sde, lambda x: x, rtol=TOLERANCE, atol=TOLERANCE)
            with patch("torch.randint_like", lambda *_, probe=probe, **__: (probe + 1) / 2):
                bits, _, calls = ask(Slow(network) if cell == "vp" else network, x)
            print(f"likelihood {cell}: {calls} calls")
            out[f"log_prob_{cell}"] = -(bits - 8) * (math.log(2) * x[0].numel())
            out["probe"] = probe.to(torch.int8)
    return out


def adm() -> dict[str, Tensor]:
    """`p_sample_loop` with a learned variance."""
    sys.modules.setdefault("mpi4py", MagicMock())
    from guided_diffusion import gaussian_diffusion as gd  # pyright: ignore[reportMissingImports]
    from guided_diffusion.respace import SpacedDiffusion, space_timesteps  # pyright: ignore[reportMissingImports]

    network, (_, _, label), out = network_of("dit_labels"), inputs("dit_labels"), {}
    for cell, told in ADM.items():
        diffusion = SpacedDiffusion(
            space_timesteps(told["nodes"], [told["visited"]]),
            betas=gd.get_named_beta_schedule(told["betas"], told["nodes"]),
            model_mean_type=gd.ModelMeanType.EPSILON, model_var_type=gd.ModelVarType.LEARNED_RANGE,
            loss_type=gd.LossType.RESCALED_MSE, rescale_timesteps=told["rescaled"],
        )  # fmt: skip
        asked: list[float] = []

        class Net(nn.Module):
            def forward(self, x: Tensor, t: Tensor, y: Tensor, asked: list[float] = asked) -> Tensor:
                asked.append(float(t[0]))
                return network(x, t.float(), y)

        with patch("torch.randn_like", drawn(*((k, 0) for k in range(told["visited"])))):
            out[cell] = diffusion.p_sample_loop(Net(), (2, 3, 8, 8), noise=start(8), clip_denoised=told["clip"],
                                                model_kwargs={"y": label}, device="cpu")  # fmt: skip
        out[f"times_{cell}"] = torch.tensor(asked)
    return out


def main() -> None:
    """Write the references of a family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["edm", "score_sde", "adm"])
    parser.add_argument("clone", type=Path)
    asked = parser.parse_args()
    sys.path.insert(0, str(asked.clone))
    out = {"edm": edm, "score_sde": score_sde, "adm": adm}[asked.family]()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{asked.family}.npz"
    np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in out.items()})  # pyright: ignore[reportArgumentType]
    for name, tensor in out.items():
        print(f"{path.relative_to(ROOT)} {name}: {tuple(tensor.shape)}, at most {tensor.abs().max():.4g}")


if __name__ == "__main__":
    main()
