"""python -m fastdigin.results prints what the keys of results.jsonl mean."""

from fastdigin.results.schema import describe

print(describe())
