"""The scripts are read by type checkers; pytest must not look for doctests in them."""

collect_ignore = ["correct.py", "mistakes.py"]
