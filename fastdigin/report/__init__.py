"""Pictures, tables and the HTML report of finished jobs. Reads results, computes none."""

from fastdigin.report.console import print_results, results_table
from fastdigin.report.html import write_report
from fastdigin.report.pictures import contact_sheet, difference_picture, enlarge, to_pil
from fastdigin.report.store import ResultStore, read_records, read_runs

__all__ = [
    "ResultStore",
    "contact_sheet",
    "difference_picture",
    "enlarge",
    "print_results",
    "read_records",
    "read_runs",
    "results_table",
    "to_pil",
    "write_report",
]
