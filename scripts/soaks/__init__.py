"""The faults that `scripts/soak.py` makes, one kind in each file.

A kind is a module with two functions: ``arguments(parser)`` declares its options, and ``run(options)`` makes the faults
and yields a `Figure` for each thing that it counted. The first line of its docstring is its description. Files whose
name begins with an underscore are shared by several kinds.
"""
