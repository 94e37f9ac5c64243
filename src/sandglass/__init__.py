"""Sandglass: self-supervised pretraining and judging of hierarchical vision transformers on small image sets."""

__version__ = "0.1.0"
