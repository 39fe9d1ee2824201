"""Teachers and students: loading, recipes, heads and adapters."""
