"""Other people's networks, read as they were trained, and ours written for other people's tools.

diffusers               networks, schedulers and folders of Hugging Face's diffusers, both ways
families, called        files and networks of research codes: score_sde, ncsnv2, ADM, EDM, DiT, ...
published_weights       weights of NCSN++, DDPM++ and DiT under the names of the package's own
sniffing                what lies at a path
weight_files, pickled   tensors of files, and what a pickle says; nothing in them is executed

Nothing here imports somebody else's library before it is asked for.
"""

from sde_gen.interop import diffusers as diffusers
from sde_gen.interop.called import Called

__all__ = ["Called"]
