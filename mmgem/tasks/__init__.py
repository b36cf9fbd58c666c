"""What can be learned: one file, or folder, a task."""
