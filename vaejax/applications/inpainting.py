"""What a model expects where pixels are missing: draws, their mean, and how far they spread.

Given the latents all pixels are independent, so those that are missing drop out of the posterior of the latents:

    p(z | x_obs)  is proportional to  p(z) p(x_obs | z),        p(x_miss | x_obs) = E[p(x_miss | z)] over it.

Its logarithm has a gradient wherever the latents are real numbers, so chains of Hamiltonian Monte Carlo (Neal 2011,
section 5.3) leave exactly this distribution unchanged, whatever the encoder has learned, and the missing pixels are drawn
from the likelihood.

Metropolis-within-Gibbs (Mattei and Frellsen 2018, algorithm 1) has the same answer. It draws the missing pixels in every turn,
and its proposals from the encoder are accepted by p(x_obs, x_miss, z) / q(z | x_obs, x_miss), both at the missing pixels at
hand: with the observed pixels alone in that ratio it would not leave the posterior unchanged. It moves little: latents are
pinned by the missing pixels that were drawn from them, and on grey MNIST with 16 or 64 latents the encoder's draw was taken 2
times in 100 where the state was the best weighted of 100 such draws.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from vaejax.errors import DataError, FamilyError
from vaejax.keys import of_part, of_samples
from vaejax.models import Condition, Latents, Model, Params

LEAPS = 8
"""Leapfrog steps of a transition."""

ACCEPTANCE = 0.7
"""Of the transitions, what the step size is brought to: from 0.65, best in many dimensions, to 0.8, safe (Neal 2011)."""

FIRST_STEP = 0.05
"""The step size before it is adapted, in units of the latents."""

ANNEALED = 0.6
"""The share of the burn-in in which the observed pixels come to count, from not at all to in full."""


class Visit(NamedTuple):
    """Where the chains of some images are after a transition."""

    latents: Latents
    """Each leaf `[k, b, ...]`."""
    acceptance: Float[Array, " b"]
    """The mean probability of accepting the transition over the chains of an image."""


class Inpainted(NamedTuple):
    """What is expected of images with missing pixels; their observed pixels are in it as they were given, bit by bit."""

    draws: Float[np.ndarray, "k b ..."]
    """Images that the missing pixels allow, the last of each chain, so independent of each other."""
    mean: Float[np.ndarray, "b ..."]
    """Expected image: the mean over all states of the likelihood's mean."""
    sd: Float[np.ndarray, "b ..."]
    """Standard deviation of every pixel, 0 where observed: of the likelihood's mean over the states, and of the pixel around it
    (law of total variance; the second is estimated by one draw a state)."""
    acceptance: Float[np.ndarray, " b"]
    """Share of transitions accepted after burn-in."""
    scale_reduction: Float[np.ndarray, " b"]
    """Potential scale reduction of the expected missing pixels (Gelman and Rubin 1992), their variances summed; near 1 where
    the chains agree."""


def inpaint(
    model: Model,
    params: Params,
    images: Float[Array, "b ..."],
    missing: Bool[Array, "b h w 1"],
    keys: Key[Array, " b"],
    condition: Condition = None,
    chains: int = 8,
    burn_in: int = 100,
    kept: int = 50,
) -> Inpainted:
    """Draws what is missing, given what is seen.

    Args:
        model: any family whose latents are real numbers.
        params: its parameters.
        images: in [0, 1]; what they hold where pixels are missing is never looked at.
        missing: which pixels are, in all of their channels.
        keys: one key an image, all that its draws depend on; images in other batches differ by rounding, which chains amplify.
        condition: for a conditional model, the label of each image.
        chains: so many an image, each from a draw of the prior, and so many draws.
        burn_in: transitions before the first that counts.
        kept: transitions that count, of each chain.

    Raises:
        FamilyError: the latents are codes.
        ValueError: fewer than two chains, or fewer than two transitions that count.
    """
    if chains < 2 or kept < 2:
        raise ValueError(f"chains={chains}, kept={kept}: expected at least 2 of each, to see how they differ.")
    sums = _Sums(*(jnp.zeros((chains, *images.shape)) for _ in range(3)))
    acceptance = jnp.zeros(len(images))
    drawing = of_part(keys, 1)
    for number, visit in enumerate(visits(model, params, images, missing, keys, condition, chains, burn_in, kept)):
        sums, drawn = _add(model, params, visit.latents, condition, drawing, sums, number)
        acceptance += visit.acceptance / kept
    mean, sd, scale_reduction = _summary(sums, missing, kept)
    return Inpainted(
        draws=np.where(missing, drawn, images),
        mean=np.where(missing, mean, images),
        sd=np.where(missing, sd, np.float32(0.0)),
        acceptance=np.asarray(acceptance),
        scale_reduction=np.asarray(scale_reduction),
    )


