"""The comparison of methods in one command: a grid of runs from one YAML file, tuned, trained and shown as a table."""
