"""Towers that turn frames and sentences into tokens and embeddings."""
