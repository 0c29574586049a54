r"""Optimisers by name, those of torch and Muon.

Muon (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982) moves a matrix W of r rows and c columns by the nearest
orthogonal matrix of its momentum M, found by five steps of a polynomial in :math:`X X^\top`,

.. math:: X_0 = M/|M|,\quad X_{k+1} = a X_k + (b A + c A^2) X_k,\quad A = X_k X_k^\top,\qquad
          W \leftarrow (1 - \eta\,d) W - 0.2\,\eta\sqrt{\max(r, c)}\, X_5 ,

which takes every singular value to within about 0.3 of 1. The factor gives the step the size that Adam's has, so that
learning rate :math:`\eta` and decay d carry over. What is no matrix is moved by Adam.
"""

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sde_gen import checks
from sde_gen.errors import ConfigError

#: What a name means; closed, since a name may come with a stored configuration. All are in `torch.optim` but for Muon.
NAMES = {
    name.lower(): name
    for name in ("Adam", "AdamW", "Adamax", "Adagrad", "Adadelta", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
} | {"muon": "Muon"}
_DECAY = {"AdamW": 0.01, "Muon": 0.01}  # where none is asked for; other classes have none
_FUSED = ("Adam", "AdamW", "SGD")
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_THIN = 16  # a matrix with a shorter side, such as one that colours enter or leave by, has nothing to orthogonalise

Choice = str | Mapping[str, Any]
Factory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class Muon(torch.optim.Optimizer):
    """Muon for groups with `matrices` true, Adam for the others.

    Kernels of convolutions are matrices with a row for each output channel.

    Args:
        params: groups of parameters, {"params": ..., "matrices": bool, "weight_decay": float}.
        lr: learning rate, of both.
        momentum: of the matrices, in [0, 1), with Nesterov's look ahead.
        betas: of Adam.
        eps: of Adam.
        weight_decay: decoupled, of groups that state none.
        ns_steps: steps of the polynomial.

    Raises:
        ConfigError: a value out of range, or parameters that are shards of a matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        ns_steps: int = 5,
    ) -> None:
        for name, value, top in (("momentum", momentum, 1.0), ("betas[0]", betas[0], 1.0), ("betas[1]", betas[1], 1.0)):
            checks.number("Muon", name, value, low=0.0, high=top, open_high=True)
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            checks.number("Muon", name, value, low=0.0)
        checks.integer("Muon", "ns_steps", ns_steps)
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
            "ns_steps": ns_steps, "matrices": True,
        })  # fmt: skip
        for group in self.param_groups:
            if group["matrices"] and any(p.ndim < 2 for p in group["params"]):
                raise ConfigError("Muon: a parameter of less than two dimensions is no matrix; matrices=False is Adam")
            if any(hasattr(p, "full_tensor") for p in group["params"]):
                raise ConfigError("Muon needs whole matrices, but these are sharded; use trainer.strategy=ddp")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] - gradients are there
        """One step with the gradients that the parameters hold."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    (self._orthogonal if group["matrices"] else self._adam)(p, p.grad, group)

    def _orthogonal(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        momentum = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = orthogonalised(grad.lerp(momentum, group["momentum"]).flatten(1), group["ns_steps"])
        p.add_(update.view(p.shape).to(p.dtype), alpha=-0.2 * group["lr"] * math.sqrt(max(update.shape)))

    def _adam(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        (first, second), step = group["betas"], int(state["step"])
        mean, square = state["exp_avg"].lerp_(grad, 1 - first), state["exp_avg_sq"]
        square.mul_(second).addcmul_(grad, grad, value=1 - second)
        spread = (square / (1 - second**step)).sqrt_().add_(group["eps"])
        p.addcdiv_(mean, spread, value=-group["lr"] / (1 - first**step))


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """U p(S) V^T of a matrix U S V^T, where the polynomial p takes singular values near to 1; zeros of zeros.

    In the matrix's dtype on a CPU, in bfloat16 on a GPU.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    x = x.mT if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp_min(1e-30)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


def checked_choice(choice: Choice) -> Choice:
    """A choice of an optimiser that can be made: a name, or a mapping with a `_target_` and its arguments.

    Raises:
        ConfigError: a name that is not on the list, or an argument that its class does not have.
    """
    if isinstance(choice, str):
        checks.choice("trainer", "optimizer", choice.lower(), tuple(NAMES))
        return choice
    if not isinstance(choice, Mapping) or not isinstance(choice.get("_target_"), str):
        raise ConfigError(
            f"trainer: optimizer must be one of {', '.join(NAMES)}, or a mapping with the name of a class in _target_ "
            f"and its arguments, got {choice!r}"
        )
    if (cls := _known(choice["_target_"])) is not None:
        taken = [name for name in inspect.signature(cls).parameters if name not in ("params", "lr", "fused")]
        for name in choice:
            if name != "_target_":
                checks.choice(f"trainer.optimizer of {cls.__name__}", "an argument", name, taken)
    return dict(choice)


def own_target(choice: Choice) -> str | None:
    """The `_target_` of a class that is not torch's, which the user has to vouch for; else None."""
    target = choice["_target_"] if isinstance(choice, Mapping) else choice
    return None if _known(target) is not None else target


def _known(name: str) -> type[torch.optim.Optimizer] | None:
    listed = NAMES.get(name.removeprefix("torch.optim.").lower())
    return None if listed is None else Muon if listed == "Muon" else getattr(torch.optim, listed)


def make_optimizer(
    choice: Choice, network: nn.Module, weight_decay: float | None, device: torch.device, own: Factory | None = None
) -> torch.optim.Optimizer:
    """The optimiser of a network's trained parameters, fused where that can be.

    Args:
        choice: see `TrainerSettings.optimizer`.
        network: where its parameters are.
        weight_decay: of matrices alone (biases and gains have none); None: 0.01 for AdamW and Muon, else 0.
        device: where the parameters are.
        own: makes an optimiser of the user's own instead, of groups of parameters.

    Raises:
        ConfigError: a class of the user's own is named without `own`; arguments that the class refuses.
    """
    params = [p for p in network.parameters() if p.requires_grad]
    if own is not None:
        groups = [{"params": params}] if weight_decay is None else _groups(network, params, weight_decay)
        made = own(groups)
        if not isinstance(made, torch.optim.Optimizer):
            raise ConfigError(f"an optimiser must be a torch.optim.Optimizer, got {type(made).__name__}")
        return made
    target = choice["_target_"] if isinstance(choice, Mapping) else choice
    given = {key: value for key, value in choice.items() if key != "_target_"} if isinstance(choice, Mapping) else {}
    cls = _known(target)
    if cls is None:
        raise ConfigError(f"trainer.optimizer._target_={target} is not one of torch's optimisers; give the class "
                          "itself, Trainer(optimizer=...), or on the command line trust=[its module]")  # fmt: skip
    if weight_decay is not None and "weight_decay" in given:
        raise ConfigError("give trainer.weight_decay or that of trainer.optimizer, not both")
    name, decay = cls.__name__, given.pop("weight_decay", weight_decay)
    decay = checks.number("trainer", "weight_decay", _DECAY.get(name, 0.0) if decay is None else decay, low=0)
    if name in _FUSED and device.type in ("cpu", "cuda") and not any(p.is_complex() for p in params):
        given["fused"] = True
    try:
        return cls(_groups(network, params, decay, name == "Muon"), **given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"trainer.optimizer: {name} refuses {given}: {error}") from error


def _groups(network: nn.Module, params: list[nn.Parameter], decay: float, muon: bool = False) -> list[dict[str, Any]]:
    """One group where all are treated alike; else matrices apart from the rest."""
    if not muon:
        if not decay:
            return [{"params": params, "weight_decay": 0.0}]
        split = [[p for p in params if (p.ndim >= 2) is matrix] for matrix in (True, False)]
        return [{"params": part, "weight_decay": d} for part, d in zip(split, (decay, 0.0), strict=True) if part]
    tables = {id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}

    def kind(p: Tensor) -> int:
        if p.ndim < 2:
            return 2
        return int(id(p) in tables or p.is_complex() or min(len(p), p[0].numel()) < _THIN)

    parts: list[list[nn.Parameter]] = [[], [], []]
    for p in params:
        parts[kind(p)].append(p)
    return [
        {"params": part, "matrices": k == 0, "weight_decay": 0.0 if k == 2 else decay}
        for k, part in enumerate(parts)
        if part
    ]


def fresh_state(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
    """What `optimizer` keeps of the parameter `p` of `group` after one step, made on a stand-in for it."""
    stand_in = nn.Parameter(torch.zeros_like(p))
    stand_in.grad = torch.zeros_like(stand_in)
    probe = object.__new__(type(optimizer))
    probe.__dict__ |= optimizer.__dict__ | {
        "state": defaultdict(dict),
        "param_groups": [{**group, "params": [stand_in]}],
    }
    for told in ("found_inf", "grad_scale"):  # of the newest step, in the trainer's own
        probe.__dict__.pop(told, None)
    probe.step()
    return dict(probe.state[stand_in])
