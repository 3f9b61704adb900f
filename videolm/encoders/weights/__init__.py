"""Weights of other projects, and ours for other projects: one table of names per layout, strict both ways."""

from videolm.encoders.weights.convert import load_clip_state, weights_sha256
from videolm.encoders.weights.export import export_folder
from videolm.encoders.weights.read import Weights, read_weights

__all__ = ["Weights", "export_folder", "load_clip_state", "read_weights", "weights_sha256"]
