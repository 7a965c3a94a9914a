"""Broker, services and folders of a job on one machine."""