def visits(
    model: Model,
    params: Params,
    images: Float[Array, "b ..."],
    missing: Bool[Array, "b h w 1"],
    keys: Key[Array, " b"],
    condition: Condition = None,
    chains: int = 8,
    burn_in: int = 100,
    kept: int = 50,
) -> Iterator[Visit]:
    """The states of the chains after burn-in; arguments and errors as for `inpaint`.

    In the burn-in the observed pixels come to count little by little, so that chains spread over all modes before they settle,
    and the step size of each image is adapted (Robbins and Monro 1951). After it nothing is.
    """
    if not model.random:
        raise FamilyError(
            "inpaint: the latents of this model are codes, and chains need latents that move by small steps. "
            "Choose a run with model.family='vae' or 'hierarchical'."
        )
    told = _Told(params, jnp.where(missing, 0.0, images), missing, condition)
    starting = of_samples(of_part(keys, 0), jnp.arange(chains))
    state, moving = _start(model, params, starting, condition), of_part(keys, 2)
    for number in range(burn_in + kept):
        settled = number >= burn_in
        weight = 1.0 if settled else min(1.0, (number + 1) / (ANNEALED * burn_in)) ** 3
        gain = 0.0 if settled else (1.0 + number / 10.0) ** -0.6
        state, acceptance = _transition(model, told, state, moving, number, weight, gain)
        if settled:
            yield Visit(state.latents, acceptance)


def is_region(name: str) -> bool:
    """Whether missing pixels are said by the name of a `region`; a file of that name has to be said with its folder."""
    return name == "lower-half" or name.startswith("square:")


def region(name: str, image_shape: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """Missing pixels by name: "lower-half", or "square:SIDE", in the middle.

    Raises:
        DataError: another name, or a square that leaves nothing to be seen.
    """
    height, width = image_shape[:2]
    missing = np.zeros((height, width), bool)
    if name == "lower-half":
        missing[height // 2 :] = True
        return missing
    kind, _, side = name.partition(":")
    if kind != "square" or not side.isdecimal() or not 0 < int(side) < max(height, width):
        raise DataError(
            f"--mask={name}: expected lower-half, a file, or square:SIDE with a side of 1 to {max(height, width) - 1} pixels."
        )
    top, left = max(height - int(side), 0) // 2, max(width - int(side), 0) // 2
    missing[top : top + int(side), left : left + int(side)] = True
    return missing


class _Told(NamedTuple):
    """What the chains are about; images are 0 where pixels are missing."""

    params: Params
    images: jax.Array
    missing: jax.Array
    condition: Condition


class _State(NamedTuple):
    """The chains, and the logarithm of the step size of each image, `[b]`."""

    latents: Latents
    log_step: jax.Array


class _Sums(NamedTuple):
    """Running sums of every chain's expected image, each `[k, b, ...]`, in the numbers of Welford (1962)."""

    mean: jax.Array
    squares: jax.Array
    noise: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def _start(model: Model, params: Params, keys: Key[Array, "k b"], condition: Condition) -> _State:
    """Draws from the prior."""
    chains, b = keys.shape
    told = None if condition is None else jnp.concatenate([condition] * chains)
    latents = model.prior(params, keys.reshape(-1), 1.0, told)
    spread = jax.tree.map(lambda leaf: leaf.reshape(chains, b, *leaf.shape[1:]), latents)
    return _State(spread, jnp.full(b, math.log(FIRST_STEP)))


@functools.partial(jax.jit, static_argnums=0)
def _transition(
    model: Model, told: _Told, state: _State, keys: Key[Array, " b"], number: int, weight: float, gain: float
) -> tuple[_State, Float[Array, " b"]]:
    """Transition `number` of every chain by the density p(z) p(x_obs|z)^weight, and its mean acceptance an image."""
    chains = jax.tree.leaves(state.latents)[0].shape[0]
    drawing = of_samples(of_part(keys, number), jnp.arange(chains))
    uniform = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), (2,))))(drawing)
    varied = 0.6 + 0.8 * uniform[..., 0]  # trajectories that are all of one length could come back to where they began
    step = jnp.exp(state.log_step)[jnp.newaxis] * varied
    proposed, gained = _leapfrog(model, told, weight, state.latents, _normal(drawing, state.latents), step)
    probability = jnp.where(jnp.isnan(gained), 0.0, jnp.exp(jnp.minimum(gained, 0.0)))
    moves = uniform[..., 1] < probability
    latents = jax.tree.map(lambda new, old: jnp.where(_wide(moves, new), new, old), proposed, state.latents)
    acceptance = probability.mean(axis=0)
    return _State(latents, state.log_step + gain * (acceptance - ACCEPTANCE)), acceptance


