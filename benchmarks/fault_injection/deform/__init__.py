"""The fault catalogue of `defaultplusplus` (its `deform` module): every operator at every value, on small trainings.

Tuning and held out: models and tasks are in one of two groups (`Subject.held_out`, `Task.held_out`). A training is
held out where its model or its task is, until somebody has looked (`subjects.LOOKED_AT`). Whoever writes or changes a
health rule may look at rows of the tuning group alone; rows of the held-out group are for the report. `run` and
`report` work on the tuning group unless `--held-out` is given.
"""
