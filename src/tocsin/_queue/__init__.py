"""The queue: processes, workers, producing, consuming and administration."""
