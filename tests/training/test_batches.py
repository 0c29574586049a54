"""What a step is given: levels spread out when asked for, each row by itself."""

import pytest
import torch
from scipy import stats

import sde_gen as sg
from sde_gen.data import digits, mixture
from sde_gen.training.batches import Batches


def batches(data, *, share: slice = slice(0, 64), **options) -> Batches:
    model = sg.ScoreModel(sg.UNet(1), sg.VP())
    given = {"size": 64, "accumulate": 1, "seed": 3, "device": torch.device("cpu"), "conditional": False}
    return Batches(data, sg.DenoisingScoreMatching(), model, share=share, channels_last=False, **given, **options)


def test_dequantised_levels_fill_their_cells_anew_at_each_step() -> None:
    data = digits()
    plain, spread = batches(data), batches(data, dequantise=True)
    offsets = []
    for step in (0, 1):
        (a,), (b,) = plain.parts(step), spread.parts(step)
        assert torch.equal(a.noise, b.noise)
        assert torch.equal(a.t, b.t)
        offsets.append((data.transform.inverse(b.x0) - data.transform.inverse(a.x0)).flatten())
        assert torch.equal(data.transform.quantise(b.x0), data.transform.quantise(a.x0))
        assert stats.kstest(offsets[-1].numpy(), stats.uniform(-0.5, 1).cdf).pvalue > 1e-6
        z = torch.special.ndtri((offsets[-1] + 0.5).clamp(1e-3, 1 - 1e-3))
        # The noise of the cells is not the noise of the diffusion: 4,096 products of independent numbers.
        assert abs(float((z * a.noise.flatten()).mean())) < 5 / 64
    assert not torch.allclose(offsets[0], offsets[1], atol=1e-3)


def test_dequantised_rows_do_not_depend_on_how_the_batch_is_shared() -> None:
    (whole,) = batches(digits(), dequantise=True).parts(5)
    (part,) = batches(digits(), dequantise=True, share=slice(20, 33)).parts(5)
    assert torch.equal(whole.x0[20:33], part.x0)


def test_continuous_data_have_no_levels() -> None:
    with pytest.raises(sg.ConfigError, match="dequantise=true spreads out discrete levels, but mixture is continuous"):
        batches(mixture(), dequantise=True)
