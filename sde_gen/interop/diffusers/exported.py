"""A model as a network of diffusers; importing this file imports diffusers."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from sde_gen.config.restore import build_model
from sde_gen.interop.diffusers.library import library

diffusers: Any = library()
ModelMixin = diffusers.ModelMixin  # where its pipelines look for the way to load a class of this module
register_to_config = import_module("diffusers.configuration_utils").register_to_config
UNet2DOutput = import_module("diffusers.models.unets.unet_2d").UNet2DOutput


class SdeGenNetwork(ModelMixin, diffusers.ConfigMixin):
    """A model of sde_gen that a pipeline of diffusers calls with the index of a node.

    The index k, between nodes linearly, is the half log-SNR at which the model is asked, in the variance-preserving
    frame in which every scheduler of diffusers works: alpha_k^2 = 1/(1 + exp(-2 lambda_k)).

    Args:
        model: its network, sde, parameterization and data, as plain data.
        half_log_snr: of the nodes, falling.
        prediction_type: what is said: epsilon, sample or v_prediction.
        sample_size, in_channels, out_channels, num_class_embeds: what pipelines ask of a network.

    Raises:
        CheckpointError: a description that names a class which is not the library's own.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        model: Mapping[str, Any],
        half_log_snr: list[float],
        prediction_type: str = "epsilon",
        sample_size: int | list[int] | None = None,
        in_channels: int | None = None,
        out_channels: int | None = None,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        self.held = build_model(dict(model), "of an exported model", about=model.get("data"))
        self.lambdas = torch.tensor(half_log_snr, dtype=torch.float64)  # no buffer: stays float64 wherever it goes

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The prediction for states (B, C, H, W) at nodes `timestep`, () or (B,)."""
        index = torch.as_tensor(timestep, device="cpu").double().reshape(-1).expand(len(sample)).clamp_min(0)
        below = index.floor().long().clamp_max(len(self.lambdas) - 1)
        above = (below + 1).clamp_max(len(self.lambdas) - 1)
        lam = torch.lerp(self.lambdas[below], self.lambdas[above], index - below)
        alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
        condition = {} if class_labels is None else {"label": class_labels}
        said = self.held.levels(alpha[None], sigma[None], sample, condition).prediction(0, sample)
        kinds = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v"}
        out = getattr(said, kinds[self.config.prediction_type])
        if said.log_variance_fraction is not None:
            out = torch.cat([out, 2 * said.log_variance_fraction - 1], 1)
        return UNet2DOutput(sample=out) if return_dict else (out,)
