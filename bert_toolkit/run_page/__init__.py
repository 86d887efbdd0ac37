"""The page of a run: one HTML file, made from the files that a run leaves, that opens without a network."""

from bert_toolkit.run_page.page import write_run_page

__all__ = ["write_run_page"]
