"""Networks of any image size: shapes, gradients, precision, and the arithmetic of the convolutions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaejax import networks
from vaejax.config import ACTIVATIONS, ModelConfig
from vaejax.errors import ConfigError
from vaejax.models import Params
from vaejax.networks import activations, convolutions

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPES = [(1, 1, 1), (5, 7, 2), (33, 20, 4)]


NETWORKS = ["mlp", "cnn", "resnet", "transformer"]


def config(**fields) -> ModelConfig:
    sizes = {"latent_size": 3, "hidden": (8,), "features": (4, 6), "blocks": 1, "patch_size": 1, "width": 8, "depth": 1}
    return ModelConfig(**sizes | {"heads": 2, "activation": "silu"} | fields)


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_parameters(module: nn.Module, *inputs: jax.Array) -> Params:
    """Parameters of the right shapes, of which none is zero: no initial bias hides anything."""
    shapes = jax.eval_shape(lambda key: networks.init(module, key, *(x.shape[1:] for x in inputs)), jax.random.key(0))
    return jax.tree.map(lambda leaf: random(*leaf.shape, seed=leaf.size) / max(np.sqrt(leaf.size // leaf.shape[-1]), 3), shapes)


def both(settings: ModelConfig, shape: tuple[int, int, int], batch: int = 2) -> dict[str, tuple[nn.Module, Params, jax.Array]]:
    """Name -> (network, parameters, inputs)."""
    encoder, decoder = networks.encoder(settings, 6), networks.decoder(settings, shape)
    images, latents = random(batch, *shape), random(batch, 3)
    return {
        "encoder": (encoder, random_parameters(encoder, images), images),
        "decoder": (decoder, random_parameters(decoder, latents), latents),
    }


def output_and_gradients(module: nn.Module, params: Params, *inputs: jax.Array) -> tuple[Any, tuple[Params, ...]]:
    """The output, and the gradients of the sum of its sines by parameters and inputs."""

    @jax.jit
    def pulled_back(params: Params, *inputs: jax.Array) -> tuple[Any, tuple[Params, ...]]:
        y, pull = jax.vjp(lambda params, *inputs: networks.apply(module, params, *inputs), params, *inputs)
        return y, pull(jax.tree.map(jnp.cos, y))

    return pulled_back(params, *inputs)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_image_size_goes_in_and_comes_out_and_every_parameter_learns(network, shape):
    outputs = {"encoder": (2, 6), "decoder": (2, *shape)}
    for name, network_and_inputs in both(config(network=network), shape).items():
        y, gradients = output_and_gradients(*network_and_inputs)
        assert (y.shape, y.dtype) == (outputs[name], jnp.float32), name
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
            where = f"{name}{jax.tree_util.keystr(path)}"
            assert np.isfinite(gradient).all(), where
            assert np.any(gradient), where


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet"])
def test_normalised_networks_do_not_see_the_scale_of_what_they_normalise(network, norm):
    for name, (module, params, inputs) in both(config(network=network, norm=norm), (9, 6, 2)).items():
        y, gradients = output_and_gradients(module, params, inputs)
        assert all(np.any(gradient) for gradient in jax.tree.leaves(gradients)), name
        first = "Dense_0" if "Dense_0" in params and (name == "decoder" or network == "mlp") else "Convolution_0"
        louder = params | {first: jax.tree.map(lambda leaf: 100.0 * leaf, params[first])}
        np.testing.assert_allclose(networks.apply(module, louder, inputs), y, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4)),
    features=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    hidden=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    network=st.sampled_from(NETWORKS),
)
def test_shapes_hold_for_any_size_and_depth(size, features, hidden, network):
    settings = config(network=network, features=tuple(features), hidden=tuple(hidden))
    encoder, decoder = networks.encoder(settings, 6), networks.decoder(settings, size)

    def there_and_back(key: jax.Array, images: jax.Array, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(key)
        code = networks.apply(encoder, networks.init(encoder, first, size), images)
        return code, networks.apply(decoder, networks.init(decoder, second, (3,)), latents)

    code, images = jax.eval_shape(there_and_back, jax.random.key(0), jnp.zeros((2, *size)), jnp.zeros((2, 3)))
    assert (code.shape, images.shape) == ((2, 6), (2, *size))


@pytest.mark.parametrize("network", NETWORKS)
def test_an_example_does_not_depend_on_its_neighbours(network):
    for module, params, inputs in both(config(network=network), (9, 6, 1), batch=4).values():
        apply = jax.jit(lambda x, module=module, params=params: networks.apply(module, params, x))
        np.testing.assert_allclose(apply(inputs[2:3])[0], apply(inputs)[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_bfloat16_agrees_with_float32_and_keeps_float32_parameters(network):
    """Outputs within 5 % of the largest; each gradient, which sums many rounded numbers, within 10 % of its norm."""
    wide, narrow = (both(config(network=network, dtype=dtype), (12, 9, 2)) for dtype in ("float32", "bfloat16"))
    for name in wide:
        expected, got = output_and_gradients(*wide[name]), output_and_gradients(*narrow[name])
        assert not np.array_equal(expected[0], got[0]), "bfloat16 was not used"
        np.testing.assert_allclose(got[0], expected[0], atol=0.05 * np.abs(expected[0]).max(), rtol=0)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
            assert b.dtype == jnp.float32
            assert np.linalg.norm(b - a) <= 0.1 * np.linalg.norm(a)


@pytest.mark.parametrize("network", ["cnn", "resnet"])
def test_a_bias_of_bfloat16_layers_has_the_gradient_of_all_pixels(network):
    """A sum of 25,000 numbers in bfloat16 alone would be off by a tenth and more."""
    wide, narrow = (both(config(network=network, dtype=dtype), (28, 28, 1), batch=32) for dtype in ("float32", "bfloat16"))
    for name in wide:
        (_, expected), (_, got) = output_and_gradients(*wide[name]), output_and_gradients(*narrow[name])
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(got), strict=True):
            if "bias" in jax.tree_util.keystr(path):
                assert np.linalg.norm(b - a) <= 0.05 * np.linalg.norm(a)


SIZES = {"mlp": (1_790, 1_976), "cnn": (792, 1_034), "resnet": (1_748, 1_990), "transformer": (1_718, 1_530)}
GOLDEN = {
    "mlp": (0.2266508, 0.01605530),
    "cnn": (0.004471567, 0.0002098552),
    "resnet": (0.007758619, 0.0002378806),
    "transformer": (0.9840721, 0.9142458),
}
"""Parameters of encoder and decoder, and the mean of their squared outputs; both change with the architecture alone."""


@pytest.mark.parametrize("network", NETWORKS)
def test_the_architecture_is_what_it_was(network):
    settings, shape = config(network=network, patch_size=3), (12, 9, 2)
    waves = jnp.sin(jnp.arange(2 * 12 * 9 * 2, dtype=jnp.float32)).reshape(2, *shape)
    found = []
    for module, inputs in (
        (networks.encoder(settings, 6), waves),
        (networks.decoder(settings, shape), waves[:, 0, 0, :1] * jnp.ones((2, 3))),
    ):
        params = networks.init(module, jax.random.key(0), inputs.shape[1:])
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        found.append((count, float(jnp.mean(networks.apply(module, params, inputs) ** 2))))
    assert tuple(count for count, _ in found) == SIZES[network]
    assert [value for _, value in found] == pytest.approx(GOLDEN[network], rel=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_equal_differences(network):
    for name, (module, *point) in both(config(network=network, activation="tanh"), (7, 6, 1)).items():
        direction = jax.tree.map(lambda leaf: random(*leaf.shape, seed=leaf.size + 1), point)
        _, gradients = output_and_gradients(module, *point)
        slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(list(gradients)), jax.tree.leaves(direction), strict=True))
        ends = [jax.tree.map(lambda a, b, e=e: a + e * b, point, direction) for e in (-1e-3, 1e-3)]
        low, high = (np.sin(np.float64(networks.apply(module, *end))).sum() for end in ends)
        assert float(slope) == pytest.approx((high - low) / 2e-3, rel=1e-2), name


def test_custom_gradients_of_the_networks_equal_those_of_jax(monkeypatch):
    custom = {name: value for name, value in vars(convolutions).items() if isinstance(value, jax.custom_vjp)}
    if not custom:
        pytest.skip("convolutions: no custom gradient")
    modules = both(config(), (7, 6, 2))
    mine = {name: output_and_gradients(*module) for name, module in modules.items()}
    for name, value in custom.items():
        monkeypatch.setattr(convolutions, name, value.fun)
    for name, module in modules.items():
        assert_near(mine[name], output_and_gradients(*module))


def convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's own."""
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_near(got: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), rtol=1e-4)


