"""The report of runs as one HTML file that needs nothing else: no network, no server, and no JavaScript to be read."""
