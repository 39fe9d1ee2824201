"""The page of a run: its report as one file of HTML, with figures and pictures in it."""
