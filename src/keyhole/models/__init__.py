"""Networks: built in or by name, their layers, and frozen teachers."""
