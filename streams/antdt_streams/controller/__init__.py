"""The Controller: reads measurements, writes decisions."""
