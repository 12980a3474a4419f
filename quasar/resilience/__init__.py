"""What a trained network loses when parts of it are left out without retraining, and what that saves on a device."""
