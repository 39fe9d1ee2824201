"""Everything a user may say: options, their values and their defaults."""
