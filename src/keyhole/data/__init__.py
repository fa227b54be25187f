"""Images: data sets by name, their parts, and batches of views."""
