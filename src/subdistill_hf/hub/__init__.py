"""The Hub: its errors, the files of a student, and publishing."""
