"""Datasets: one small reader for each format, and the rendered world."""
