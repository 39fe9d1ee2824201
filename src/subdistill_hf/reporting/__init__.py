"""Text and figures made from a report: model card, tables and plots."""
