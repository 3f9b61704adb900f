"""Attention over the frames of a clip at a fixed token index; see README.md in this folder."""
