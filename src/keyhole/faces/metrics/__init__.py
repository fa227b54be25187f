"""Figures of verification and identification, and how sure each is."""
