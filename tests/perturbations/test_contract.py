"""The public face: shapes, dtypes, refusals, values that hash and print, and times that are never read on a device."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

import sde_gen as sg
from sde_gen.perturbations import Perturbation
from sde_gen.perturbations.base import float64
from tests.perturbations import cases
from tests.perturbations.cases import ALL, DEFAULTS

METHODS = ("alpha", "sigma", "half_log_snr", "drift", "diffusion")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)], ids=str)
def test_same_shape_and_dtype_back(p, dtype, shape):
    t = (0.2 + 0.6 * torch.rand(shape)).to(dtype)
    wide = t.double()
    for name in METHODS:
        got = getattr(p, name)(t)
        assert (got.shape, got.dtype) == (t.shape, dtype), name
        assert torch.equal(got, getattr(p, name)(wide).to(dtype)), name  # float64 inside, rounded once
    lam = p.half_log_snr(t)
    assert (p.time(lam).shape, p.time(lam).dtype) == (t.shape, dtype)
    for got, exact in zip(
        (*p.transition(0.5 * t, t), *p.posterior(0.5 * t, t)),
        (*p.transition((0.5 * t).double(), wide), *p.posterior((0.5 * t).double(), wide)),
        strict=True,
    ):
        assert (got.shape, got.dtype) == (t.shape, dtype)
        assert torch.equal(got, exact.to(dtype))


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
def test_expanded_and_strided_times(p):
    t = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
    for view in (t[:, None].expand(3, 4), t[::2], t.flip(0), t[0].expand(5)):
        for name in METHODS:
            assert torch.equal(getattr(p, name)(view), getattr(p, name)(view.clone().contiguous())), name


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
def test_python_and_numpy_numbers_are_taken_in_float64(p):
    """torch.as_tensor(0.3) is 0.30000001 in float32: the coefficients would be off by 1e-8."""
    for name in METHODS:
        exact = getattr(p, name)(torch.tensor(0.3, dtype=torch.float64))
        for t in (0.3, np.float64(0.3)):
            got = getattr(p, name)(t)
            assert got.dtype == torch.float64
            assert torch.equal(got, exact), name
    assert p.alpha(1).dtype == torch.float64
    assert torch.equal(p.alpha(torch.tensor(1)), p.alpha(1.0))
    assert torch.equal(p.transition(0.1, 0.3)[1], p.transition(*torch.tensor([0.1, 0.3], dtype=torch.float64))[1])
    x0, z = torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(p.perturb(x0, 0.3, z), p.alpha(0.3) * x0)


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
def test_two_times_broadcast_and_the_tensor_decides_the_dtype(p):
    t = torch.tensor([0.4, 0.8])
    for a in (*p.transition(0.2, t), *p.posterior(torch.tensor([[0.1], [0.2], [0.3]]), t)):
        assert a.dtype == torch.float32
    assert p.transition(torch.tensor([[0.1], [0.2], [0.3]]), t)[0].shape == (3, 2)
    assert p.transition(torch.tensor(0.1), 0.2)[0].dtype == torch.float32
    assert p.transition(0.1, 0.2)[0].dtype == torch.float64
    assert p.transition(torch.tensor(0.1), t.double())[0].dtype == torch.float64


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
@pytest.mark.parametrize("t", [-1e-9, 1 + 1e-9, float("nan"), float("inf"), -float("inf")])
def test_times_outside_the_interval_are_refused(p, t):
    for name in METHODS:
        with pytest.raises(sg.ConfigError, match=r"t must lie in \[0, 1\], got") as info:
            getattr(p, name)(torch.tensor([0.5, t], dtype=torch.float64))
        assert f"{t:.6g}" in str(info.value)
        assert type(p).__name__ in str(info.value)
    for call in (p.transition, p.posterior):
        with pytest.raises(sg.ConfigError):
            call(0.5, t)
        with pytest.raises(sg.ConfigError):
            call(t, 0.5)
    with pytest.raises(sg.ConfigError, match=r"\[0, 1\]"):
        p.perturb(torch.ones(1, 2), t, torch.ones(1, 2))


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
def test_other_refusals(p):
    for call in (p.transition, p.posterior):
        with pytest.raises(sg.ConfigError, match="from s to a later t, got s > t"):
            call(0.5, 0.4)
        with pytest.raises(sg.ConfigError, match="got s > t"):
            call(torch.tensor([0.1, 0.5]), torch.tensor([0.2, 0.4]))
    for wrong in (True, torch.tensor([True]), 1j, torch.tensor(1j)):
        with pytest.raises(sg.ConfigError, match="t must be a real number or tensor, got dtype"):
            p.alpha(wrong)
    with pytest.raises(sg.ConfigError, match="half_log_snr must be a real number"):
        p.time(True)
    x0 = torch.zeros(4, 3)
    for t, shape in ((torch.zeros(3), r"\(3,\)"), (torch.zeros(4, 1), r"\(4, 1\)")):
        with pytest.raises(sg.ConfigError, match=rf"t must have shape \(\) or \(4,\) for x0 .*got {shape}"):
            p.perturb(x0, t, x0)
    with pytest.raises(sg.ConfigError, match="t must have shape"):
        p.perturb(torch.zeros(()), torch.zeros(1), torch.zeros(()))
    with pytest.raises(sg.ConfigError, match=r"noise must be shaped like x0, \(4, 3\), got \(3,\)"):
        p.perturb(x0, 0.5, torch.zeros(3))


@pytest.mark.parametrize("p", ALL, ids=str)
def test_perturb(p):
    x0, noise = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    t = torch.tensor([0.0, 0.11, 0.5, 1.0])
    want = p.alpha(t)[:, None, None] * x0 + p.sigma(t)[:, None, None] * noise
    got = p.perturb(x0, t, noise)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(p.perturb(x0, 0.5, noise)[2], got[2], rtol=1e-6, atol=1e-7)
    half = p.perturb(x0.bfloat16(), t.bfloat16(), noise.bfloat16())
    assert half.dtype == torch.bfloat16
    exact = p.perturb(x0.bfloat16().double(), t.bfloat16().double(), noise.bfloat16().double())
    # Four roundings of 2^-9, relative to the larger term: the time itself is not rounded further.
    torch.testing.assert_close(half.double(), exact, rtol=2**-6, atol=2**-7 * p.prior_std)
    # A rough time does not make the coefficients rough.
    rough = p.perturb(x0, t.bfloat16(), noise)
    torch.testing.assert_close(rough, p.perturb(x0, t.bfloat16().double(), noise), rtol=1e-6, atol=1e-6)
    assert p.perturb(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]), torch.zeros(4, 3)).shape == (4, 3)
    assert p.perturb(torch.tensor(2.0), 0.5, torch.tensor(1.0)).shape == ()


@pytest.mark.parametrize("p", ALL, ids=str)
def test_values_are_frozen_hashable_printable_and_picklable(p):
    for other in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p), dataclasses.replace(p)):  # noqa: S301
        assert other == p
        assert hash(other) == hash(p)
        assert torch.equal(other.sigma(torch.linspace(0, 1, 7)), p.sigma(torch.linspace(0, 1, 7)))
    values = list(dataclasses.asdict(p).values())
    if not any(
        isinstance(v, tuple) or callable(v) for v in values
    ):  # functions have names of their own, long lists print as a digest
        assert eval(repr(p), vars(sg) | {n: getattr(sg, n) for n in cases.INSTANCES}) == p  # noqa: S307
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.anything = 1
    assert len({*ALL, p}) == len(ALL)
    numbers = [n for v in values if v is not None for n in (v if isinstance(v, tuple) else [v])]
    assert all(isinstance(v, int | float | str) or callable(v) for v in numbers)


def test_equal_parameters_of_other_classes_differ():
    assert sg.VP() != sg.SubVP()
    assert sg.VE() != sg.VE(0.02)
    assert {sg.VP(): 1}[sg.VP(0.1, 20.0)] == 1


def _numbers(cls, name, extra=()):
    values = [float("nan"), float("inf"), -1.0, True, "0.1", None, *extra]
    return [(cls, {name: v}, name) for v in values]


REFUSED = [
    *(case for cls in (sg.VP, sg.SubVP) for case in _numbers(cls, "beta_min")),
    *(case for cls in (sg.VP, sg.SubVP) for case in _numbers(cls, "beta_max", [0.0])),
    *(case for cls in (sg.VE, sg.EDM, sg.NCSN) for n in ("sigma_min", "sigma_max") for case in _numbers(cls, n, [0.0])),
    *_numbers(sg.EDM, "rho", [0.5]),
    *_numbers(sg.Cosine, "s", [1.01]),
    *(case for n in ("beta_min", "beta_max") for case in _numbers(sg.DDPM, n, [0.0])),
    *((sg.DDPM, {"steps": v}, "steps") for v in (0, -1, 1.5, 1000.0, True, "10", None, float("nan"))),
    *((sg.NCSN, {"levels": v}, "levels") for v in (1, 0, -3, 2.5, True, "10", None)),
    *((sg.DDPM, {"schedule": v}, "schedule") for v in ("liner", 3, None, "")),
]


@pytest.mark.parametrize(("cls", "kwargs", "name"), REFUSED, ids=str)
def test_refused_parameters_name_the_value_and_the_range(cls, kwargs, name):
    with pytest.raises(sg.ConfigError) as info:
        cls(**kwargs)
    message = str(info.value)
    assert message.startswith(f"{cls.__name__}: {name} must be ")
    assert repr(kwargs[name]) in message
    assert any(word in message for word in ("[", "(", "at least", "one of"))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sg.VP(3.0, 2.0), r"VP: beta_min must not exceed beta_max, got beta_min=3.0 and beta_max=2.0"),
        (lambda: sg.SubVP(3.0, 2.0), "SubVP: beta_min must not exceed"),
        (lambda: sg.VE(3.0, 2.0), "VE: sigma_min must be below sigma_max, got sigma_min=3.0 and sigma_max=2.0"),
        (lambda: sg.VE(2.0, 2.0), "VE: sigma_min must be below"),
        (lambda: sg.EDM(2.0, 2.0), "EDM: sigma_min must be below sigma_max"),
        (lambda: sg.NCSN(2.0, 2.0), "NCSN: sigma_min must be below sigma_max, got .*2.0"),
        (lambda: sg.DDPM(beta_min=0.03), "DDPM: beta_min must not exceed beta_max, got beta_min=0.03, beta_max=0.02"),
        (lambda: sg.DDPM(schedule="liner"), "did you mean 'linear'"),
        (lambda: sg.DDPM(20), r"steps=20 gives a last beta of 1, which must stay below 1; use steps >= 21,"),
        (lambda: sg.DDPM(1, "sigmoid"), "gives a last beta of 20"),
        (lambda: sg.DDPM(19, "quadratic"), "last beta of 1.053"),
    ],
)
def test_refused_combinations(make, match):
    with pytest.raises(sg.ConfigError, match=match):
        make()


def test_the_least_number_of_steps_named_is_allowed():
    assert float(sg.DDPM(21).betas[-1]) == pytest.approx(20 / 21)
    assert sg.DDPM(3, "cosine").length == 3  # its betas do not depend on beta_max


def test_misspelt_and_surplus_arguments_are_errors():
    for cls in cases.CLASSES:
        with pytest.raises(TypeError):
            cls(sigma_mix=1.0)
    with pytest.raises(TypeError):
        sg.FlowMatching(1.0)
    with pytest.raises(TypeError):
        Perturbation()
    with pytest.raises(NotImplementedError):
        sg.Chain.length.fget(sg.DDPM())
    with pytest.raises(NotImplementedError):
        sg.Chain.table(sg.DDPM())


@pytest.mark.parametrize("p", ALL, ids=str)
# The first forward-mode derivative of a process loads decompositions that torch itself has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_function_transforms(p):
    t = torch.linspace(0.06, 0.93, 5, dtype=torch.float64)
    for name in METHODS[:3] if p.is_chain else METHODS:
        method = getattr(p, name)
        assert torch.allclose(torch.func.vmap(method)(t), method(t), rtol=1e-14)
    slope = torch.func.grad(lambda u: p.half_log_snr(u).sum())(t)
    torch.testing.assert_close(slope, -0.5 * (p.diffusion(t) / p.sigma(t)) ** 2, rtol=1e-9, atol=1e-12)
    with torch.inference_mode():
        torch.testing.assert_close(p.drift(t.clone()), p.drift(t))
    with torch.no_grad():
        assert not p.drift(t).requires_grad


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
def test_values_are_never_read_on_a_device(p):
    """A meta tensor has no values: what runs on it runs on a GPU without waiting for it."""
    t = torch.empty(3, device="meta")
    for name in (*METHODS, "time"):
        got = getattr(p, name)(t)
        assert (got.shape, got.dtype, got.device.type) == ((3,), torch.float32, "meta"), name
    for value in (*p.transition(0.2, t), *p.posterior(t, t), *p.transition(t, 0.3)):
        assert value.device.type == "meta"
    x0 = torch.empty(3, 2, device="meta")
    assert p.perturb(x0, t, x0).device.type == "meta"


def test_devices_without_float64_are_served_on_the_cpu():
    class OnMPS(torch.Tensor):
        device = property(lambda self: torch.device("mps"))

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    wide, dtype, device = float64(torch.tensor([0.25]).as_subclass(OnMPS), "t")
    assert (wide.dtype, wide.device.type, dtype, device.type) == (torch.float64, "cpu", torch.float32, "mps")


@pytest.mark.parametrize("p", [sg.VP(), sg.FlowMatching()], ids=str)
def test_compiles(p):
    t = torch.linspace(0.1, 0.9, 5)
    torch.testing.assert_close(torch.compile(p.alpha, backend="eager")(t), p.alpha(t))
    torch.testing.assert_close(torch.compile(p.sigma, backend="eager", fullgraph=True)(t), p.sigma(t))


class _SteeperVP(sg.VP):
    """VP with the square of its alpha."""

    def log_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().log_alpha(t)


class _SteeperVE(sg.VE):
    """VE with twice its noise."""

    def variance(self, t: torch.Tensor) -> torch.Tensor:
        return 4.0 * super().variance(t)


@pytest.mark.parametrize("p", [_SteeperVP(), _SteeperVE()])
def test_a_curve_stated_anew_leaves_no_closed_form_of_the_old_one(p: sg.Perturbation) -> None:
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    expected = p.alpha(t).log() - p.sigma(t).log()
    torch.testing.assert_close(p.half_log_snr(t), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.time(expected), t, rtol=1e-9, atol=1e-9)
