"""Measurements too long for a demo. Each is run by `python -m benchmarks.NAME` and keeps its raw samples.

Results name the machine, the command and the commit; they are committed in `results/`, and every figure
in the texts of this repository that is not a demo's own stands there.
"""
