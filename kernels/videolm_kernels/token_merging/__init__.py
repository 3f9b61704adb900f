"""Bipartite soft matching of tokens and their weighted mean; see README.md in this folder."""
