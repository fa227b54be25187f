"""Reports of hint points, trainings and the demonstration, as whole HTML files."""
