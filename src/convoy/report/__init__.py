"""One self-contained HTML page for a run. Reads run folders and the events in them, and nothing else."""
