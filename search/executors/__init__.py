"""Where cohorts train: the seam between the study and the machine."""
