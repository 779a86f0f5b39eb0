"""Training, testing and reporting of any of the models."""
