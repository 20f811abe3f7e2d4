"""What a column of a table can show of each row: one module a measure, found by its name in a table's file."""
