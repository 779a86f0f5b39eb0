"""What SimpleVQA reads, extracted from videos once."""
