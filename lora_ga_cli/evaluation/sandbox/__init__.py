"""A sandbox for programs that a model has written (Linux only), and a verdict on them that they cannot forge.

`check` says whether this machine can run a sandbox, `sandbox` runs one program in one, and `verdict` grades a candidate
program. Three modules run in other processes and import only the standard library: `launch` builds a sandbox and
starts a program in it, `candidate` runs the candidate program, and `grader` tests it from another sandbox.
"""
