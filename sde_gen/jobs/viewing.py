"""What samples are looked at as: themselves, or, of latents, what they decode into."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_gen.codecs import Codec, stored_codec
from sde_gen.data import Affine, Dataset, Description
from sde_gen.jobs.common import Trained


@dataclass(frozen=True)
class View:
    """Samples as a person sees them.

    Attributes:
        latent: from raw latents to the model's scale, where samples are latents.
        about: what is seen.
        codec: what decodes latents; None: samples are seen as they are.
    """

    latent: Affine
    about: Description
    codec: Codec | None = None

    @classmethod
    def of(cls, what: Trained, trust: list[str], decoding: bool = True) -> "View":
        """Of the samples of a trained network; not `decoding` leaves latents as they are.

        Raises:
            MissingInputError, CheckpointError: their codec is not there, or another one.
        """
        about = Description.from_dict(what.checkpoint.state["data"])
        codec = stored_codec(what.checkpoint, trust) if decoding else None
        if codec is None or about.pixels is None:
            return cls(about.transform, about)
        codec.module.to(what.device)
        return cls(about.transform, about.pixels, codec)

    def __call__(self, x: Tensor) -> Tensor:
        """Samples of the model, on its scale, as what is seen, on the scale of that."""
        return x if self.codec is None else self.codec.decode(self.latent.inverse(x).float())

    def raw(self, x: Tensor) -> Tensor:
        """Samples of the model as raw data."""
        return self.about.transform.inverse(self(x))

    def encoded(self, x: Tensor) -> Tensor:
        """What is seen, on the scale of that, as states of the model at t = 0."""
        return x if self.codec is None else self.latent.forward(self.codec.encode(x))

    def data(self, data: Dataset) -> Dataset:
        """The data that are seen."""
        return data if self.codec is None or data.pixels is None else data.pixels

    def told(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"space": "pixels"} if self.codec is not None else {}
