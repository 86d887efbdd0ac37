"""A small acceptability corpus in CoLA's raw layout, and the grammar that writes it: see `grammar`."""
