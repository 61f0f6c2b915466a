"""Hand-over through a RabbitMQ broker (AMQP 0-9-1), with the extra ``amqp``."""
