"""Hint points: similarity of all layers, clustering, selection, stability."""
