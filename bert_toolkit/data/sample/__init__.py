"""A small acceptability corpus in CoLA's raw layout; tools/sample/grammar.py writes it."""
