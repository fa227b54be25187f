"""Studies: grids of students under equal conditions, run in cohorts that share the teacher's pass."""
