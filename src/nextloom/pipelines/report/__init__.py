"""The report: one offline HTML file about a dataset, a noun a file. `page` puts the parts together.

funnel       rows, kept, rejected, failed, speed and cost of each step
removals     what each rule of a Select removes: marginal, joint, unique
thresholds   histograms of the compared columns, and the sample that a moved threshold is judged on
topics       classes before and after a Select
duplicates   groups of copies, side by side
failures     error rows by reason
runs         what trainings and drawings left
album        the thumbnails of all of them, within one budget
"""

from nextloom.pipelines.report.page import gather, write_report

__all__ = ["gather", "write_report"]
