"""Measurements that take too long for a demo.

Each runs as `python -m benchmarks.NAME` and keeps its raw samples. Each result names machine, command and
commit. The results are committed in `results/`; the measured numbers in the texts of this repository come
from there.
"""
