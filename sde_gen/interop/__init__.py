"""Other people's networks, read as they were trained, and ours written for other people's tools.

diffusers               networks, schedulers and folders of Hugging Face's diffusers, both ways
families                files of weights of the research codes: score_sde, ncsnv2, ADM, EDM, DiT, ...
sniffing                what lies at a path
pickled                 what a pickle says, nothing in it executed

Nothing here imports somebody else's library before it is asked for.
"""

from sde_gen.interop import diffusers

__all__ = ["diffusers"]
