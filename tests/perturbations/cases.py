"""The perturbations that the tests run over, found by discovery, and their curves written a second time in mpmath."""

import itertools
import math

import mpmath as mp
import torch

import sde_gen as sg
from sde_gen.perturbations import Perturbation


def concrete(base: type) -> list[type]:
    """All classes of the package below `base` that can be constructed, by name."""
    found, todo = set(), [base]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        ours = cls.__module__.startswith("sde_gen.") and not cls.__name__.startswith("_")
        if ours and not getattr(cls, "__abstractmethods__", None):
            found.add(cls)
    return sorted(found, key=lambda cls: cls.__name__)


# Chains inherit their abstract methods, so `Chain` itself is abstract and does not appear.
CLASSES = concrete(Perturbation)

_VP, _SUB, _VE = sg.VP(), sg.SubVP(0.0, 12.0), sg.VE()


def vp_drift(t):
    return -0.5 * (0.1 + 19.9 * t)


def vp_diffusion(t):
    return (0.1 + 19.9 * t) ** 0.5


def sub_vp_drift(t):
    return -6.0 * t


def sub_vp_diffusion(t):
    return (12 * t * -torch.expm1(-12 * t * t)).sqrt()


def no_drift(t):
    return 0.0


def ve_diffusion(t):
    return 0.01 * 5000**t * math.sqrt(2 * math.log(5000))


#: SDEs given by f and g, with the perturbation that they are.
TWINS: dict[Perturbation, Perturbation] = {
    sg.LinearSDE(vp_drift, vp_diffusion): _VP,
    sg.LinearSDE(sub_vp_drift, sub_vp_diffusion): _SUB,
    sg.LinearSDE(no_drift, ve_diffusion, sigma_min=0.01): _VE,
    sg.LinearSDE((-0.05, -10.0), vp_diffusion): _VP,
}

#: For each class, the default and parameters that differ from it in every argument.
INSTANCES: dict[str, list[Perturbation]] = {
    "VP": [sg.VP(), sg.VP(0.0, 12.0), sg.VP(3.0, 3.0)],
    "SubVP": [sg.SubVP(), sg.SubVP(0.0, 12.0), sg.SubVP(3.0, 3.0)],
    "VE": [sg.VE(), sg.VE(0.1, 7.0)],
    "EDM": [sg.EDM(), sg.EDM(0.02, 9.0, 1.0)],
    "Cosine": [sg.Cosine(), sg.Cosine(0.0), sg.Cosine(0.3)],
    "FlowMatching": [sg.FlowMatching()],
    "DDPM": [
        sg.DDPM(),
        sg.DDPM(50, "quadratic"),
        sg.DDPM(37, "sigmoid", 2e-4, 0.03),
        sg.DDPM(20, "cosine"),
        sg.DDPM(1, "cosine"),
        sg.DDPM(2, "linear", 1e-4, 1e-3),
    ],
    "NCSN": [sg.NCSN(), sg.NCSN(0.1, 3.0, 2), sg.NCSN(0.01, 1.0, 10), sg.NCSN(sigmas=(0.1, 0.3, 0.5, 2.0))],
    "Table": [
        sg.Table.from_betas([1e-3 + 0.3 * (k / 24) ** 3 for k in range(25)]),
        sg.Table.from_alpha_bars((0.7,)),
        sg.Table.from_alpha_bars((0.9999, 0.5, 1e-3, 0.0)),
        sg.Table.zero_terminal_snr(sg.DDPM(50)),
    ],
    "LinearSDE": list(TWINS),
}
ALL = [p for cases in INSTANCES.values() for p in cases]
CONTINUOUS = [p for p in ALL if not p.is_chain]
CHAINS = [p for p in ALL if p.is_chain]
DEFAULTS = [cases[0] for cases in INSTANCES.values()]


# -- the curves once more: FACTS written out with 60 digits, log alpha and sigma^2 at an exact t -----------------------

mp.mp.dps = 60


def _mp(x: float) -> mp.mpf:
    return mp.mpf(x)


def _linear_beta(p, t):
    return -(t**2) * (_mp(p.beta_max) - _mp(p.beta_min)) / 4 - t * _mp(p.beta_min) / 2


def _vp(p, t):
    log_alpha = _linear_beta(p, t)
    return log_alpha, 1 - mp.exp(2 * log_alpha)


def _sub_vp(p, t):
    log_alpha = _linear_beta(p, t)
    return log_alpha, (1 - mp.exp(2 * log_alpha)) ** 2


def _ve(p, t):
    return mp.mpf(0), _mp(p.sigma_min) ** 2 * (_mp(p.sigma_max) / _mp(p.sigma_min)) ** (2 * t)


def _edm(p, t):
    low, high = (_mp(v) ** (1 / _mp(p.rho)) for v in (p.sigma_min, p.sigma_max))
    return mp.mpf(0), (low + t * (high - low)) ** (2 * _mp(p.rho))


