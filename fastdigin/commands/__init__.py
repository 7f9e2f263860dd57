"""What each command does: a module each, with ``run(options)`` that returns the exit code.

The options that several share lie beside them. Nothing here is imported before it is needed: torch
takes seconds, and --help needs none of it.
"""
