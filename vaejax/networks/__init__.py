"""Networks in flax.linen: the only room that knows how weights are arranged."""

from vaejax.networks.build import Network, apply, decoder, encoder, init
from vaejax.networks.classifier import Classifier
from vaejax.networks.cnn import FeatureEncoder, GridDecoder, GridEncoder, sizes_of
from vaejax.networks.discriminator import Discriminator
from vaejax.networks.flow import Flow
from vaejax.networks.hierarchy import BottomUp, Finer, Merge, PosteriorHead, PriorHead, ToImage
from vaejax.networks.segmentation import SegmentationHead
from vaejax.networks.transformer import CodeReader

__all__ = [
    "BottomUp",
    "Classifier",
    "CodeReader",
    "Discriminator",
    "FeatureEncoder",
    "Finer",
    "Flow",
    "GridDecoder",
    "GridEncoder",
    "Merge",
    "Network",
    "PosteriorHead",
    "PriorHead",
    "SegmentationHead",
    "ToImage",
    "apply",
    "decoder",
    "encoder",
    "init",
    "sizes_of",
]
