"""Head plans: their format, the heuristic without calibration, and calibration on a model."""
