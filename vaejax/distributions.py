"""Posteriors, priors and likelihoods: log_prob, mean, sample, kl; pure, per example, in nats.

An image batch is `[b, *spatial, c]` in [0, 1]; a distribution of images may carry sample axes
in front, `[..., b, *spatial, c]`. Scales and locations come from networks through `soft_bound`, and those bounds are part of
the distributions documented here: losses and gradients stay finite for raw outputs up to 1e4 in size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

LATENT_LOG_SCALE = (-7.0, 7.0)
"""Open interval of the log standard deviation of a posterior."""

MIXTURE_LOG_SCALE = (-3.0, 3.0)
"""Open interval of the log standard deviation of a learned prior's components: finer ones would cost digits."""

IMAGE_LOG_SCALE = (-7.0, 3.0)
"""Open interval of the log scale of a likelihood, in units of the image range."""

IMAGE_LOCATION = (-1.0, 2.0)
"""Open interval of the location of a likelihood: wider than the image range, so that black and white can be certain."""

_LOG_2PI = math.log(2.0 * math.pi)


def soft_bound(x: Float[Array, "*n"], low: float, high: float) -> Float[Array, "*n"]:
    """A smooth, increasing map of the real line onto (low, high); 0 goes to the middle, with slope 1."""
    middle, half = (low + high) / 2.0, (high - low) / 2.0
    return middle + half * jnp.tanh(x / half)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mean", "log_scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normals over latent vectors: `mean` and `log_scale` are `[..., b, d]`, or `[d]`, the same for all."""

    mean: jax.Array
    log_scale: jax.Array

    def log_prob(self, z: Float[Array, "*k b d"]) -> Float[Array, "*k b"]:
        """Log density of `z`, nats a vector."""
        return _normal_log_prob(z, self.mean, self.log_scale).sum(axis=-1)

    def sample(self, keys: Key[Array, "*k b"], temperature: float = 1.0) -> Float[Array, "*k b d"]:
        """One draw a key, its standard deviation scaled by `temperature`."""
        shape = self.mean.shape[-1:]
        noise = _per_key(lambda key: jax.random.normal(key, shape), keys)
        _, mean, log_scale = _like(noise, self.mean, self.log_scale)
        return mean + temperature * jnp.exp(log_scale) * noise


def standard_normal(size: int) -> DiagonalGaussian:
    """N(0, I) over vectors of `size` latents."""
    return DiagonalGaussian(jnp.zeros(size), jnp.zeros(size))


def kl_to_standard_normal(posterior: DiagonalGaussian) -> Float[Array, "*b d"]:
    """KL(posterior || N(0, I)) of each latent, nats (Kingma and Welling 2014, appendix B)."""
    variance = jnp.exp(2.0 * posterior.log_scale)
    return 0.5 * (variance + posterior.mean**2 - 1.0) - posterior.log_scale


@functools.partial(jax.tree_util.register_dataclass, data_fields=["logits", "mean", "log_scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """A mixture of diagonal Gaussians over latent vectors: `mean` and `log_scale` are `[m, d]`.

    `logits` is `[m]`, or `[b, m]`, one row a vector of the batch.
    """

    logits: jax.Array
    mean: jax.Array
    log_scale: jax.Array

    def log_prob(self, z: Float[Array, "*k b d"]) -> Float[Array, "*k b"]:
        """Log density of `z`, nats a vector.

        The squared distances to all components are two matrix products, which costs 1e-7 of z^2 / scale^2 nats. Those of the
        likeliest component, on which the most depends, are computed again without that loss.
        """
        precision = jnp.exp(-2.0 * self.log_scale)
        constant = 0.5 * (self.mean**2 * precision + 2.0 * self.log_scale + _LOG_2PI).sum(axis=-1)
        flat = z.reshape(-1, z.shape[-1])
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        of_components = product(flat, (self.mean * precision).T) - product(0.5 * flat**2, precision.T) - constant[jnp.newaxis]
        of_components = of_components.reshape(*z.shape[:-1], -1)
        log_weights = jnp.broadcast_to(jax.nn.log_softmax(self.logits), of_components.shape)
        joint = of_components + log_weights
        best = jnp.argmax(joint, axis=-1)
        again = _normal_log_prob(z, self.mean[best], self.log_scale[best]).sum(axis=-1)
        rounded = jnp.take_along_axis(of_components, best[..., jnp.newaxis], axis=-1)[..., 0]
        return jax.nn.logsumexp(joint, axis=-1) + again - rounded

    def sample(self, keys: Key[Array, " n"], temperature: float = 1.0) -> Float[Array, "n d"]:
        """One draw a key, the standard deviation of its component scaled by `temperature`."""
        gumbel = _per_key(lambda key: jax.random.gumbel(jax.random.fold_in(key, 0), self.logits.shape[-1:]), keys)
        chosen = jnp.argmax(jnp.broadcast_to(self.logits, gumbel.shape) + gumbel, axis=-1)
        noise = _per_key(lambda key: jax.random.normal(jax.random.fold_in(key, 1), self.mean.shape[-1:]), keys)
        return self.mean[chosen] + temperature * jnp.exp(self.log_scale[chosen]) * noise


class Likelihood(Protocol):
    """p(image | latents), every pixel independent given the latents."""

    def pixel_log_prob(self, images: Float[Array, "*b"]) -> Float[Array, "*kb"]:
        """Log probability of every pixel and channel, nats, in the distribution's own shape `[..., b, *spatial, c]`."""

    def mean(self) -> Float[Array, "*kb"]:
        """Expected image, in [0, 1]."""

    def sample(self, keys: Key[Array, "*kb"]) -> Float[Array, "*kb"]:
        """One image a key."""


