"""Measures veturboio beside its rivals: ``python -m bench --list`` shows what there is.

The cases are rows of :mod:`bench.cases`, the libraries are rows of :mod:`bench.libraries`.
Every counted run is a process of its own (:mod:`bench.worker`) that starts from a page
cache in a stated and checked condition (:mod:`bench.cache`). ``docs/performance.md`` tells
how to read the figures.
"""
