"""Low-resolution faces: photos, detection, alignment, models, degradation, protocols and metrics."""
