"""Reports: figures and pages of runs and evaluations."""
