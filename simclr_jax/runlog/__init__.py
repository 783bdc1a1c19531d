"""What a run says: metrics, notes, tables and progress."""
