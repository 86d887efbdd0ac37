"""Measurements of the toolkit; see README.md in this folder."""
