"""The images of a subtask: sources, splits, views and batches."""
