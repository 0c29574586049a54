"""A `ScoreModel` on the Hugging Face hub: what `sg.save` writes and `sg.load` reads, with `push_to_hub`.

    model = HubModel.from_run("runs/first")
    model.push_to_hub("name/of-the-model")   # or model.save_pretrained("folder")
    model = HubModel.from_pretrained("name/of-the-model")

Needs `pip install 'sde_gen[hub]'`.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from sde_gen.config.restore import build_model
from sde_gen.errors import MissingInputError
from sde_gen.loading import load, load_saved, save
from sde_gen.model import ScoreModel

try:
    from huggingface_hub import PyTorchModelHubMixin, snapshot_download
except ImportError as error:
    raise MissingInputError("sde_gen.hub needs huggingface_hub; run pip install 'sde_gen[hub]'") from error

__all__ = ["HubModel"]


class HubModel(
    ScoreModel, PyTorchModelHubMixin, library_name="sde_gen", tags=["diffusion", "score-based-generative-model"]
):
    """A `ScoreModel` made from plain configurations, which is what can be stored.

    Args:
        network: configuration of the network, such as {"_target_": "sde_gen.networks.MLP", "features": 2}.
        sde: of the perturbation, such as {"_target_": "sde_gen.VP"}.
        parameterization: of what the network predicts; noise by default.
        data: shape, classes and transform of the data, as `sg.save` writes them, or nothing.

    Attributes:
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
        config = {"network": network, "sde": sde, "parameterization": parameterization or noise}
        self._take(build_model(config, "of a HubModel", trust=self.trusted, about=data))

    def _take(self, model: ScoreModel) -> None:
        ScoreModel.__init__(self, model.network, model.perturbation, model.parameterization)
        for name in ("trained_under", "shape", "classes", "transform"):
            setattr(self, name, getattr(model, name))

    @classmethod
    def of(cls, model: ScoreModel) -> "HubModel":
        """The same network, to be saved or pushed."""
        made = cls.__new__(cls)
        made._take(model)
        return made.eval()

    @classmethod
    def from_run(
        cls, path: str | os.PathLike[str], weights: Literal["ema", "model"] = "ema", trust: Sequence[str] = ()
    ) -> "HubModel":
        """What `sg.load` gives for a run or checkpoint."""
        return cls.of(load(path, weights=weights, trust=(*cls.trusted, *trust)))

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self, save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "HubModel":  # type: ignore[override]
        folder = Path(model_id)
        if not folder.is_dir():
            given = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            folder = Path(snapshot_download(model_id, **{name: options[name] for name in given if name in options}))
        return cls.of(load_saved(folder, cls.trusted))