def with_gradients(function: Callable[..., jax.Array], *arguments: jax.Array) -> Any:
    def pulled_back(*arguments: jax.Array) -> Any:
        y, pull = jax.vjp(function, *arguments)
        return y, pull(jnp.cos(y))

    return jax.jit(pulled_back)(*arguments)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 7)])
@pytest.mark.parametrize(
    ("stride", "channels", "features"), [(1, 3, 1), (1, 3, 40), (1, 20, 1), (1, 20, 24), (2, 3, 4), (2, 20, 4), (2, 20, 24)]
)
def test_convolution_and_its_gradients_equal_those_of_xla(size, stride, channels, features):
    x, kernel = random(2, *size, channels), random(3, 3, channels, features, seed=1)
    got = with_gradients(lambda x, kernel: convolutions.convolve(x, kernel, stride), x, kernel)
    assert_near(got, with_gradients(lambda x, kernel: convolution(x, kernel, stride), x, kernel))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 7)])
def test_upsampling_and_its_gradients_are_those_of_the_transposed_strided_convolution(size):
    small, kernel = random(2, -(-size[0] // 2), -(-size[1] // 2), 4), random(3, 3, 2, 4, seed=1)

    def transposed(small: jax.Array, kernel: jax.Array) -> jax.Array:
        big = jax.ShapeDtypeStruct((2, *size, 2), jnp.float32)
        return jax.linear_transpose(lambda x: convolution(x, kernel, 2), big)(small)[0]

    got = with_gradients(lambda small, kernel: convolutions.convolve_transposed(small, kernel, size), small, kernel)
    assert_near(got, with_gradients(transposed, small, kernel))


def test_every_activation_of_the_configuration_has_its_function():
    assert set(activations.ACTIVATIONS) == set(ACTIVATIONS)
    x = jnp.linspace(-3, 3, 13)
    assert len({np.asarray(f(x)).tobytes() for f in activations.ACTIVATIONS.values()}) == len(ACTIVATIONS)


def test_patches_that_do_not_divide_the_image_are_refused_with_the_nearest_that_do():
    settings = config(network="transformer", patch_size=5)
    with pytest.raises(ConfigError, match=r"model\.patch_size=5: expected a divisor .* 28 x 42.*patch_size=7"):
        networks.decoder(settings, (28, 42, 1))


# --- rematerialisation


def deep(network: str) -> tuple[list[nn.Module], jax.Array]:
    """An encoder of many blocks that keeps what is inside of them for its gradient, and one that computes it again.

    A cnn halves the image in each of its blocks; with four times the channels, every one keeps as much as the first.
    """
    fields = {"network": network, "features": (8, 32, 128) if network == "cnn" else (8,), "blocks": 4, "depth": 4}
    settings = config(**fields, patch_size=4, norm="none" if network == "transformer" else "layer")
    return [networks.encoder(dataclasses.replace(settings, remat=remat), 6) for remat in (False, True)], random(16, 16, 16, 1)


@pytest.mark.parametrize("network", ["cnn", "resnet", "transformer"])
def test_a_block_computed_again_has_the_same_weights_outputs_and_gradients(network):
    (plain, again), images = deep(network)
    init = jax.jit(networks.init, static_argnums=(0, 2))
    first = [init(module, jax.random.key(0), images.shape[1:]) for module in (plain, again)]
    assert jax.tree.structure(first[0]) == jax.tree.structure(first[1])
    assert all(map(np.array_equal, *map(jax.tree.leaves, first)))
    params = random_parameters(plain, images)
    expected, got = (jax.tree.leaves(output_and_gradients(module, params, images)) for module in (plain, again))
    for leaf, other in zip(expected, got, strict=True):
        np.testing.assert_allclose(other, leaf, rtol=1e-4, atol=1e-5 * float(jnp.abs(leaf).max()))


BLOCKS = ["bottom up", "prior head", "posterior head", "merge", "code reader", "grid encoder", "grid decoder"]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_part_computed_again_has_the_same_weights_outputs_and_gradients(name):
    (plain, inputs, _), (again, *_) = part(name), part(name, remat=True)
    params = random_parameters(plain, *inputs)
    assert jax.tree.structure(params) == jax.tree.structure(random_parameters(again, *inputs))
    expected, got = (jax.tree.leaves(output_and_gradients(module, params, *inputs)) for module in (plain, again))
    for leaf, other in zip(expected, got, strict=True):
        np.testing.assert_allclose(other, leaf, rtol=1e-4, atol=1e-5 * float(jnp.abs(leaf).max()))
    assert kept(again, params, *inputs) < kept(plain, params, *inputs)


def kept(module: nn.Module, params: Params, *inputs: jax.Array) -> int:
    """Bytes that the forward pass leaves to the gradient."""
    pull = jax.eval_shape(lambda params: jax.vjp(lambda params: networks.apply(module, params, *inputs), params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))


@pytest.mark.parametrize(("network", "share"), [("cnn", 0.9), ("resnet", 0.5), ("transformer", 0.5)])
def test_a_deep_network_computed_again_needs_less_memory(network, share):
    """Compiled as for an accelerator: on a CPU, XLA takes the barriers out that keep both computations apart."""
    (plain, again), images = deep(network)
    params, barriers = random_parameters(plain, images), {"xla_disable_hlo_passes": "cse_barrier_expander"}
    needs = []
    for module in (plain, again):
        gradient = jax.jit(jax.grad(lambda params, module=module: jnp.cos(networks.apply(module, params, images)).sum()))
        needs.append(gradient.lower(params).compile(barriers).memory_analysis().temp_size_in_bytes)
    assert needs[1] < share * needs[0]
    assert kept(again, params, images) < share * kept(plain, params, images)


# --- parts of flows, hierarchies, codes and adversaries

CODES, PLACES = 7, 6
OF_IMAGES = [
    "bottom up", "prior head", "posterior head", "merge", "finer", "to image", "grid encoder", "grid decoder",
    "discriminator", "classifier",
]  # fmt: skip
PARTS = ["flow", "code reader", *OF_IMAGES]
FLOAT32 = {"prior head": 2, "bottom up": 0, "merge": 0, "finer": 0}
"""Outputs, from the first on, that leave a part in float32 whatever its precision; all, where a part is not named."""


def half(size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-side // 2) for side in size)


def part(name: str, shape: tuple[int, int, int] = (12, 9, 2), batch: int = 2, **fields) -> tuple[nn.Module, tuple, list]:
    """A part, its inputs, and the shapes of its outputs without the batch."""
    settings = config(network="resnet", codes=CODES, flow_steps=2, flow_width=5, **fields)
    fine, coarse = half(shape[:2]), half(half(shape[:2]))
    images, x, risen = random(batch, *shape), random(batch, *fine, 4), random(batch, *fine, 4, seed=1)
    latents, context, told = random(batch, *fine, 3), random(batch, 5, seed=1), random(batch, 2)
    codes = jnp.arange(batch * PLACES, dtype=jnp.float32).reshape(batch, PLACES) % CODES
    build: dict[str, Callable[[], tuple[nn.Module, tuple, list]]] = {
        "flow": lambda: (networks.Flow(settings), (random(batch, 3), context), [(3,), ()]),
        "code reader": lambda: (networks.CodeReader(settings), (codes, told), [(PLACES, CODES)]),
        "bottom up": lambda: (networks.BottomUp(settings), (images,), [(*fine, 4), (*coarse, 6)]),
        "prior head": lambda: (networks.PriorHead(settings), (x,), [(*fine, 3), (*fine, 3), (*fine, 4)]),
        "posterior head": lambda: (networks.PosteriorHead(settings), (x, risen), [(*fine, 3), (*fine, 3)]),
        "merge": lambda: (networks.Merge(settings), (x, latents), [(*fine, 4)]),
        "finer": lambda: (networks.Finer(settings, 4, fine), (random(batch, *coarse, 6),), [(*fine, 4)]),
        "to image": lambda: (networks.ToImage(settings, shape), (x,), [shape]),
        "grid encoder": lambda: (networks.GridEncoder(settings, 3), (images,), [(*coarse, 3)]),
        "grid decoder": lambda: (networks.GridDecoder(settings, shape), (random(batch, *coarse, 3),), [shape]),
        "discriminator": lambda: (networks.Discriminator((4, 6)), (images,), [(), (*fine, 4), (*coarse, 6)]),
        "classifier": lambda: (networks.Classifier(5), (images,), [(5,), (128,)]),
    }
    return build[name]()


@pytest.mark.parametrize(
    ("name", "shape"), [("flow", SHAPES[1]), ("code reader", SHAPES[1]), *((n, s) for n in OF_IMAGES for s in SHAPES)]
)
def test_a_part_has_its_documented_shapes_and_every_parameter_of_it_learns(name, shape):
    module, inputs, shapes = part(name, shape)
    y, (gradients, *_) = output_and_gradients(module, random_parameters(module, *inputs), *inputs)
    assert [leaf.shape for leaf in jax.tree.leaves(y)] == [(2, *event) for event in shapes]
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert np.any(gradient), jax.tree_util.keystr(path)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4)),
    features=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    network=st.sampled_from(["cnn", "resnet"]),
)
def test_the_grid_of_any_image_is_halved_once_a_width(size, features, network):
    settings, grid = config(network=network, features=tuple(features)), size[:2]
    for _ in features:
        grid = half(grid)
    assert networks.sizes_of(settings, size)[-1] == grid
    encoder, decoder = networks.GridEncoder(settings, 3), networks.GridDecoder(settings, size)

    def there_and_back(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(key)
        code = networks.apply(encoder, networks.init(encoder, first, size), images)
        return code, networks.apply(decoder, networks.init(decoder, second, (*grid, 3)), code)

    code, images = jax.eval_shape(there_and_back, jax.random.key(0), jnp.zeros((2, *size)))
    assert (code.shape, images.shape) == ((2, *grid, 3), (2, *size))


@pytest.mark.parametrize("name", PARTS)
def test_what_a_part_says_of_an_example_does_not_depend_on_its_neighbours(name):
    module, inputs, _ = part(name, (9, 6, 1), batch=4)
    params = random_parameters(module, *inputs)
    apply = jax.jit(lambda *inputs: networks.apply(module, params, *inputs))
    alone, together = apply(*(x[2:3] for x in inputs)), apply(*inputs)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a[0], b[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PARTS[:-2])
def test_a_part_in_bfloat16_agrees_with_float32_within_five_percent(name):
    found = {}
    for dtype in ("float32", "bfloat16"):
        module, inputs, _ = part(name, dtype=dtype)
        found[dtype] = output_and_gradients(module, random_parameters(module, *inputs), *inputs)
    wide, narrow = (jax.tree.leaves(found[dtype]) for dtype in ("float32", "bfloat16"))
    assert not np.array_equal(wide[0], np.float32(narrow[0])), "bfloat16 was not used"
    for a, b in zip(wide, narrow, strict=True):
        np.testing.assert_allclose(np.float32(b), a, atol=0.05 * np.abs(a).max(), rtol=0)
    assert all(gradient.dtype == jnp.float32 for gradient in jax.tree.leaves(found["bfloat16"][1]))
    outputs = jax.tree.leaves(found["bfloat16"][0])
    assert all(y.dtype == jnp.float32 for y in outputs[: FLOAT32.get(name, len(outputs))])


OF_PARTS = {
    "flow": (304, 0.5258957),
    "code reader": (1_079, 1.363399),
    "bottom up": (692, 0.6135064),
    "prior head": (218, 0.01088465),
    "posterior head": (214, 0.0),  # it begins at the prior, N(0, I)
    "merge": (204, 0.956213),
    "finer": (220, 0.04687121),
    "to image": (296, 0.1467404),
    "grid encoder": (1_275, 0.05437627),
    "grid decoder": (1_640, 0.01076437),
    "discriminator": (353, 0.2365952),
    "classifier": (93_605, 0.04192758),
}
"""Parameters of a part, and the mean of its squared outputs; both change with the architecture alone."""


@pytest.mark.parametrize("name", PARTS)
def test_the_architecture_of_a_part_is_what_it_was(name):
    module, inputs, _ = part(name)
    waves = [jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape) for x in inputs]
    if name == "code reader":
        waves[0] = inputs[0]

    @jax.jit
    def initial(key: jax.Array, *waves: jax.Array) -> tuple[Params, jax.Array]:
        params = networks.init(module, key, *(x.shape[1:] for x in waves))
        outputs = jax.tree.leaves(networks.apply(module, params, *waves))
        return params, jnp.mean(jnp.concatenate([y.ravel() for y in outputs]) ** 2)

    params, square = initial(jax.random.key(0), *waves)
    count, value = OF_PARTS[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert float(square) == pytest.approx(value, rel=1e-4)


def flow(steps: int, size: int) -> tuple[Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]], jax.Array, jax.Array]:
    """A flow of one vector, a vector, and its context."""
    module = networks.Flow(config(flow_steps=steps, flow_width=7, activation="tanh"))
    z, context = random(1, size), random(1, 7, seed=1)
    params = random_parameters(module, z, context)
    return lambda *inputs: networks.apply(module, params, *(x[jnp.newaxis] for x in inputs)), z[0], context[0]


