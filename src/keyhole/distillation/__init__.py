"""Students: losses, terms, matching, and the training loop."""
