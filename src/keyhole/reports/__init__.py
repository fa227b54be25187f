"""Reports: whole HTML files with their pictures inside, that need no network and no script."""
