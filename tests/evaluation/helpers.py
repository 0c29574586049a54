"""A model that costs nothing."""

import torch

import sde_gen as sg


def constant_model() -> sg.ScoreModel:
    """Predicts no noise, whatever it is given."""
    return sg.ScoreModel(lambda x, c_noise: torch.zeros_like(x), sg.VP())
