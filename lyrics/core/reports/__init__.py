"""Charts and pages, in one style."""
