"""Face models: what each takes, the files and networks that it comes as, and the one of the package."""
