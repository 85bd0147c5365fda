"""What one process keeps on disk beside the log."""
