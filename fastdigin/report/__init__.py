"""Tables and the HTML report of finished jobs. Reads results, computes none."""

from fastdigin.report.console import print_results, results_table
from fastdigin.report.results_page import write_report

__all__ = ["print_results", "results_table", "write_report"]
