"""One training run: its configuration, folder, loop, workers and export."""
