"""The parts of a report, one in each file. Each registers itself, and has its template in templates/sections/."""
