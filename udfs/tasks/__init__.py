"""The tasks, one file each: a task's options and its worker half. They know neither torch nor Spark."""
