"""What RabbitMQ's engine is made of: a connection that comes back, and the two sides of a request on it."""