def _cosine_alpha2(t, s):
    def wave(u):
        return mp.cos((u + s) / (1 + s) * mp.pi / 2) ** 2

    return wave(t) / wave(mp.mpf(0)) if t != 1 else mp.mpf(0)


def _cosine(p, t):
    alpha2 = _cosine_alpha2(t, _mp(p.s))
    return (mp.log(alpha2) / 2 if alpha2 else -mp.inf), 1 - alpha2


def _flow(p, t):
    return (mp.log(1 - t) if t != 1 else -mp.inf), t**2


def ddpm_betas(steps, schedule, beta_min=1e-4, beta_max=0.02) -> list[mp.mpf]:
    low, high = _mp(beta_min) * 1000 / steps, _mp(beta_max) * 1000 / steps
    unit = [mp.mpf(k) / max(steps - 1, 1) for k in range(steps)]
    if schedule == "linear":
        return [low + u * (high - low) for u in unit]
    if schedule == "quadratic":
        return [(mp.sqrt(low) + u * (mp.sqrt(high) - mp.sqrt(low))) ** 2 for u in unit]
    if schedule == "sigmoid":
        return [low + (high - low) / (1 + mp.exp(6 - 12 * u)) for u in unit]
    alpha2 = [_cosine_alpha2(mp.mpf(k) / steps, mp.mpf(0.008)) for k in range(steps + 1)]
    return [min(1 - b / a, mp.mpf(0.999)) for a, b in itertools.pairwise(alpha2)]


_TABLES: dict[Perturbation, list[mp.mpf]] = {}


def table(p) -> list[mp.mpf]:
    """lambda at the nodes."""
    if p not in _TABLES:
        if isinstance(p, sg.DDPM):
            alpha2, lambdas = mp.mpf(1), []
            for beta in ddpm_betas(p.steps, p.schedule, p.beta_min, p.beta_max):
                alpha2 *= 1 - beta
                lambdas.append(mp.log(alpha2 / (1 - alpha2)) / 2)
        elif isinstance(p, sg.Table):
            alpha2s = [mp.exp(_mp(v)) for v in p.log_alpha_bar]
            lambdas = [mp.log(a / (1 - a)) / 2 if a else -mp.inf for a in alpha2s]
        elif p.sigmas is not None:
            lambdas = [-mp.log(_mp(v)) for v in p.sigmas]
        else:
            ratio = _mp(p.sigma_max) / _mp(p.sigma_min)
            lambdas = [-mp.log(_mp(p.sigma_min) * ratio ** (mp.mpf(k) / (p.levels - 1))) for k in range(p.levels)]
        _TABLES[p] = lambdas
    return _TABLES[p]


def _chain_ratio(p, t):
    """sigma^2/alpha^2: linear below the first node, lambda linear between nodes."""
    lambdas = table(p)
    position = t * len(lambdas)
    if position <= 1:
        return mp.exp(-2 * lambdas[0]) * position
    left = min(int(mp.ceil(position)) - 1, len(lambdas) - 1)  # node at or before, counted from 1
    share = position - left
    if lambdas[left] == -mp.inf:  # no signal at the last node: alpha/sigma falls linearly
        return mp.exp(-2 * lambdas[left - 1]) / (1 - share) ** 2 if share < 1 else mp.inf
    return mp.exp(-2 * (lambdas[left - 1] * (1 - share) + lambdas[left] * share))


def _ddpm(p, t):
    ratio = _chain_ratio(p, t)
    return -mp.log(1 + ratio) / 2, ratio / (1 + ratio) if ratio < mp.inf else mp.mpf(1)


def _ncsn(p, t):
    return mp.mpf(0), _chain_ratio(p, t)


REFERENCE = {
    "VP": _vp,
    "SubVP": _sub_vp,
    "VE": _ve,
    "EDM": _edm,
    "Cosine": _cosine,
    "FlowMatching": _flow,
    "DDPM": _ddpm,
    "NCSN": _ncsn,
    "Table": _ddpm,
    "LinearSDE": lambda p, t: REFERENCE[type(TWINS[p]).__name__](TWINS[p], t),
}


def reference(p: Perturbation, t: float) -> tuple[mp.mpf, mp.mpf]:
    """(log alpha, sigma^2) at the exact value of the float t."""
    return REFERENCE[type(p).__name__](p, mp.mpf(float(t)))


def reference_alpha_sigma(p: Perturbation, t: float) -> tuple[float, float]:
    log_alpha, variance = reference(p, t)
    return float(mp.exp(log_alpha)), float(mp.sqrt(variance))


def reference_lambda(p: Perturbation, t: float) -> float:
    log_alpha, variance = reference(p, t)
    if variance == 0:
        return math.inf
    return float(log_alpha - mp.log(variance) / 2)