@pytest.mark.parametrize(("steps", "size"), [(1, 1), (1, 4), (3, 5)])
def test_the_log_determinant_of_a_flow_is_that_of_its_jacobian(steps, size):
    moved, z, context = flow(steps, size)
    jacobian = np.float64(jax.jit(jax.jacfwd(lambda z: moved(z, context)[0][0]))(z))
    assert float(moved(z, context)[1][0]) == pytest.approx(np.linalg.slogdet(jacobian)[1], rel=1e-4)


def test_a_step_of_a_flow_looks_at_all_latents_before_and_at_the_context_and_turns_the_order():
    moved, z, context = flow(1, 5)
    by_latents, by_context = jax.jit(jax.jacfwd(lambda *inputs: moved(*inputs)[0][0], (0, 1)))(z, context)
    np.testing.assert_array_equal(by_latents[::-1] != 0, np.tril(np.ones((5, 5), bool)))
    gates = np.diag(by_latents[::-1])
    assert ((gates > 0) & (gates < 1)).all()
    assert np.all(by_context)


def test_logits_of_a_code_depend_on_the_codes_before_it_and_on_what_is_told():
    module, (codes, told), _ = part("code reader", batch=1)
    params = random_parameters(module, codes, told)
    read = jax.jit(lambda codes, told: networks.apply(module, params, codes, told)[0])
    logits = np.asarray(read(codes, told))
    for place in range(PLACES):
        other = np.asarray(read(codes.at[0, place].set((codes[0, place] + 3) % CODES), told))
        np.testing.assert_allclose(other[: place + 1], logits[: place + 1], rtol=1e-5, atol=1e-6)
        assert (np.abs(other - logits).max(axis=-1)[place + 1 :] > 1e-4).all()
    assert (np.abs(read(codes, told + 1.0) - logits).max(axis=-1) > 1e-4).all()
