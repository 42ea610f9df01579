"""What happened: events, tasks, workers, schedules and queues, as facts without presentation."""
