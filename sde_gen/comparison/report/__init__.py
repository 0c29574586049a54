"""The report of a comparison: one HTML file that needs nothing else, and a Markdown twin with pictures beside it."""

from pathlib import Path

from sde_gen.comparison.report import content, exactness, record, views
from sde_gen.comparison.report.blocks import Page, Section
from sde_gen.comparison.report.html import write_html
from sde_gen.comparison.report.markdown import write_markdown
from sde_gen.comparison.results import ResultTable


def page_of(results: ResultTable) -> Page:
    """The whole report, apart from how it is written."""
    sections = [
        Section("In short", content.summary(results)),
        content.findings(results),
        content.rankings(results) if results.budgets else None,
        views.curves(results),
        views.samples(results),
        views.ways(results),
        exactness.orders(results),
        exactness.likelihoods(results),
        record.networks(results),
        record.choices(results),
        record.left_out(results),
        record.provenance(results),
    ]
    title = str(results.spec["name"]).replace("_", " ")
    title = title[:1].upper() + title[1:]
    lead = results.spec["question"] or "What does each formulation cost?"
    return Page(title, lead, [section for section in sections if section is not None])


def write_report(results: ResultTable, folder: Path) -> Path:
    """Write report.html, and report.md with its pictures; return the path of the HTML."""
    page = page_of(results)
    write_markdown(page, folder)
    return write_html(page, folder)
