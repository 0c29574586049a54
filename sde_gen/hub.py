"""A `ScoreModel` that saves to and loads from the Hugging Face hub, or a folder: config.json and model.safetensors.

    model = HubModel.from_run("runs/first")
    model.save_pretrained("folder")          # or model.push_to_hub("name/of-the-model")
    model = HubModel.from_pretrained("folder")
    sg.DDIM(steps=50)(model, (16, *model.shape), seed=0)

Needs `pip install 'sde_gen[hub]'`. What is loaded is data: the classes that config.json names must be on the library's
closed list, or in a module that a subclass of yours trusts; weights are safetensors and nothing else.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from sde_gen.config.objects import build
from sde_gen.config.restore import find_checkpoint, stored_transform
from sde_gen.data import Affine
from sde_gen.errors import CheckpointError, MissingInputError, SDEGenError
from sde_gen.model import ScoreModel
from sde_gen.training.checkpoint import has_interpolation

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError as error:
    raise MissingInputError("sde_gen.hub needs huggingface_hub; run pip install 'sde_gen[hub]'") from error

__all__ = ["HubModel"]


class HubModel(
    ScoreModel,
    PyTorchModelHubMixin,
    library_name="sde_gen",
    tags=["diffusion", "score-based-generative-model"],
):
    """A `ScoreModel` made from plain configurations, which is what can be stored.

    Args:
        network: configuration of the network, such as {"_target_": "sde_gen.networks.MLP", "features": 2}.
        sde: of the perturbation, such as {"_target_": "sde_gen.VP"}.
        parameterization: of what the network predicts; noise by default.
        data: shape, number of classes and transform of the data, as a checkpoint's state holds them, or nothing.

    Attributes:
        shape: of one sample; () where it is not known.
        num_classes: classes of the labels; 0 where there are none.
        transform: from raw data to the model's scale and back, or None.
        trusted: modules whose classes a configuration may name besides the library's own; for subclasses to set.

    Raises:
        CheckpointError: a configuration that names another class, or cannot be used.
    """

    trusted: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        network: Mapping[str, Any],
        sde: Mapping[str, Any],
        parameterization: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        noise = {"_target_": "sde_gen.NoisePrediction"}
        nodes = {"network": network, "sde": sde, "parameterization": parameterization or noise}
        parts = {}
        for name, node in nodes.items():
            if not isinstance(node, Mapping) or has_interpolation(node):
                raise CheckpointError(f"HubModel: {name} must be a configuration as plain data, got {node!r}")
            try:
                parts[name] = build(dict(node), trust=self.trusted, where=name, stored=True)
            except CheckpointError:
                raise
            except SDEGenError as error:
                raise CheckpointError(f"HubModel: the configuration cannot be used: {error}") from error
        super().__init__(parts["network"], parts["sde"], parts["parameterization"])
        self.shape: tuple[int, ...] = ()
        self.num_classes = 0
        self.transform: Affine | None = None
        if data is not None:
            try:
                self.shape = tuple(int(n) for n in data["shape"])
                self.num_classes = int(data["num_classes"])
                self.transform = Affine.from_dict(data["transform"])
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"HubModel: data does not describe a data set: {error}") from error

    @classmethod
    def from_run(
        cls, path: str | os.PathLike[str], weights: Literal["ema", "model"] = "ema", trust: Sequence[str] = ()
    ) -> "HubModel":
        """The model of a run or checkpoint.

        Args:
            path: folder of a run or a checkpoint.
            weights: "ema" for the averaged weights, "model" for the last ones.
            trust: modules of your own whose classes the checkpoint may name, beside `trusted`.

        Raises:
            MissingInputError: nothing there.  CheckpointError: damaged, or it names a class that is not allowed.
        """
        from sde_gen.training.state import load_weights

        checkpoint, _ = find_checkpoint(path)
        stored_transform(checkpoint)
        config = checkpoint.config
        kept = {name: checkpoint.state["data"][name] for name in ("name", "kind", "shape", "num_classes", "transform")}
        chosen = cls if not trust else type(cls.__name__, (cls,), {"trusted": (*cls.trusted, *trust)})
        model = chosen(config.get("network", {}), config.get("sde", {}), config.get("parameterization"), kept)
        network: Any = model.network
        load_weights(network, checkpoint.tensors(weights), Path(checkpoint.path))
        return model.eval()

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        raise CheckpointError(f"{model_file} is not safetensors, and nothing else is read; convert the weights first")

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """Every tensor must be there and fit: `strict` is not asked."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from sde_gen.training.state import load_weights

        try:
            tensors = load_file(model_file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{model_file} is damaged ({error}); load it again") from error
        load_weights(model, tensors, Path(model_file))
        return model.to(torch.device(map_location)).eval()
