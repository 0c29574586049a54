"""Networks of research codes: where the weights lie in their files, and what the network was shown and told.

==========  ================================================  =====================================================
family      process (sde=)                                    the network
==========  ================================================  =====================================================
score_sde   VP, SubVP; DDPM; VE; NCSN                         noise of 999 t, of the index; score of sigma, of N-1-index
ncsnv2      NCSN                                              score of L-1-index
adm         DDPM                                              noise of the index, of index * 1000/K with rescaled=true
ddp         alphas_cumprod of the file                        as parameterization= says, of the index
dit         DDPM                                              noise of the index
sit         FlowMatching                                      minus the velocity of 1 - t
edm         EDM, VP, VE, a Table, by the class in the file    as preconditioned there
==========  ================================================  =====================================================

score_sde: Song et al. 2021, arXiv:2011.13456; ncsnv2: Song & Ermon 2020, arXiv:2006.09011; adm: Dhariwal & Nichol 2021,
arXiv:2105.05233; dit: Peebles & Xie 2023, arXiv:2212.09748; sit: Ma et al. 2024, arXiv:2401.08740; edm: Karras et al.
2022, arXiv:2206.00364; ddp: lucidrains' denoising-diffusion-pytorch.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sde_gen.conventions import Convention
from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.interop.pickled import Shell, read_pickle
from sde_gen.interop.weight_files import at, find_weights, read_file
from sde_gen.parameterizations import (
    DataPrediction,
    EDMPreconditioning,
    NoisePrediction,
    Parameterization,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
)
from sde_gen.perturbations import EDM, NCSN, VE, VP, Chain, FlowMatching, Perturbation, SubVP, Table


class Read(NamedTuple):
    """What a file of a family says."""

    process: Perturbation
    parameterization: Parameterization
    weights: dict[str, Tensor]
    averaged: Any
    """Weights averaged over training: a mapping, a list by position, or None."""
    called: dict[str, Any]
    """Arguments of `Called` that go with the family."""


def _song(p: Perturbation) -> Parameterization:
    if isinstance(p, VP | SubVP):
        return NoisePrediction(Convention(p, "t", scale=999.0))
    if isinstance(p, VE):
        return ScorePrediction(Convention(p, "sigma"), of="score")
    if isinstance(p, NCSN):
        return ScorePrediction(Convention(p, "index", scale=-1.0, offset=p.levels - 1.0, rounded=True), of="score")
    return _by_index(p)


def _by_index(
    p: Perturbation, scale: float = 1.0, kind: Callable[..., Parameterization] = NoisePrediction
) -> Parameterization:
    if not isinstance(p, Chain):
        raise ConfigError(f"from=: this network was trained on a chain such as sde=ddpm, not on {p}")
    return kind(Convention(p, "index", scale=scale))


def _flow(p: Perturbation) -> Parameterization:
    return VelocityPrediction(Convention(p, "t", scale=-1.0, offset=1.0), sign=-1)


_KINDS = {"NoisePrediction": NoisePrediction, "DataPrediction": DataPrediction, "VPrediction": VPrediction}
FAMILIES = ("score_sde", "ncsnv2", "adm", "ddp", "dit", "sit", "edm")


def read(family: str, path: Path, p: Perturbation, asked: Parameterization, *, rescaled: bool = False) -> Read:
    """What a file of a family says, for a network that was trained on `p`.

    Args:
        family: one of `FAMILIES`.
        path: the file.
        p: the process; of "ddp" and "edm" the file's own is taken.
        asked: of "ddp", whether the network predicts noise, data or v.
        rescaled: of "adm", whether its times were rescaled to 1000.

    Raises:
        MissingInputError: no such file.  CheckpointError: it is of another kind.  ConfigError: p does not go with it.
    """
    if family == "edm":
        return _edm(path)
    content = read_file(path)
    if family == "score_sde":
        weights = find_weights(content, "model", "module.", path)
        return Read(p, _song(p), weights, at(content, "ema.shadow_params", path), {"whole": isinstance(p, NCSN)})
    if family == "ncsnv2":
        if not isinstance(p, NCSN):
            raise ConfigError(f"from=ncsnv2: the network was trained on sde=ncsn, not on {p}")
        averaged = content[-1] if isinstance(content, list) and len(content) > 4 else None
        return Read(p, _song(p), find_weights(content, "0", "module.", path), averaged, {"whole": True})
    if family == "ddp":
        bars = at(content, "model.alphas_cumprod", path)
        if not isinstance(bars, Tensor):
            raise CheckpointError(f"{path} holds no table alphas_cumprod")
        chain = Table.from_alpha_bars(bars.double())
        kind = _KINDS.get(type(asked).__name__, NoisePrediction)
        found = {part: _within(at(content, key, path), inside) for part, key, inside in
                 (("model", "model", "model."), ("ema", "ema", "ema_model.model."))}  # fmt: skip
        return Read(chain, _by_index(chain, kind=kind), found["model"], found["ema"] or None, {})
    inner = next(
        (key for key in ("ema", "model", "state_dict") if isinstance(content, Mapping) and key in content), None
    )
    weights = find_weights(content, inner, "module.", path)
    if family == "sit":
        return Read(
            p, _flow(FlowMatching() if not isinstance(p, FlowMatching) else p), weights, None, {"dropped": True}
        )
    scale = 1000.0 / p.length if rescaled and isinstance(p, Chain) else 1.0
    return Read(p, _by_index(p, scale), weights, None, {})


def _within(content: Any, prefix: str) -> dict[str, Tensor]:
    named = content.items() if isinstance(content, Mapping) else ()
    return {k.removeprefix(prefix): v for k, v in named if str(k).startswith(prefix) and isinstance(v, Tensor)}


def _edm(path: Path) -> Read:
    """A network with its preconditioning: F is the `model` inside."""
    outer = read_pickle(path)
    inner = outer.child("model") or outer.child("unet")
    if inner is None:
        raise CheckpointError(f"{path} holds {outer.class_name} without a network inside; edm and edm2 are read")
    p, said, more = _preconditioned(path, outer)
    weights = {name: tensor.float() for name, tensor in inner.state_dict().items()}
    return Read(p, said, weights, None, {"label": "class_labels", **more})


def _preconditioned(path: Path, outer: Shell) -> tuple[Perturbation, Parameterization, dict[str, Any]]:
    given, name = outer.arguments, outer.class_name
    state = {**given, **{k: v for k, v in outer.state.items() if isinstance(v, int | float)}}
    classes = int(state.get("label_dim") or 0)
    more = {"one_hot": classes} if classes else {}
    if name in ("EDMPrecond", "Precond"):
        return EDM(), EDMPreconditioning(float(state.get("sigma_data", 0.5))), more
    if name == "VPPrecond":
        vp = VP(float(state["beta_min"]), float(state["beta_min"]) + float(state["beta_d"]))
        return vp, NoisePrediction(Convention(vp, "t", scale=float(state["M"]) - 1)), more
    if name == "VEPrecond":
        ve = VE(float(state.get("sigma_min", 0.02)), float(state.get("sigma_max", 100.0)))
        return ve, ScorePrediction(Convention(ve, "log_sigma", offset=-math.log(2))), more
    if name == "iDDPMPrecond":
        u = outer.state.get("_buffers", {}).get("u")
        if not isinstance(u, Tensor):
            raise CheckpointError(f"{path} holds {name} without its table of levels")
        # Its network is shown x/sqrt(1 + sigma^2), the states of a variance-preserving chain.
        chain = Table(tuple(-math.log1p(v * v) for v in sorted({float(v) for v in u.double() if v > 0})))
        return chain, NoisePrediction(Convention(chain, "index", rounded=True)), {**more, "dropped": True}
    raise CheckpointError(
        f"{path} holds {name}, which is none of EDMPrecond, Precond, VPPrecond, VEPrecond, iDDPMPrecond"
    )


def built_from(family: str, path: Path) -> tuple[str, dict[str, Any]]:
    """Name of the class and arguments of the network inside a file of edm."""
    if family != "edm":
        return "", {}
    inner = read_pickle(path)
    inner = inner.child("model") or inner.child("unet")
    return ("", {}) if inner is None else (inner.class_name, inner.arguments)
