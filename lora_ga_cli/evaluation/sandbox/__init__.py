"""Programs that nobody vouches for, run where they can harm nothing (Linux), and a verdict that they cannot forge.

`check` tells whether this machine can; `box` runs a program; `verdict` puts one on trial. What runs in other
processes: `launch` builds a box around a program, `candidate` and `grader` are the two that meet there, and they
import nothing but the standard library.
"""
