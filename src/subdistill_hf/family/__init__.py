"""A family: many experts from one teacher, one for each subtask of a dataset."""
