"""What models answer: answers remembered, evaluation, plans, search by behaviour, calibration."""