def _leapfrog(
    model: Model, told: _Told, weight: float, latents: Latents, momentum: Latents, step: Float[Array, "k b"]
) -> tuple[Latents, Float[Array, "k b"]]:
    """Where a trajectory of `LEAPS` steps ends, and the logarithm of the joint density that it has gained."""

    def pulled(latents: Latents) -> tuple[Float[Array, "k b"], Latents]:
        density, pull = jax.vjp(lambda latents: _log_density(model, told, weight, latents), latents)
        return density, pull(jnp.ones_like(density))[0]

    def pushed(momentum: Latents, force: Latents) -> Latents:
        return jax.tree.map(lambda m, f: m + 0.5 * _wide(step, f) * f, momentum, force)

    def leap(carry: tuple, _: None) -> tuple[tuple, None]:
        place, momentum, force, _ = carry
        momentum = pushed(momentum, force)
        place = jax.tree.map(lambda z, m: z + _wide(step, m) * m, place, momentum)
        density, force = pulled(place)
        return (place, pushed(momentum, force), force, density), None

    before, force = pulled(latents)
    (place, end, _, after), _ = jax.lax.scan(leap, (latents, momentum, force, before), length=LEAPS)
    return place, after - _kinetic(end) - before + _kinetic(momentum)


def _log_density(model: Model, told: _Told, weight: float, latents: Latents) -> Float[Array, "k b"]:
    """Of the prior, and so much of the observed pixels: log p(z) + weight log p(x_obs|z), nats an image."""
    pixels = model.decode(told.params, latents, told.condition).pixel_log_prob(told.images)
    observed = jnp.where(told.missing[jnp.newaxis], 0.0, pixels).sum(axis=tuple(range(1 - told.images.ndim, 0)))
    return model.log_prior(told.params, latents, told.condition) + weight * observed


@functools.partial(jax.jit, static_argnums=0)
def _add(
    model: Model,
    params: Params,
    latents: Latents,
    condition: Condition,
    keys: Key[Array, " b"],
    sums: _Sums,
    number: int,
) -> tuple[_Sums, Float[Array, "k b ..."]]:
    """The sums with state `number` of every chain, and an image drawn from each."""
    likelihood = model.decode(params, latents, condition)
    expected = likelihood.mean()
    drawn = likelihood.sample(of_samples(of_part(keys, number), jnp.arange(len(expected))))
    off = expected - sums.mean
    mean = sums.mean + off / (number + 1)
    return _Sums(mean, sums.squares + off * (expected - mean), sums.noise + (drawn - expected) ** 2), drawn


@jax.jit
def _summary(sums: _Sums, missing: Bool[Array, "b h w 1"], kept: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and standard deviation of the pixels over all chains, `[b, ...]`, and the potential scale reduction, `[b]`."""
    chains = len(sums.mean)
    within, between = sums.squares.mean(axis=0) / kept, sums.mean.var(axis=0)
    sd = jnp.sqrt(within + between + sums.noise.mean(axis=0) / kept)
    axes = tuple(range(1, missing.ndim))
    inside, among = (jnp.where(missing, part, 0.0).sum(axis=axes) for part in (within, between))
    ratio = among * chains / (chains - 1) / jnp.maximum(inside * kept / (kept - 1), jnp.finfo(jnp.float32).tiny)
    return sums.mean.mean(axis=0), sd, jnp.sqrt((kept - 1) / kept + ratio)


def _normal(keys: Key[Array, "k b"], like: Latents) -> Latents:
    """Standard normal numbers in the shape of latents."""
    leaves, structure = jax.tree.flatten(like)

    def draw(key: Key[Array, ""]) -> list[jax.Array]:
        return [jax.random.normal(jax.random.fold_in(key, 1 + i), leaf.shape[2:]) for i, leaf in enumerate(leaves)]

    return jax.tree.unflatten(structure, jax.vmap(jax.vmap(draw))(keys))


def _kinetic(momentum: Latents) -> Float[Array, "k b"]:
    """Half the squared length of each chain's momentum."""
    return sum(0.5 * (leaf**2).sum(axis=tuple(range(2, leaf.ndim))) for leaf in jax.tree.leaves(momentum))


def _wide(each: jax.Array, like: jax.Array) -> jax.Array:
    """`[k, b]` in the shape of latents `[k, b, ...]`."""
    return jnp.broadcast_to(each.reshape(*each.shape, *[1] * (like.ndim - 2)), like.shape)
