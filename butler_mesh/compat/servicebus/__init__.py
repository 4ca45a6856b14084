"""py-servicebus: its modules under the names they had."""
