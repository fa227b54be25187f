"""Students for few pixels: taught on the image that a camera delivers, by a teacher that sees the sharp one.

This part stands above the two halves of the package, which do not know of each other: from the faces it takes crops,
cameras and models, from the distillation cohorts, terms and hints.
"""
