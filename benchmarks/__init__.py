"""What a call costs, here and elsewhere: ``make compare``."""
