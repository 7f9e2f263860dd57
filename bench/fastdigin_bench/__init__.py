"""What produces every number that fastdigin publishes: ``fastdigin bench NAME``.

A bench prints tables and, last, one line of JSON on stdout, which it also keeps as NAME.json in a
results folder. Progress goes to stderr.
"""
