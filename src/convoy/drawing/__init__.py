"""Data to SVG and HTML text: pure functions, plain Python. Reports and notebooks draw with them."""
