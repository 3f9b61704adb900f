"""Attention within a frame, with the log-size bias on the keys; see README.md in this folder."""
