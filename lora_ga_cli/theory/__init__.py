"""What is proved about chains of low-rank updates, computed on small problems: pure functions in float64.

Nothing here knows the configuration or a language model. A chain is the same computation as in a training, on a problem
whose smoothness, convexity and minimum are known.
"""
