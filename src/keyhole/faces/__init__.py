"""Low-resolution faces: models, degradation, resolution matching, protocols and metrics."""
