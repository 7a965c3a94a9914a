"""A real Apache Kafka broker without Docker, for one machine: tests, examples and first steps."""

from antdt_streams.broker.embedded import BrokerOptions, EmbeddedBroker

__all__ = ["BrokerOptions", "EmbeddedBroker"]
