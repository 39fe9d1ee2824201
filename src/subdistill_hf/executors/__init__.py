"""Engines that run jobs: processes of this machine, or Ray; what a job is, they need not know."""
