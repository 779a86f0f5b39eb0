"""The paper's tables and figures: what each needs, running it, and reporting it."""
