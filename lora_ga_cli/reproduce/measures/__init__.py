"""Measures, one in each module: what a column of a table shows. A table's file names them."""
