"""`distill`: from options to the folder of a student."""
