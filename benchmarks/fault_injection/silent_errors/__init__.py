"""Silent errors of real trainings, reproduced on one or two CPU processes."""
