"""Latent space: an encoder and a decoder beside a run, and what they make of data.

    data = sg.codecs.latents("folder of an AutoencoderKL", sg.data.image_folder("pictures"))
    codec = sg.codecs.read_codec("runs/first")                          # what the run was trained with
    pictures = codec.decode(model.transform.inverse(x))                 # x: samples of its model

codec                   what encodes and decodes
autoencoder             those of diffusers
stored                  folders of codecs; nothing in them is executed
encoded                 data sets of latents
"""

from sde_gen.codecs.autoencoder import Autoencoder
from sde_gen.codecs.codec import Codec, Pair
from sde_gen.codecs.encoded import latents
from sde_gen.codecs.stored import read_codec, save_codec, stored_codec

__all__ = [
    "Autoencoder",
    "Codec",
    "Pair",
    "latents",
    "read_codec",
    "save_codec",
    "stored_codec",
]
