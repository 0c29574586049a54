"""Shapes beside a batch: dimensions to the right, and what a network returned."""

from torch import Tensor

from sde_gen.errors import ConfigError

__all__ = ["halves", "tensor_of", "trailing"]


def trailing(x: Tensor, ndim: int) -> Tensor:
    """x of shape () or (B,) with dimensions appended, so that it multiplies a tensor of `ndim` dimensions."""
    return x if x.ndim == 0 else x.reshape(x.shape + (1,) * (ndim - x.ndim))


def halves(raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """F and the second half of the output of a network with a learned variance, views of it, each shaped like x."""
    return raw[:, : x.shape[1]], raw[:, x.shape[1] :]


def tensor_of(raw: object, x: Tensor, learned_variance: bool) -> Tensor:
    """The real tensor in what a network returned: itself, or the attribute `sample` of an object.

    Raises:
        ConfigError: for anything else, or a tensor that is not shaped like x (twice as wide with a learned variance).
    """
    raw = raw if isinstance(raw, Tensor) else getattr(raw, "sample", raw)
    if not isinstance(raw, Tensor):
        which = "network(x, c_noise)[0]" if isinstance(raw, tuple | list) else "the tensor in what it returns"
        raise ConfigError(
            f"the network must return a tensor shaped like its input, got {type(raw).__name__}; wrap it: "
            f"ScoreModel(lambda x, c_noise: {which}, ...)"
        )
    if not raw.is_floating_point():
        raise ConfigError(f"the network must return real floating numbers, got {raw.dtype}")
    wanted = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if learned_variance and x.ndim > 1 else tuple(x.shape)
    if tuple(raw.shape) == wanted:
        return raw
    if learned_variance:
        raise ConfigError(
            f"a network with learned_variance = True must return twice its input in dimension 1, "
            f"for {tuple(x.shape)}, got {tuple(raw.shape)}"
        )
    hint = ""
    if raw.ndim == x.ndim >= 2 and raw.shape[1] == 2 * x.shape[1]:
        hint = "; a network whose second half is a learned variance says so with an attribute learned_variance = True"
    raise ConfigError(f"the network must return the shape of its input, {tuple(x.shape)}, got {tuple(raw.shape)}{hint}")
