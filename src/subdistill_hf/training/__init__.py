"""`SubDistillTrainer` and what it is composed of."""