def log_prob(likelihood: Likelihood, images: Float[Array, "b ..."]) -> Float[Array, "*k b"]:
    """Log probability of each image, nats an image: pixels and channels summed, sample axes in front kept."""
    return likelihood.pixel_log_prob(images).sum(axis=tuple(range(1 - images.ndim, 0)))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["logits"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Pixels that are 0 or 1; proper for binarised images only."""

    logits: jax.Array

    def pixel_log_prob(self, images: Float[Array, "*b"]) -> Float[Array, "*kb"]:
        """Log probability x l - softplus(l), from logits: finite however large they are."""
        x, logits = _like(images, self.logits)
        return x * logits - jax.nn.softplus(logits)

    def mean(self) -> Float[Array, "*kb"]:
        """Probability of a 1."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, keys: Key[Array, "*kb"]) -> Float[Array, "*kb"]:
        """0 or 1 a pixel."""
        return (_uniform(keys, self.logits) < self.mean()).astype(self.logits.dtype)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["raw_mean", "raw_log_scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A density: normal with mean sigmoid(raw) in (0, 1) and a learned log scale bounded to `IMAGE_LOG_SCALE`.

    `raw_log_scale` has the shape of `raw_mean`, or is `[c]`, one for all pixels.
    """

    raw_mean: jax.Array
    raw_log_scale: jax.Array

    @property
    def log_scale(self) -> Float[Array, "*n"]:
        """Log standard deviation, in units of the image range, in the shape of `raw_log_scale`."""
        return soft_bound(self.raw_log_scale, *IMAGE_LOG_SCALE)

    def pixel_log_prob(self, images: Float[Array, "*b"]) -> Float[Array, "*kb"]:
        """Log density; the images are points of [0, 1], not grey levels."""
        return _normal_log_prob(images, self.mean(), self.log_scale)

    def mean(self) -> Float[Array, "*kb"]:
        """Expected image."""
        return jax.nn.sigmoid(self.raw_mean)

    def sample(self, keys: Key[Array, "*kb"]) -> Float[Array, "*kb"]:
        """A draw clipped to [0, 1], so that it is an image."""
        event = self.raw_mean.shape[keys.ndim :]
        noise = _per_key(lambda key: jax.random.normal(key, event), keys)
        mean, scale = _like(self.mean(), jnp.exp(self.log_scale))
        return jnp.clip(mean + scale * noise, 0.0, 1.0)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["raw_location", "raw_log_scale"], meta_fields=["levels"])
@dataclasses.dataclass(frozen=True)
class DiscretizedLogistic:
    """Grey levels: a logistic, its mass rounded to the grid 0, 1/(levels-1), ..., 1 with both tails in the end levels.

    Kingma et al. 2016 (IAF), section 6; the location is bounded to `IMAGE_LOCATION`, the log scale to `IMAGE_LOG_SCALE`.
    `raw_log_scale` has the shape of `raw_location`, or is `[c]`, one for all pixels.
    """

    raw_location: jax.Array
    raw_log_scale: jax.Array
    levels: int

    @property
    def location(self) -> Float[Array, "*kb"]:
        """Centre of the logistic."""
        return soft_bound(self.raw_location, *IMAGE_LOCATION)

    @property
    def scale(self) -> Float[Array, "*n"]:
        """Scale of the logistic, in units of the image range, in the shape of `raw_log_scale`."""
        return jnp.exp(soft_bound(self.raw_log_scale, *IMAGE_LOG_SCALE))

    def pixel_log_prob(self, images: Float[Array, "*b"]) -> Float[Array, "*kb"]:
        """Log mass of the nearest level.

        With a and b the standardised upper and lower edge of the level,
        s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) for the sigmoid s, so no difference of near numbers is taken.
        """
        half = 0.5 / (self.levels - 1)
        log_width = jnp.log(-jnp.expm1(-2.0 * half / self.scale))
        location, x, scale, log_width = _like(self.location, images, self.scale, log_width)
        upper, lower = (x - location + half) / scale, (x - location - half) / scale
        below_one, above_zero = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
        inside = below_one + above_zero + log_width
        return jnp.where(x < half, below_one, jnp.where(x > 1.0 - half, above_zero, inside))

    def mean(self) -> Float[Array, "*kb"]:
        """Expected image, by the integral of the survival function of the logistic clipped to [0, 1].

        The sum over levels is that integral's midpoint rule: they differ by less than half a level.
        """
        location, scale = _like(self.location, self.scale)
        return scale * (jax.nn.softplus(location / scale) - jax.nn.softplus((location - 1.0) / scale))

    def sample(self, keys: Key[Array, "*kb"]) -> Float[Array, "*kb"]:
        """A level a pixel, by inversion."""
        return self.quantile(_uniform(keys, self.raw_location))

    def quantile(self, uniform: Float[Array, "*kb"]) -> Float[Array, "*kb"]:
        """The level below which `uniform` of the mass lies."""
        uniform = jnp.clip(uniform, 1e-7, 1.0 - 1e-7)
        location, scale = _like(self.location, self.scale)
        x = location + scale * (jnp.log(uniform) - jnp.log1p(-uniform))
        return jnp.round(jnp.clip(x, 0.0, 1.0) * (self.levels - 1)) / (self.levels - 1)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["raw"], meta_fields=["channels", "levels"])
@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """Grey levels or colours: a mixture of discretized logistics, its component shared by the channels of a pixel.

    Salimans et al. 2017 (PixelCNN++), section 2: a component's location moves linearly with the channels before, by a factor
    in (-1, 1). `raw` is `[..., b, *spatial, m * outputs_of_mixture(channels)]` for m components.
    """

    raw: jax.Array
    channels: int
    levels: int

    def pixel_log_prob(self, images: Float[Array, "*b"]) -> Float[Array, "*kb"]:
        """Log mass of each channel's level, given the channels before it: their sum is that of the pixel."""
        logits, *_ = self._parts()
        x = jnp.broadcast_to(images[..., jnp.newaxis, :], (*logits.shape, self.channels))
        of_components = jnp.cumsum(self._component(x).pixel_log_prob(x), axis=-1)
        up_to = jax.nn.logsumexp(jax.nn.log_softmax(logits)[..., jnp.newaxis] + of_components, axis=-2)
        return jnp.diff(up_to, axis=-1, prepend=0.0)

    def mean(self) -> Float[Array, "*kb"]:
        """Expected image; exact for one channel, else each component's channel at the mean of those before."""
        logits, *_ = self._parts()
        means = self._by_channels(lambda component: component.mean())
        return (jax.nn.softmax(logits)[..., jnp.newaxis] * means).sum(axis=-2)

    def sample(self, keys: Key[Array, "*kb"]) -> Float[Array, "*kb"]:
        """A level a channel: a component a pixel, then its channels one after the other."""
        logits, *_ = self._parts()
        event = logits.shape[keys.ndim :]
        gumbel = _per_key(lambda key: jax.random.gumbel(jax.random.fold_in(key, 0), event), keys)
        shape = (*event, self.channels)
        uniform = _per_key(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), shape), keys)
        levels = self._by_channels(lambda component: component.quantile(uniform))
        chosen = jax.nn.one_hot(jnp.argmax(logits + gumbel, axis=-1), logits.shape[-1])
        return (chosen[..., jnp.newaxis] * levels).sum(axis=-2)

    def _parts(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Logits `[..., m]`, locations and log scales `[..., m, c]`, factors `[..., m, c (c - 1) / 2]`."""
        raw = self.raw.reshape(*self.raw.shape[:-1], -1, outputs_of_mixture(self.channels))
        logits, location, log_scale, factors = jnp.split(raw, [1, 1 + self.channels, 1 + 2 * self.channels], axis=-1)
        return logits[..., 0], location, log_scale, jnp.tanh(factors)

    def _component(self, x: Float[Array, "*kbmc"]) -> DiscretizedLogistic:
        """The components `[..., m, c]` where the channels are `x`, of which each looks only at those before."""
        _, location, log_scale, factors = self._parts()
        pairs = [(channel, before) for channel in range(self.channels) for before in range(channel)]
        for place, (channel, before) in enumerate(pairs):
            location = location.at[..., channel].add(factors[..., place] * (x[..., before] - 0.5))
        return DiscretizedLogistic(location, log_scale, self.levels)

    def _by_channels(self, value: Callable[[DiscretizedLogistic], jax.Array]) -> Float[Array, "*kbmc"]:
        """A value of every component, channel after channel, each given those before."""
        x = jnp.zeros_like(self._parts()[1])
        for channel in range(self.channels):
            x = x.at[..., channel].set(value(self._component(x))[..., channel])
        return x


def outputs_of_mixture(channels: int) -> int:
    """Numbers that describe one component: its logit; a location and a scale a channel; a factor a pair of channels."""
    return 1 + 2 * channels + channels * (channels - 1) // 2


def _normal_log_prob(x: Float[Array, "*n"], mean: Float[Array, "*n"], log_scale: Float[Array, "*m"]) -> Float[Array, "*n"]:
    x, mean, log_scale, precision = _like(x, mean, log_scale, jnp.exp(-log_scale))  # once a scale, however many share it
    return -0.5 * (((x - mean) * precision) ** 2 + _LOG_2PI) - log_scale


def _like(first: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
    """Broadcasts all to the shape of the one with the most axes, adding axes in front (rank promotion is never silent)."""
    shape = max((array.shape for array in (first, *others)), key=len)
    return tuple(jnp.broadcast_to(array, shape) for array in (first, *others))


def _per_key(draw: Callable[[jax.Array], jax.Array], keys: Key[Array, "*k"]) -> jax.Array:
    """Applies `draw` to every key of an array of keys."""
    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    return draw(keys)


def _uniform(keys: Key[Array, "*k"], like: jax.Array) -> jax.Array:
    """Uniform numbers in [0, 1) in the shape of `like`, whose leading axes are those of `keys`."""
    event = like.shape[keys.ndim :]
    return _per_key(lambda key: jax.random.uniform(key, event), keys)
