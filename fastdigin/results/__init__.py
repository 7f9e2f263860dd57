"""The records that tasks yield, and the folder that keeps them."""

from fastdigin.results.pictures import difference_picture, to_pil
from fastdigin.results.records import (
    CounterfactualRecord,
    DisagreementRecord,
    NeuronCounterfactualRecord,
    NeuronRecord,
)
from fastdigin.results.schema import Record, read_records, record_class, register, tasks
from fastdigin.results.store import ResultStore, read_runs

__all__ = [
    "CounterfactualRecord",
    "DisagreementRecord",
    "NeuronCounterfactualRecord",
    "NeuronRecord",
    "Record",
    "ResultStore",
    "difference_picture",
    "read_records",
    "read_runs",
    "record_class",
    "register",
    "tasks",
    "to_pil",
]
