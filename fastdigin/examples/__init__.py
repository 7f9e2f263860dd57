"""Short programs that show how to use fastdigin as a library.

Each runs as ``python -m fastdigin.examples.NAME --out DIR`` or as a script, in a few minutes on the
packaged model, and writes pictures and a report into DIR. ``tour.ipynb`` is a notebook.
"""
