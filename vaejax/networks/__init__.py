"""Encoders and decoders in flax.linen: the only room that knows how weights are arranged."""

from vaejax.networks.build import apply, decoder, encoder, init

__all__ = ["apply", "decoder", "encoder", "init"]
