"""A watch list: the gallery, its search, thresholds for a wanted rate of false alarms, and who a probe may be."""
